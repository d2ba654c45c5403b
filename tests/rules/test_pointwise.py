"""Operators that find every element by itself; sums and factors that keep their terms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, kept, rates_of

from rankhoist.capture import capture
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rules.cases import (
    IDS,
    PAIR,
    ROWS,
    C,
    Call,
    Equal,
    K,
    NearMiss,
    W,
    both,
    declines,
    equal_at_every_level,
    interleaved,
    numbers,
)

randn = numbers(5)


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs of positions as complex numbers, turned by angles: `[rows, 4] -> [rows, 2]`, as rotary positions are."""
    return torch.view_as_complex(x.reshape(-1, 2, 2)) * torch.polar(torch.ones_like(angles), angles)


def wide(k: torch.Tensor) -> torch.Tensor:
    """As many columns as both sides have."""
    return torch.cat([k, k, k[:, :2]], 1)


def special(x: torch.Tensor) -> torch.Tensor:
    """Functions that few models know."""
    some = (
        torch.special.i0e(x)
        + torch.special.erfcx(x.abs())
        + torch.special.entr(x.abs())
        + torch.polygamma(1, x.abs() + 1)
    )
    some = some + torch.special.bessel_j0(x) + torch.special.gammainc(x.abs() + 1, x.abs()) + torch.special.i1(x)
    return some + torch.special.zeta(x.abs() + 2, 1 + x.abs()) + torch.ldexp(x, x) + torch.gcd(x.long(), (2 * x).long())


def standardised(x: torch.Tensor) -> torch.Tensor:
    """A norm by hand, with a weight per column."""
    return (
        torch.arange(1, C + K + 1, dtype=x.dtype) * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        + 0.5
    )


