"""Tensors that are made of lengths alone: places, masks and what is one number everywhere.

arange(T')[t] = t; of a triangle, what lies behind a query is one number
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of
from rankhoist.compiler.growing.known import Known, Pair, Says
from rankhoist.compiler.growing.law import Law, argument, operand
from rankhoist.compiler.growing.step import Step

EXACT = (torch.int64, torch.int32, torch.float64, torch.float32)  # of places up to 2 ** 24


def _ends(node: fx.Node) -> tuple[Any, Any, Any]:
    """Start, end and step of a range."""
    args = node.args
    return (0, args[0], 1) if len(args) == 1 else (args[0], args[1], args[2] if len(args) > 2 else 1)


def range_says(known: Known, node: fx.Node) -> Says:
    start, end, step = _ends(node)
    exact = known[node].at[0].dtype in EXACT
    if isinstance(start, fx.Node) or step != 1 or not isinstance(end, fx.Node) or not exact:
        return Says()
    return Says(True, ({0: 1}, start))


def range_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    if not step.known[node].stable:
        return None
    end, count = step.whole(_ends(node)[1]), step.fresh(step.known.grows(node)[axis])
    return step.placed_as(aten.arange.start, node, [step.call(operator.sub, end, count), end])


def full_says(known: Known, node: fx.Node) -> Says:
    name = name_of(node.target)
    value = {"zeros": 0, "ones": 1}.get(name.removesuffix("_like"), argument(node, 1, "fill_value"))
    if isinstance(value, fx.Node):
        return Says()
    return Says(True, uniform=torch.full((), value, dtype=known[node].at[0].dtype))


def full_part(step: Step, node: fx.Node, axis: int) -> fx.Node:
    count = step.fresh(step.known.grows(node)[axis])
    sizes = [count if i == axis else fx.map_arg(s, step.whole) for i, s in enumerate(node.args[0])]  # type: ignore
    return step.placed(node, [sizes, *node.args[1:]])


def like_part(step: Step, node: fx.Node, axis: int) -> fx.Node:
    x = operand(node)
    return step.placed(node, [step.part(x, axis), *node.args[1:]])


# -- triangles


def triangle_says(known: Known, node: fx.Node) -> Says:
    """Of rows q and columns k: `triu` is 0 below its diagonal, `tril` above it; the other side is as it was."""
    x, diagonal, dim = operand(node), argument(node, 1, "diagonal", 0), known.dim(node)
    if isinstance(diagonal, fx.Node) or not known[x].stable:
        return Says()
    rows, columns = dim - 2, dim - 1
    zero = torch.zeros((), dtype=known[node].at[0].dtype)
    upper = name_of(node.target) == "triu"
    later: dict[Pair, Tensor | None] = {}
    for pair in known.pairs(node):
        own = known.behind(x, pair)
        if pair == (rows, columns):  # column - row >= 1
            if (diagonal <= 1) if upper else (diagonal <= 0):
                later[pair] = own if upper else zero
        elif pair == (columns, rows) and ((diagonal >= 0) if upper else (diagonal >= -1)):  # column - row <= -1
            later[pair] = zero if upper else own
    return Says(True, later={pair: value for pair, value in later.items() if value is not None})


def triangle_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    """Rows or columns that lie further down or right: the diagonal moves."""
    x = operand(node)
    away = step.known.dim(node) - axis
    if away > 2:
        return step.placed(node, [step.part(x, axis), *node.args[1:]])
    before = step.length(x, axis, before=True)
    moved = step.call(operator.sub if away == 1 else operator.add, argument(node, 1, "diagonal", 0), before)
    return step.call(node.target, step.part(x, axis), moved)


LAWS = {
    "arange": Law(range_says, range_part),
    "full zeros ones": Law(full_says, full_part),
    "full_like zeros_like ones_like": Law(full_says, like_part),
    "triu tril": Law(triangle_says, triangle_part),
}
