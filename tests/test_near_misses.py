"""One condition away from a law: the rule declines with its reason, and what runs over all rows is equal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, hoisted_at, kept, reasons, repeated

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level

N = 7
OFFSETS = [0, 3, 3, N]
G = torch.Generator().manual_seed(3)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


CONTEXT, CANDIDATE, W = randn(3, 6), randn(N, 4), randn(4, 3)


def positive(x: torch.Tensor) -> torch.Tensor:
    return (x > 0).long()


# (context, candidate) -> scores; the reason; weights.
CASES = {
    "product_sums_over_rows": (
        lambda c, k: k @ torch.einsum("bi,bj->ij", c, k).mT[:, :2],
        "sums over the rows: b i, b j -> i j of [rows, 6], [rows, 4]", {},
    ),
    "vecdot_over_rows": (lambda c, k: k * torch.linalg.vecdot(c[:, :4], k, dim=0), "sums over the rows", {}),
    "addr_of_rows": (
        lambda c, k, w: torch.addr(w[0, :1], c[:, 0], k[:, 0]) @ k, "every row meets every other row", dict(w=W),
    ),
    "einsum_ellipsis": (
        lambda c, k: k * torch.einsum("...i->i", c)[:4], "sums over the rows: ..1 i -> i of [rows, 6]", {},
    ),
    "einsum_diagonal": (
        lambda c, k: torch.einsum("bii->bi", c[:, :4].view(-1, 2, 2)) * k[:, :2],
        "an operand names an axis twice: b i i -> b i of [rows, 2, 2]", {},
    ),
    "every_row_with_every_row": (
        lambda c, k: (c[:, :1] - c[:, 0]).abs() @ k, "every row meets every other row: [rows, 1], [rows]", {},
    ),
    "table_of_rows": (lambda c, k: F.embedding(positive(k[:, 0]), c), "the table is no weight, but [rows, 6]", {}),
    "index_of_rows": (
        lambda c, k: c[positive(k[:, 0])], "axis 0 of [rows, 6] is indexed by a tensor that depends on the inputs", {},
    ),
    "row_number_of_a_weight": (
        lambda c, k, w: w[torch.arange(k.shape[0]) % 4] * c[:, :3] + k[:, :1], "the row number", dict(w=W),
    ),
    "gather_over_rows": (
        lambda c, k: c[:, :4].gather(0, positive(k)), "works along the row axis: axis 0 of [rows, 4]", {},
    ),
    "mask_by_candidate": (
        lambda c, k: torch.masked_select(c[:, :4], k > 0).sum() + k,
        "selects from [rows, 4] by a mask that depends on the inputs", {},
    ),
    "stacked_inside": (
        lambda c, k: torch.cat([c[:, :4].repeat_interleave(2, 0), k])[: c.shape[0]] + k,
        "puts [(rows 2), 4] under rows: another axis is folded inside of its rows", {},
    ),
    "stacked_elsewhere": (
        lambda c, k: torch.cat([c[:, :4], k])[1 : k.shape[0] + 1] + k, "cuts the rows of [(2 rows), 4] at 1", {},
    ),
    "stacked_viewed_otherwise": (
        lambda c, k: torch.cat([c[:, :4], k]).view(-1, 2, 4).sum(1) + k, "cuts rows apart", {},
    ),
    "stacked_softmax": (
        lambda c, k: torch.cat([c[:, :4], k]).softmax(0)[: k.shape[0]], "row axis: axis 0 of [(2 rows), 4]", {},
    ),
    "stacked_with_a_weight": (
        lambda c, k, w: torch.cat([k, w])[: k.shape[0]] * c[:, :4], "or it has none", dict(w=randn(2, 4)),
    ),
    "attention_over_rows": (
        lambda c, k: F.scaled_dot_product_attention(k[None], c[None, :, :4], c[None, :, :4])[0],
        "every row meets every other row: [1, rows, 1, 4], [1, 1, rows, 4]", {},
    ),
    "learned_queries_over_rows": (
        lambda c, k, w: F.scaled_dot_product_attention(w[None], k[None], k[None])[0, :1] + c[:, :4],
        "works along the row axis: axis 2 of [1, 2, rows]", dict(w=randn(2, 4)),
    ),
    "pool_over_rows": (
        lambda c, k: k + F.avg_pool1d(c.t()[None], 3, 1, 1)[0].amax(1)[:4], "pools over the rows of [1, 6, rows]", {},
    ),
    "convolution_over_rows": (
        lambda c, k, w: k + F.conv1d(c[:, :4].t(), w, padding=1).t(),
        "a convolution of [4, rows], without a batch axis", dict(w=randn(4, 4, 3)),
    ),
    "bags_by_offsets": (
        lambda c, k, t: F.embedding_bag(positive(k).flatten(), t, torch.arange(k.shape[0]) * 2, mode="sum") * c[:, :3],
        "bags given by offsets may cross rows: [(rows 4)]", dict(t=W),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_declines(name: str):
    call, reason, weights = CASES[name]
    model = Function(call, **weights).eval()
    example = (CONTEXT[torch.arange(8) % 3], CANDIDATE[torch.arange(8) % N])
    program = capture(model, example, ["context"])
    expected = model(repeated(CONTEXT, OFFSETS), CANDIDATE)
    models = [hoisted_at(program, Level.REQUEST), kept(program), hoisted_at(program, Level.FULL)]
    for hoisted in models:
        assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS), expected, name)
    assert any(reason in r for r in reasons(models[-1])), reasons(models[-1])
    assert not [r for r in reasons(models[-1]) if "please report" in r], "a rule broke"