def whitened(x: torch.Tensor, unbiased: bool = False) -> torch.Tensor:
    """A norm by hand, with no weight."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=unbiased, keepdim=True) + 1e-6).sqrt()


EQUAL: dict[str, Equal] = {
    "relu_of_cat": (lambda c, k: torch.relu(interleaved(c, k)) * 2 + 1, ROWS, {}),
    "arithmetic": (lambda c, k: (c[:, :4] - k) / (c[:, :4].exp() + 2) + k * c[:, 1:5] - (3 - k) * 0.5, ROWS, {}),
    "affine_chain": (
        lambda c, k, w: F.linear(F.linear(both(c, k), w) * c[:, :5] + 1, w[:, :5]) + c[:, :5],
        ROWS,
        dict(w=W),
    ),
    "cross": (lambda c, k, w: both(c, k) * (both(c, k) @ w + 1) + both(c, k), ROWS, dict(w=randn(C + K, C + K))),
    "cross_twice": (
        lambda c, k, w: (lambda x: (lambda y: x * (y @ w) + y)(x * (x @ w) + x))(interleaved(c, k)).sum(1),
        ROWS,
        dict(w=randn(C + K, C + K)),
    ),
    "gate_by_context": (lambda c, k, w: torch.sigmoid(c @ w[:4, :C].t()) * k @ w[:4, :2], ROWS, dict(w=W)),
    "gate_by_candidate": (lambda c, k, w: torch.sigmoid(k[:, :1]) * c @ w[:2, :C].t(), ROWS, dict(w=W)),
    "divided_by_the_candidate": (
        lambda c, k, w: F.linear(F.normalize(both(c, k)) + standardised(interleaved(c, k)), w),
        ROWS,
        dict(w=W),
    ),
    "less_its_mean_by_a_number": (
        lambda c, k, w: F.linear(whitened(both(c, k)) + whitened(interleaved(c, k), True) * k.tanh()[:, :1], w),
        ROWS,
        dict(w=W),
    ),
    "one_over_the_candidate": (lambda c, k: 1 / k + c[:, :4] / k + (both(c, k) / k[:, :1])[:, 2:6], ROWS, {}),
    "comparisons": (lambda c, k: torch.where(c[:, :4] > k, c[:, :4], k).clamp(-0.5, 0.5), ROWS, {}),
    "masked_fill": (lambda c, k: k.masked_fill(c[:, :4] > 0, -1.0).maximum(c[:, 1:5]), ROWS, {}),
    "numbers_of_fewer_digits": (
        lambda c, k: sum(
            torch.where(torch.arange(C + K) < C, number, both(c, k)).to(dtype).double() * 3
            for number in (0.1, 2.7, -1.0)
            for dtype in (torch.float32, torch.int64, torch.bool)
        ),
        ROWS,
        {},
    ),
    "dtype_round_trip": (lambda c, k: (both(c, k) * 10).long().to(torch.float64) + (both(c, k) > 0), ROWS, {}),
    "scaled_sum_with_what_is_new": (
        lambda c, k, w: torch.add(k, (k @ w).relu(), alpha=0.5) + c[:, :4],
        ROWS,
        dict(w=randn(4, 4)),
    ),
    "complex_numbers": (
        lambda c, k: (lambda z: torch.view_as_real(z * z))(torch.view_as_complex(torch.stack([c[:, :4] * k, k], -1))),
        ROWS,
        {},
    ),
    "complex_parts": (
        lambda c, k, w: torch.view_as_real(turned(c[:, :4], w) * turned(k, w).conj() + turned(both(c, k)[:, 2:6], w)),
        ROWS,
        dict(w=randn(2)),
    ),
    "polar_and_back": (
        lambda c, k: (lambda z: z.angle() + z.abs() + z.real)(
            torch.polar(both(c, k)[:, 2:8].abs(), both(c, k)[:, 4:]) + torch.complex(c, c.sin())
        ),
        ROWS,
        {},
    ),
    "special_functions": (lambda c, k: special(both(c, k)) + special(c[:, :1]) * k[:, :1], ROWS, {}),
    "bits": (lambda c, k: (torch.stack([c[:, :4] * k, k], -1).long().int().view(torch.int64)).sum(1), ROWS, {}),
    "prelu": (lambda c, k, w: F.prelu(interleaved(c, k), w), ROWS, dict(w=randn(C + K))),
    "constants": (
        lambda c, k: torch.cat([torch.zeros(k.shape[0], 2, dtype=k.dtype), k, torch.ones_like(c)], 1) + 1,
        ROWS,
        {},
    ),
    "hash_buckets": (lambda c, k, t: F.embedding((c * 31 + k[:, :1] * 17) % 9, t).sum(1), IDS, dict(t=randn(9, 3))),
    "candidate_only": (lambda c, k: k.sin().sum(1), ROWS, {}),
    "context_only": (lambda c, k: (c.sin().sum(1), k[:, 0]), ROWS, {}),
    "weights_only": (lambda c, k, w: (w.sum(0)[:4] * k, w.norm()), ROWS, dict(w=W)),
    "atom_inside_and_outside_a_sum": (
        lambda c, k, b, w: F.linear(c[:, :4] * k + c[:, 2:] * F.linear(k, b), w),
        ROWS,
        dict(b=randn(1, 4), w=randn(1, 4)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "every_row_with_every_row": (
        lambda c, k: (c[:, :1] - c[:, 0]).abs() @ k,
        "sub",
        "every row meets every other row: [rows, 1], [rows]",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_complex_numbers_of_a_request_are_computed_once():
    def call(c: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        z = turned(c[:, :4], w)
        z = (z * z.conj() + torch.complex(c[:, :2], c[:, 2:4])) * torch.polar(c[:, :2].abs(), c[:, 4:])
        return torch.view_as_real(z).flatten(1) * z.angle().sum(1, keepdim=True) * k

    full = check_model(Function(call, w=randn(2)).eval(), *ROWS)["full"]
    assert rates_of(full, "mul") == {Rate.REQUEST, Rate.PAIR}, "the last product alone is a pair's"
    for operator in ("view_as_complex", "view_as_real", "_conj", "complex", "angle", "polar"):
        assert rates_of(full, operator) <= {Rate.REQUEST, Rate.WEIGHT}, operator


@pytest.mark.parametrize(
    ("call", "left"),
    [
        (lambda x, k, w: F.linear(x / (1 + k[:, :1].abs()), w), 5 * K),
        (lambda x, k, w: F.linear(standardised(x), w), 5 * K),
        (lambda x, k, w: F.linear(whitened(x), w), 5 * K),
        (lambda x, k, w: F.linear(whitened(x).mul(k[:, :1]) + 2, w), 5 * K),
        (lambda x, k, w: F.linear((x - x.amax(1, keepdim=True)) * (1 + k[:, :1]), w), 5 * K),
        (lambda x, k, w: F.linear(x / (1 + wide(k).abs()), w), 5 * (C + K)),  # no number per row
        (lambda x, k, w: F.linear((x - x.mean(-1, keepdim=True)) * wide(k), w), 5 * (C + K)),
    ],
)
def test_a_layer_of_what_a_number_of_the_candidate_multiplies(call: Call, left: int):
    rows = ROWS[0][torch.arange(4) % 3], ROWS[1][:4]
    program = capture(Function(lambda c, k, w: call(both(c, k), k, w), w=W).eval(), rows, ["context"], all_rules())
    assert sum(n.work.multiply_adds for n in kept(program).plan.nodes if n.rate.per_candidate) == left


def test_a_sum_that_gains_an_axis_is_not_written_over_its_operand():
    check_model(Function(lambda c, k: (c * k + (2 * k)[None])[0]).eval(), *PAIR)
    check_model(Function(lambda c, k: (c * k + torch.zeros(1, 1, 1))[0]).eval(), *PAIR)
