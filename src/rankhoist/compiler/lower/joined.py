"""Several products as one: linear maps of the same tensor, cut apart by views; per request, maps by the same weight."""

from __future__ import annotations

import math
from typing import Any

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import OWNER, Node, Rate, aten, first_axis
from rankhoist.compiler.lower.rewriter import Rewriter
from rankhoist.compiler.lower.sums import plain_product

# -- products of the same tensor


def _groups(rewriter: Rewriter) -> dict[int, list[Node]]:
    """Linear maps of one tensor by weights, with the same kind of start: member -> all members."""
    found: dict[Any, list[Node]] = {}
    for n in rewriter.nodes:
        if plain_product(n) and n.op is not kernels.request_linear and n.shape[-1] < rewriter.limits.wide:
            weights = n.args[1:] if n.op is aten.linear.default else n.args[1:2]
            by_row = n.op is not kernels.linear_from or len(n.args[2].shape) == 1
            if by_row and all(w.rate is Rate.WEIGHT for w in weights):
                found.setdefault((n.args[0].index, n.op, len(n.args)), []).append(n)
    return {n.index: group for group in found.values() if len(group) > 1 for n in group}


def joined(rewriter: Rewriter, node: Node) -> Node | None:
    """One product for all linear maps of a tensor; each is a slice of it."""
    builder, value = rewriter.builder, rewriter.value
    group = rewriter.found(_groups).get(node.index)
    if group is None:
        return None
    x = value(node.args[0])
    parts = [[value(a) for a in n.args[1:] if isinstance(a, Node)] for n in group]
    rest = [OWNER] if node.op is kernels.linear_from else []
    args = [x, *(builder.cat(list(column), 0) for column in zip(*parts, strict=True)), *rest]
    shape = [*node.shape[:-1], sum(n.shape[-1] for n in group)]
    madds = sum(n.work.multiply_adds for n in group)
    made = builder.call(node.op, args, node.rate, shape, node.dtype, multiply_adds=madds)  # type: ignore[arg-type]
    start = sum(n.shape[-1] for n in group[: group.index(node)])
    at = len(shape) - 1 + first_axis(made)
    cut = (made, at, start, start + node.shape[-1], 1)
    return builder.call(aten.slice.Tensor, cut, made.rate, node.shape, node.dtype, free=True)


# -- products by the same weight


def _stacks(rewriter: Rewriter) -> dict[int, list[Node]]:
    """Maps of request tensors by one weight, as far from the end as each other: member -> all members.

    None of them reads another, and joining several such groups makes no cycle, for every path leads nearer to the end.
    """
    from_end: dict[int, int] = {}
    found: dict[Any, list[Node]] = {}
    for n in reversed(rewriter.nodes):
        own = n.op is aten.linear.default and n.rate is Rate.REQUEST and plain_product(n) and len(n.args) == 2
        step = from_end.get(n.index, 0)
        if own and len(n.shape) <= 2 and math.prod(n.shape[:-1]) * n.args[1].shape[1] <= rewriter.limits.small:
            found.setdefault((n.args[1].index, step), []).append(n)
            step += 1
        for x in n.inputs:
            from_end[x.index] = max(from_end.get(x.index, 0), step)
    return {n.index: group for group in found.values() if len(group) > 1 for n in group}


def stacked(rewriter: Rewriter, node: Node) -> Node | None:
    """One product for all maps by a weight: `[x_1; x_2] W`, cut apart by views."""
    builder, value = rewriter.builder, rewriter.value
    group = rewriter.found(_stacks).get(node.index)
    if group is None:
        return None
    width, inner = node.args[1].shape
    heights = [math.prod(n.shape[:-1]) for n in group]
    rows = builder.cat([builder.reshape(value(n.args[0]), [h, inner]) for n, h in zip(group, heights, strict=True)], 0)
    args, shape = (rows, value(node.args[1])), [sum(heights), width]
    madds = sum(n.work.multiply_adds for n in group)
    made = builder.call(aten.linear.default, args, node.rate, shape, node.dtype, multiply_adds=madds)
    at = group.index(node)
    start = sum(heights[:at])
    cut = (made, 1, start, start + heights[at], 1)
    part = builder.call(aten.slice.Tensor, cut, made.rate, [heights[at], width], node.dtype, free=True)
    return builder.reshape(part, node.shape)
