"""Arithmetic on ids and masks: exact, with its own rules of promotion."""

from __future__ import annotations

import torch
from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import whole_broadcasting, whole_numbers
from random_models.steps.table import Made, Step

# (draft, x, another that broadcasts with it)


def logical(draft: Draft, x: fx.Node, y: fx.Node) -> Made:
    return draft.call(aten.logical_and.default, x, y) if draft.flag() else draft.call(aten.logical_not.default, x)


def count(draft: Draft, x: fx.Node, y: fx.Node) -> Made:
    if len(draft.extent(x)) < 2:
        return floored(draft, x, y)
    return draft.call(aten.sum.dim_IntList, x, [draft.axis(x)], draft.flag())


def halved(draft: Draft, x: fx.Node, y: fx.Node) -> Made:
    return draft.call(aten._to_copy.default, draft.call(aten.div.Tensor, x, 2), dtype=torch.float64)


def floored(draft: Draft, x: fx.Node, y: fx.Node) -> Made:
    if draft.dry[x].dtype != torch.int64:
        return None
    return draft.call(aten.div.Tensor_mode, x, draft.number(1, 3), rounding_mode="floor")


EXACT = [
    lambda draft, x, y: draft.call(draft.pick([aten.eq.Tensor, aten.ne.Tensor, aten.ge.Tensor]), x, y),
    lambda draft, x, y: draft.call(draft.pick([aten.add.Tensor, aten.mul.Tensor]), x, y),
    lambda draft, x, y: draft.call(aten.mul.Tensor, x, draft.number(-2, 3)),
    logical,
    count,
    halved,
    floored,
]


def integers(draft: Draft, x: fx.Node) -> Made:
    y = whole_broadcasting(draft, x)
    return draft.pick(EXACT)(draft, x, y)


STEPS = [
    Step(2, integers, whole_numbers()),
]
