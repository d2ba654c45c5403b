"""Operators along an axis that holds no rows: sums, largest elements, order."""

from __future__ import annotations

import operator

from torch import fx

from random_models.draft import GAP, Draft, UnstableError, aten
from random_models.operands import floats, has_axes, several_wide
from random_models.steps.table import Made, Step

# (draft, x, axis from either end, whether it is kept)


def total(draft: Draft, x: fx.Node, axis: int, keep: bool) -> Made:
    return draft.call(aten.sum.dim_IntList, x, _with_others(draft, x, axis), keep)


def mean(draft: Draft, x: fx.Node, axis: int, keep: bool) -> Made:
    return draft.call(aten.mean.dim, x, _with_others(draft, x, axis), keep)


def _with_others(draft: Draft, x: fx.Node, axis: int) -> list[int]:
    """In some models, all axes without rows."""
    extent = draft.extent(x)
    others = [i for i, n in enumerate(extent) if n >= 0 and i != axis % len(extent)]
    return [axis, *(others if draft.number(0, 4) == 4 else [])]


def largest(draft: Draft, x: fx.Node, axis: int, keep: bool) -> Made:
    return draft.call(operator.getitem, draft.call(aten.max.dim, x, axis, keep), 0)


ALONG = [
    total,
    total,
    mean,
    mean,
    lambda draft, x, axis, keep: draft.call(aten.amax.default, x, [axis], keep),
    largest,
]


def reduction(draft: Draft, x: fx.Node) -> Made:
    axis, keep = draft.axis(x), draft.flag()
    axis -= len(draft.extent(x)) if draft.flag() else 0
    return draft.pick(ALONG)(draft, x, axis, keep)


def sum_square(draft: Draft, x: fx.Node) -> Made:
    """A factorisation machine's pairs, without the pairs."""
    square = draft.call(aten.pow.Tensor_Scalar, draft.call(aten.sum.dim_IntList, x, [1]), 2)
    squares = draft.call(aten.sum.dim_IntList, draft.call(aten.mul.Tensor, x, x), [1])
    return draft.call(aten.mul.Tensor, draft.call(aten.sub.Tensor, square, squares), 0.5)


def order(draft: Draft, x: fx.Node) -> Made:
    gaps = draft.sample[x].sort(-1).values.diff(dim=-1)
    if x in draft.mixed or float(gaps.amin()) < GAP:
        raise UnstableError
    if draft.flag():
        pair = draft.call(aten.sort.default, x, -1, draft.flag())
    else:
        pair = draft.call(aten.topk.default, x, draft.number(1, draft.extent(x)[-1]), -1)
    return draft.call(operator.getitem, pair, 0)


STEPS = [
    Step(3, reduction, floats(has_axes)),
    Step(1, sum_square, floats(lambda e: len(e) == 3 and e[0] == -1 and e[1] > 0)),
    Step(1, order, floats(several_wide)),
]
