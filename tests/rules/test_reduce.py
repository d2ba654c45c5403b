"""Sums over blocks, and what runs along an axis that is no row."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from helpers import Function, hoisted_at
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules
from rules.cases import FIELDS, HISTORY, ROWS, Equal, NearMiss, both, declines, equal_at_every_level, fields, numbers

randn = numbers(12)

EQUAL: dict[str, Equal] = {
    "fm_sum_square": (
        lambda c, k: (c[:, :4] + k).pow(2).sum(1) - (c[:, :4] ** 2 + k**2).sum(1, keepdim=True)[:, 0],
        ROWS,
        {},
    ),
    "fm_fields": (lambda c, k: (fields(c, k).sum(1) ** 2 - (fields(c, k) ** 2).sum(1)).sum(1) * 0.5, FIELDS, {}),
    "mean_max_std": (
        lambda c, k: torch.stack([both(c, k).mean(1), both(c, k).amax(1), both(c, k).std(1)], 1),
        ROWS,
        {},
    ),
    "norm": (lambda c, k: F.normalize(both(c, k)) + both(c, k).norm(dim=1, keepdim=True), ROWS, {}),
    "norms": (
        lambda c, k: sum(torch.linalg.vector_norm(both(c, k), p, 1) for p in (0, 0.5, 1, 2, 3, -1, torch.inf)),
        ROWS,
        {},
    ),
    "norms_of_fields": (
        lambda c, k: (
            torch.linalg.vector_norm(fields(c, k), 3, (1, 2), keepdim=True)[:, 0] * fields(c, k).norm(dim=1)
            + fields(c, k).norm(1, 1) / fields(c, k).norm(p="fro", dim=(1, 2))[:, None]
        ),
        FIELDS,
        {},
    ),
    "largest": (lambda c, k: fields(c, k).relu().amax(1) - fields(c, k).amin([1, 2], keepdim=True)[:, 0], FIELDS, {}),
    "any_all": (
        lambda c, k: (both(c, k) > 1).any(1) | (both(c, k) > -1).all(1, keepdim=True)[:, 0] | both(c, k).any(1),
        ROWS,
        {},
    ),
    "product": (lambda c, k: torch.stack([both(c, k).prod(1), both(c, k).logsumexp(1)], 1), ROWS, {}),
    "max_dim": (lambda c, k: both(c, k).max(1), ROWS, {}),
    "sort_topk": (lambda c, k: (torch.sort(c, 1).values, both(c, k).topk(3, dim=1).indices), ROWS, {}),
    "stable_sort": (lambda c, k: (c.sort(dim=1, stable=True)[0], both(c, k).argsort(dim=1, stable=True)), ROWS, {}),
    "squeeze_excite": (
        lambda c, k, w: fields(c, k) * torch.sigmoid(F.linear(fields(c, k).mean(2), w)).unsqueeze(2),
        FIELDS,
        dict(w=randn(7, 7)),
    ),
    "masked_mean": (
        lambda c, k: (c * (c[:, :, :1] > 0)).sum(1) / ((c[:, :, 0] > 0).sum(1, keepdim=True) + 1e-8) * k,
        HISTORY,
        {},
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "sum_over_rows": (lambda c, k: both(c, k) - both(c, k).sum(0), "sum", "over the rows: axis 0 of [rows, 10]", {}),
    "largest_over_rows": (
        lambda c, k: both(c, k) - both(c, k).amax(0),
        "amax",
        "over the rows: axis 0 of [rows, 10]",
        {},
    ),
    "fourier_over_rows": (
        lambda c, k: torch.ops.aten._fft_c2c(torch.complex(k, c[:, :4]), [0, 1], 0, True).abs(),
        "_fft_c2c",
        "over the rows: axis 0 of [rows, 4]",
        {},
    ),
    "fourier_along_all_axes": (lambda c, k: torch.fft.fftn(k + c[:, :4]).abs(), "fft_fftn", "transforms all axes", {}),
    "norm_of_rows": (
        lambda c, k: both(c, k) / both(c, k).norm(dim=0),
        "linalg_vector_norm",
        "over the rows: axis 0",
        {},
    ),
    "sort_rows": (lambda c, k: c.sort(0).values[:, :4] + k, "sort", "over the rows: axis 0", {}),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_the_largest_of_a_history_is_found_once():
    def call(c: Tensor, k: Tensor) -> Tensor:
        return torch.cat([c, k], 1).relu().amax(1)

    assert 20 * written(call, Level.LINEAR) < written(call, Level.REQUEST)


def test_the_length_of_a_history_is_found_once():
    def call(c: Tensor, k: Tensor) -> Tensor:
        return torch.cat([c, k], 1).norm(dim=1)

    assert 10 * written(call, Level.LINEAR) < written(call, Level.REQUEST)


def test_what_is_not_0_is_counted_as_one_tensor():
    """Counts of the parts would count as one each."""

    def call(c: Tensor, k: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.cat([c, k], 1), 0, 1)

    assert written(call, Level.LINEAR) == written(call, Level.REQUEST)


def written(call: Callable[[Tensor, Tensor], Tensor], level: Level) -> int:
    """Elements, of 60 columns of a context and one of a candidate."""
    program = capture(Function(call).eval(), (randn(4, 60), randn(4, 1)), ["context"], all_rules())
    return hoisted_at(program, level).plan.cost.elements
