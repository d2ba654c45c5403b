"""Functions that torch does not export, or for one number of rows alone: what stands for them is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.capture.other_words import OtherWords
from rankhoist.errors import ExportError

G = torch.Generator().manual_seed(0)
CONTEXT, CANDIDATE = (torch.randn(n, 4, generator=G, dtype=torch.float64) for n in (3, 7))
W = torch.randn(5, 8, generator=G, dtype=torch.float64)
SCALES = torch.rand(8, generator=G) * 0.3 + 0.05
ZEROS = torch.randint(-3, 4, (8,), generator=G, dtype=torch.int32)


def both(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low, high", [(-128, 127), (0, 255), (-8, 7)])
def test_numbers_are_rounded_to_the_same_steps(dtype: torch.dtype, low: int, high: int):
    x = (torch.randn(50, 8, generator=G, dtype=torch.float64) * 3).to(dtype)
    zeros = ZEROS.clamp(low, high)
    calls = [
        lambda: torch.fake_quantize_per_tensor_affine(x, 0.037, 3, low, high),
        lambda: torch.fake_quantize_per_tensor_affine(x, SCALES[0], zeros[0], low, high),
        lambda: torch.fake_quantize_per_channel_affine(x, SCALES, zeros, 1, low, high),
        lambda: torch.fake_quantize_per_channel_affine(x.t(), SCALES, zeros, 0, low, high),
    ]
    for call in calls:
        expected = call()
        with OtherWords():
            made = call()
        assert made.dtype is expected.dtype
        assert torch.equal(made, expected)


def rounded(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A layer as it is trained to be of 8 bits: its inputs by one scale, its weights by one per output."""
    x = torch.fake_quantize_per_tensor_affine(both(c, k), 0.05, 0, -128, 127)
    w = torch.fake_quantize_per_channel_affine(w, SCALES[:5], ZEROS[:5], 0, -128, 127)
    return F.linear(x, w)


def test_a_layer_that_is_trained_to_be_rounded_is_a_layer():
    models = check_model(Function(rounded, w=W).eval(), CONTEXT, CANDIDATE)
    assert models["full"].plan.cost.multiply_adds == 1000 * 5 * 4 + 5 * 4


@pytest.mark.parametrize("name", ["of_rows", "to_rows"])
def test_points_that_are_rows_may_be_any_number(name: str):
    """torch computes distances of more than 25 points otherwise than those of fewer."""
    calls = {
        "of_rows": lambda c, k, w: torch.cdist(both(c, k), w),
        "to_rows": lambda c, k, w: torch.cdist(w[None], both(c, k)[None])[0].t(),
    }
    model = Function(calls[name], w=W).eval()
    hoisted = hoist(model, (CONTEXT[[0, 0, 0]], CANDIDATE[:3]), context=["context"])
    for count in (1, 7, 60):
        rows = torch.randn(count, 4, generator=G, dtype=torch.float64)
        made = hoisted(CONTEXT[:1], rows)
        torch.testing.assert_close(
            made, model(CONTEXT[:1].expand(max(count, 2), -1), rows.expand(max(count, 2), -1))[:count]
        )


