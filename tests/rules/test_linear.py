"""Products that sum: over a concatenation, of blocks with blocks, of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import Function, check_model, reasons
from torch import Tensor

from rules.cases import (
    CANDIDATE,
    CONTEXT,
    FIELDS,
    HISTORY,
    ROWS,
    C,
    Equal,
    K,
    NearMiss,
    W,
    both,
    declines,
    equal_at_every_level,
    fields,
    interleaved,
    numbers,
)

randn = numbers(6)

COMPLEX = torch.complex(randn(C + K, 3), randn(C + K, 3))


def in_pairs(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(1)


def turned(x: Tensor, w: Tensor) -> Tensor:
    """Every number times one of as many complex ones."""
    return (x.to(w.dtype) + 1j) * w[:, 0]


def recurrence(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A history, then a target, by a state of complex numbers."""
    events = torch.cat([c, k.unsqueeze(1)], 1).to(w.dtype) @ w[:4]
    state, decay = torch.zeros_like(events[:, 0]), torch.polar(w[4].abs().neg().exp(), w[5].real)
    for event in events.unbind(1):
        state = decay * state + event
    return state @ w[6:9].conj()


EQUAL: dict[str, Equal] = {
    "linear": (lambda c, k, w: F.linear(both(c, k), w), ROWS, dict(w=W)),
    "linear_bias_interleaved": (lambda c, k, w, b: F.linear(interleaved(c, k), w, b), ROWS, dict(w=W, b=randn(5))),
    "two_linears": (lambda c, k, w, v: both(c, k) @ w.t() @ v, ROWS, dict(w=W, v=randn(5, 3))),
    "low_rank": (lambda c, k, w, v: F.linear(F.linear(both(c, k), v), w), ROWS, dict(v=randn(2, C + K), w=randn(5, 2))),
    "addmm": (
        lambda c, k, w, b: torch.addmm(b, both(c, k), w, beta=0.5, alpha=2),
        ROWS,
        dict(w=W.t().clone(), b=randn(5)),
    ),
    "matmul_vector": (lambda c, k, w: both(c, k) @ w, ROWS, dict(w=randn(C + K))),
    "einsum": (lambda c, k, w: torch.einsum("bi,oi->bo", both(c, k), w), ROWS, dict(w=W)),
    "einsum_ellipsis": (
        lambda c, k, w: (
            torch.einsum("...i,oi->...o", both(c, k).view(-1, 2, 5), w[:, :5])
            + torch.einsum("...i,i", c, w[0, :6]).view(-1, 1, 1)
        ),
        ROWS,
        dict(w=W),
    ),
    "einsum_ellipsis_of_two_depths": (
        lambda c, k, w: torch.einsum("...i,...i->...", k.view(-1, 1, 4) * w[:3, :4], c[:, None, :4]),
        ROWS,
        dict(w=W),
    ),
    "einsum_three": (lambda c, k, w: torch.einsum("bi,bj,ij->b", c, k, w), ROWS, dict(w=randn(C, K))),
    "addr": (lambda c, k, b: torch.addr(both(c, k), c[:, 0], b, beta=0.5, alpha=2), ROWS, dict(b=randn(C + K))),
    "bilinear": (lambda c, k, w, b: F.bilinear(c, k, w, b), ROWS, dict(w=randn(5, C, K), b=randn(5))),
    "bilinear_of_both": (
        lambda c, k, w: F.bilinear(both(c, k).view(-1, 2, 5), interleaved(c, k).view(-1, 2, 5), w),
        ROWS,
        dict(w=randn(3, 5, 5)),
    ),
    "vecdot": (lambda c, k, w: torch.linalg.vecdot(c.tanh(), k @ w), ROWS, dict(w=randn(K, C))),
    "vecdot_dims": (
        lambda c, k, w: (
            torch.linalg.vecdot(c.view(-1, 3, 2), k.view(-1, 2, 2)[:, :1])
            + torch.linalg.vecdot(c, both(c, k)[:, 2:8], dim=1)[:, None]
            + torch.linalg.vecdot(w, both(c, k))[:, None]
        ),
        ROWS,
        dict(w=randn(C + K)),
    ),
    "tensordot": (lambda c, k, w: torch.tensordot(both(c, k), w, dims=([1], [1])), ROWS, dict(w=W)),
    "gram": (lambda c, k: torch.bmm(fields(c, k), fields(c, k).transpose(1, 2)).flatten(1), FIELDS, {}),
    "gram_triangle": (
        lambda c, k, i, w: F.linear(torch.bmm(fields(c, k), fields(c, k).transpose(1, 2))[:, i[0], i[1]], w),
        FIELDS,
        dict(i=torch.triu_indices(7, 7, 1), w=randn(3, 21)),
    ),
    "per_field_matrix": (
        lambda c, k, w: torch.einsum("bfd,fde->bfe", fields(c, k), w).flatten(1),
        FIELDS,
        dict(w=randn(7, 5, 2)),
    ),
    "shared_matrix_flatten": (
        lambda c, k, w, v: F.linear((fields(c, k) @ w).flatten(1), v),
        FIELDS,
        dict(w=randn(5, 3), v=randn(2, 21)),
    ),
    "convolved": (
        lambda c, k, w, b: (
            F.conv1d(fields(c, k).flatten(1).unsqueeze(2), w, b, groups=7).relu()
            + F.conv1d(fields(c, k), w.mT, b, groups=7)
            + F.conv2d(fields(c, k).unsqueeze(2), w.mT.unsqueeze(2), stride=(1, 3), groups=7)[..., 0]
            + F.conv2d(fields(c, k).flatten(1).view(-1, 1, 5, 7), w[:, None, :, :].expand(-1, -1, -1, 7))[..., 0]
        ),
        FIELDS,
        dict(w=randn(14, 5, 1), b=randn(14)),
    ),
    "complex": (lambda c, k, w: in_pairs(turned(both(c, k), w) @ w), ROWS, dict(w=COMPLEX)),
    "complex_recurrence": (lambda c, k, w: in_pairs(recurrence(c, k, w)), HISTORY, dict(w=COMPLEX)),
    "complex_factors": (
        lambda c, k, w: in_pairs(
            torch.add(turned(c, w[:6]), turned(c, w[:6])[:, :1], alpha=2j)
            + torch.addmm(w[0, :1], turned(k, w[:4]), w[:4], beta=1j).sum(1, keepdim=True) * 2j
        ),
        ROWS,
        dict(w=COMPLEX),
    ),
    "target_attention": (
        lambda c, k, w: (
            F.linear(torch.cat([k.unsqueeze(1).expand(-1, 6, -1), c, k.unsqueeze(1) - c, k.unsqueeze(1) * c], -1), w)
            .relu()
            .sum(1)
        ),
        HISTORY,
        dict(w=randn(3, 16)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "product_sums_over_rows": (
        lambda c, k: k @ torch.einsum("bi,bj->ij", c, k).mT[:, :2],
        "einsum",
        "sums over the rows: b i, b j -> i j of [rows, ",
        {},
    ),
    "vecdot_over_rows": (
        lambda c, k: k * torch.linalg.vecdot(c[:, :4], k, dim=0),
        "linalg_vecdot",
        "sums over the rows",
        {},
    ),
    "conjugated": (
        lambda c, k, w: in_pairs(torch.linalg.vecdot(turned(c[:, :4], w[:4]), turned(k, w[4:8])).unsqueeze(1)),
        "linalg_vecdot",
        "conjugates complex numbers",
        dict(w=COMPLEX),
    ),
    "addr_of_rows": (
        lambda c, k, w: torch.addr(w[0, :1], c[:, 0], k[:, 0]) @ k,
        "addr",
        "every row meets every other row",
        dict(w=randn(4, 3)),
    ),
    "einsum_ellipsis": (
        lambda c, k: k * torch.einsum("...i->i", c)[:4],
        "einsum",
        "sums over the rows: ..1 i -> i of [rows, ",
        {},
    ),
    "einsum_diagonal": (
        lambda c, k: torch.einsum("bii->bi", c[:, :4].view(-1, 2, 2)) * k[:, :2],
        "einsum",
        "an operand names an axis twice: b i i -> b i of [rows, 2, 2]",
        {},
    ),
    "rows_meet_rows": (lambda c, k: (c @ c.t()).softmax(1) @ k, "matmul", "every row meets every other row", {}),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_every_group_of_a_convolution_meets_its_own_channels():
    """Fields of width 5 to 2 numbers each, 4 of the context and 3 of the candidate."""
    model = Function(lambda c, k, w: F.conv1d(fields(c, k).flatten(1).unsqueeze(2), w, groups=7), w=randn(14, 5, 1))
    assert check_model(model.eval(), *FIELDS)["linear"].plan.cost.multiply_adds == (1000 * 3 + 4) * 5 * 2


def test_a_candidate_meets_a_state_of_complex_numbers_once():
    """Six events before it: the request's state is decayed and read once; what is read of an event is folded."""
    model = Function(lambda c, k, w: in_pairs(recurrence(c, k, w)), w=COMPLEX)
    full = check_model(model.eval(), *HISTORY)["full"]
    assert full.plan.cost.multiply_adds <= 1000 * 4 * 3 + 200


def test_a_layer_before_vecdot_is_folded_into_the_request():
    """<U c, V k> = <V^T U c, k>: once per request H Dc + H Dk multiply-adds, per candidate Dk instead of H Dk + H."""
    h, n = 8, 1000
    model = Function(lambda c, k, u, v: torch.linalg.vecdot(c @ u, k @ v), u=randn(C, h), v=randn(K, h))
    models = check_model(model.eval(), CONTEXT, CANDIDATE)
    cost = {level: models[level].plan.cost.multiply_adds for level in ("expand", "first", "full")}
    assert cost == {"expand": n * h * (C + K + 1), "first": h * C + n * h * (K + 1), "full": h * (C + K) + n * K}


def test_vecdot_applies_to_operands_of_different_depth():
    call, inputs, weights = EQUAL["vecdot_dims"]
    models = check_model(Function(call, **weights).eval(), *inputs)
    assert reasons(models["full"]) == []
