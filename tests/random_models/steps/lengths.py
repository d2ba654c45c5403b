"""Histories of any length: what reads them to their end, whatever it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats, like
from random_models.rows import LENGTHS, Extent, varies
from random_models.steps.table import Made, Step, one_of

PLACES = max(LENGTHS) + 20  # of a table, more than any history has
WHERE: dict[str, Any] = {"device": torch.device("cpu"), "pin_memory": False}


def of_any_length(extent: Extent) -> bool:
    """`[rows, length, width]`."""
    return len(extent) == 3 and extent[0] == -1 and varies(extent[1]) and 0 < extent[2] < 8


# -- (draft, x)


def mean(draft: Draft, x: fx.Node) -> Made:
    """A sum, divided by the length."""
    total = draft.call(aten.sum.dim_IntList, x, [1])
    return draft.call(aten.div.Tensor, total, draft.size(draft.extent(x)[1]))


def end(draft: Draft, x: fx.Node) -> Made:
    """The last position, or the first."""
    return draft.call(aten.select.int, x, 1, draft.pick([-1, 0]))


def placed(draft: Draft, x: fx.Node) -> Made:
    """A row of a table for every position."""
    _, length, width = draft.extent(x)
    table = draft.random(PLACES, width)
    if draft.flag():
        return draft.call(aten.add.Tensor, x, draft.call(aten.slice.Tensor, table, 0, 0, draft.size(length)))
    return draft.call(aten.add.Tensor, x, draft.call(aten.embedding.default, table, _positions(draft, length)))


def _positions(draft: Draft, length: int) -> fx.Node:
    return draft.call(aten.arange.default, draft.size(length), **WHERE)


def causal(draft: Draft, x: fx.Node) -> Made:
    """Positions look at those before them."""
    if draft.flag():
        return draft.call(aten.scaled_dot_product_attention.default, x, x, x, None, 0.0, True)
    scores = draft.call(aten.matmul.default, x, draft.call(aten.transpose.int, x, 1, 2))
    hidden = _later(draft, draft.extent(x)[1])
    filled = draft.call(aten.masked_fill.Scalar, scores, hidden, draft.pick([float("-inf"), -1e9]))
    return draft.call(aten.matmul.default, draft.call(aten.softmax.int, filled, -1), x)


def _later(draft: Draft, length: int) -> fx.Node:
    """Which position is behind which, by comparing them, or as a triangle."""
    if draft.flag():
        places = _positions(draft, length)
        own, other = (draft.call(aten.unsqueeze.default, places, axis) for axis in (1, 0))
        return draft.call(aten.gt.Tensor, other, own)
    sizes = [draft.size(length)] * 2
    ones = draft.call(aten.ones.default, sizes, dtype=torch.bool, **WHERE)
    return draft.call(aten.triu.default, ones, 1)


def attended(draft: Draft, x: fx.Node) -> Made:
    """One query looks at all positions."""
    query = draft.call(aten.unsqueeze.default, like(draft, (-1, draft.extent(x)[2])), 1)
    if draft.flag():
        return draft.call(aten.scaled_dot_product_attention.default, query, x, x)
    scores = draft.call(aten.sum.dim_IntList, draft.call(aten.mul.Tensor, query, x), [2])
    shares = draft.call(aten.unsqueeze.default, draft.call(aten.softmax.int, scores, 1), 1)
    return draft.call(aten.bmm.default, shares, x)


def behind(draft: Draft, x: fx.Node) -> Made:
    """The history, then one more position."""
    last = draft.call(aten.unsqueeze.default, like(draft, (-1, draft.extent(x)[2])), 1)
    return draft.call(aten.cat.default, draft.shuffled([x, last]), 1)


def beside(draft: Draft, x: fx.Node) -> Made:
    """One value at every position."""
    _, length, width = draft.extent(x)
    one = draft.call(aten.unsqueeze.default, like(draft, (-1, width)), 1)
    repeated = draft.call(aten.expand.default, one, [-1, draft.size(length), -1])
    return draft.call(aten.cat.default, draft.shuffled([x, repeated]), 2)


READ = [mean, end, placed, causal, attended, attended, behind, beside]


def behind_and_read(draft: Draft, x: fx.Node) -> Made:
    """A history and one more position read together, in some models after a layer."""
    joined = behind(draft, x)
    if draft.flag():
        joined = causal(draft, draft.call(aten.linear.default, joined, draft.random(3, draft.extent(x)[2], scale=0.6)))
    return draft.pick([mean, end, end, placed, causal, attended])(draft, joined)


STEPS = [
    Step(6, one_of(READ), floats(of_any_length)),
    Step(4, behind_and_read, floats(of_any_length)),
]