WRITTEN = {
    "cat": lambda a, b, w: w @ torch.cat([a, b]),
    "axis": lambda a, b, w: (torch.concat([a[:, None], b[:, None], w[:4, :2]], axis=-1) ** 2).sum(1),
    "hstack": lambda a, b, w: w @ torch.hstack([a, b]).tanh(),
    "columns": lambda a, b, w: torch.hstack([a[:, None], b[:, None]]).prod(1),
    "norm": lambda a, b, w: F.layer_norm(torch.stack([a, b]), (4,), w[0, :4], w[1, :4], 1e-3).prod(0),
    "plain norm": lambda a, b, w: F.layer_norm(torch.outer(a, b), (4, 4)),
    "products": lambda a, b, w: torch.mv(w[:, :4], a) * (w[:, 4:] @ b) + torch.outer(a, b).matmul(b)[:1],
    "kinds": lambda a, b, w: w @ torch.concatenate([a > 0, b]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_models_written_for_one_row(name: str):
    """`vmap` joins tensors in a way that fixes the number of rows."""
    model = Function(lambda c, k, w: torch.vmap(lambda a, b: WRITTEN[name](a, b, w))(c, k), w=W).eval()
    models = check_model(model, CONTEXT, CANDIDATE)
    if name == "cat":
        assert models["full"].plan.cost.multiply_adds == 1000 * 5 * 4 + 5 * 4


MOVED = {
    "to the end": lambda c, k: torch.vmap(torch.outer, 0, -1)(c, k).sum(0).t(),
    "to the middle": lambda c, k: torch.vmap(torch.outer, 0, 1)(c, k).tanh().sum(0),
    "from the middle": lambda c, k: torch.vmap(torch.outer, 1, 0)(c.t(), k.t()).tanh().sum(1),
    "the same for all": lambda c, k: torch.vmap(lambda x: W[0, :4])(c) * c * k,
    "each in the other": lambda c, k: torch.vmap(torch.vmap(lambda a, b: a * b, 0, 0), 0, 1)(c, k).t(),
    "other axes": lambda c, k: torch.vmap(lambda a: a.tanh(), 1, 2)(torch.stack([c, k], 1))[..., 1] * k,
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_results_that_vmap_moves(name: str):
    """torch moves them where no graph shows it."""
    check_model(Function(MOVED[name]).eval(), CONTEXT, CANDIDATE)


class Encoder(nn.Module):
    """Its number of rows is Python's own, so it is read by the exporter that reads bytecode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.first, self.encoder = nn.Parameter(torch.randn(1, 1, 4)), nn.TransformerEncoder(layer, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        first = self.first.expand(len(context), -1, -1)
        return self.encoder(torch.cat([first, context[:, None], candidate[:, None]], 1))[:, 0].sum(1)


def test_an_encoder_without_gradients_is_no_operator_of_its_own():
    model = Encoder().eval().double().requires_grad_(False)
    hoisted = hoist(model, (CONTEXT, CONTEXT), context=["context"])
    assert not [n for n in hoisted.program.graph.nodes if "encoder_layer_fwd" in str(n.target)]
    expected = model(CONTEXT[:1].expand(7, -1), CANDIDATE)
    torch.testing.assert_close(hoisted(CONTEXT[:1], CANDIDATE), expected)


def test_a_choice_for_all_rows_is_refused():
    model = Function(lambda c, k: torch.cond(k.sum() > 0, lambda x: x + 1, lambda x: x - 1, (c + k,))).eval()
    with pytest.raises(
        ExportError, match=r"control flow in it decides for all rows of a call at once, where torch\.where"
    ):
        hoist(model, (CONTEXT, CONTEXT), context=["context"])


ONE_BY_ONE = {
    "a list": lambda c, k: {"scores": both(c, k).sum(1).tolist()},
    "a loop": lambda c, k: torch.stack([row.sum() for row in both(c, k)]),
    "parts": lambda c, k: torch.stack(both(c, k).t().unbind(1)),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_rows_that_are_gone_through_one_by_one_are_told_with_the_line(name: str):
    with pytest.raises(ExportError, match=r"(?s)rows are gone through one by one.*It is line \d+ of .*both\(c, k\)"):
        hoist(Function(ONE_BY_ONE[name]).eval(), (CONTEXT[:1].expand(7, -1), CANDIDATE), context=["context"])


def test_columns_may_be_gone_through_one_by_one():
    listed = Function(lambda c, k: sum(both(c, k).unbind(1)) * sum(x.sum() for x in W) * W[0].tolist()[2])
    check_model(listed.eval(), CONTEXT, CANDIDATE)
