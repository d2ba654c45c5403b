"""Slices, splits and turns: blocks of positions, and parts of rows under rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import Function, check_model, rates_of

from rankhoist.compiler.graph.node import Rate
from rules.cases import PAIR, ROWS, Equal, K, NearMiss, both, declines, equal_at_every_level, numbers

randn = numbers(3)

EQUAL: dict[str, Equal] = {
    "split_chunk_unbind": (
        lambda c, k: sum(both(c, k).split([3, 3, 3, 1], 1)[:3]) + both(c, k).chunk(5, 1)[4].unbind(1)[0][:, None],
        ROWS,
        {},
    ),
    "flip_roll_pad": (lambda c, k: F.pad(both(c, k).flip(1).roll(2, 1), (1, 2), value=0.5), ROWS, {}),
    "stacked_slices": (
        lambda c, k, w: (lambda y: y[: c.shape[0]] * y[c.shape[0] :])(F.linear(torch.cat([c, k]), w).relu()),
        PAIR,
        dict(w=randn(5, K)),
    ),
    "stacked_negative_slices": (
        lambda c, k, w: (lambda y: y[: -c.shape[0]] - y[-c.shape[0] :])(torch.cat([k, c]) @ w),
        PAIR,
        dict(w=randn(K, 5)),
    ),
    "stacked_chunk": (
        lambda c, k, w: torch.mul(*F.layer_norm(torch.cat([c, k]) @ w, [5]).chunk(2)),
        PAIR,
        dict(w=randn(K, 5)),
    ),
    "stacked_split": (
        lambda c, k, w: torch.mul(*(torch.cat([c, k]) @ w).split([c.shape[0], k.shape[0]])),
        PAIR,
        dict(w=randn(K, 5)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "rows_flipped": (lambda c, k: c.flip(0)[:, :4] + k, "flip", "row axis: axis 0 of [rows, 6]", {}),
    "rows_rolled": (lambda c, k: c.roll(1, 0)[:, :4] + k, "roll", "row axis: axis 0 of [rows, 6]", {}),
    "first_row": (lambda c, k: c[:1, :4] + k, "slice", "cuts the rows of [rows, 6] at 1", {}),
    "stacked_elsewhere": (
        lambda c, k: torch.cat([c[:, :4], k])[1 : k.shape[0] + 1] + k,
        "slice",
        "cuts the rows of [(2 rows), 4] at 1",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_the_request_half_of_stacked_rows_is_done_once():
    """A layer over `[x; y]`: K * 5 multiply-adds for the request, and for every candidate, instead of twice as many."""
    call, inputs, weights = EQUAL["stacked_slices"]
    models = check_model(Function(call, **weights).eval(), *inputs)
    assert models["expand"].plan.cost.multiply_adds == 2 * 1000 * K * 5
    for level in ("linear", "first", "full"):
        assert models[level].plan.cost.multiply_adds == (1 + 1000) * K * 5
        assert rates_of(models[level], "linear") == {Rate.REQUEST, Rate.ITEM}
