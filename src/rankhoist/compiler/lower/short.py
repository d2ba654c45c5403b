"""Axes of few elements: what runs along them in memory takes a pass for every row, and what runs across them does not.

    sum_e a_e b_e = a_1 b_1 + a_2 b_2 + ...      each product added to the sum where it lies

So experts that are weighed by a gate are never set side by side. A softmax over fewer elements than a vector register
holds is taken across the rows.
"""

from __future__ import annotations

import math

import numpy as np

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import varies
from rankhoist.compiler.graph.node import Node, aten, first_axis
from rankhoist.compiler.lower.rewriter import Rewriter

PRODUCTS = 8  # that are added up one by one at most: each is a call
WIDE = 32  # elements that each of them has in a row at least
REGISTER = 64  # bytes


def across(rewriter: Rewriter, node: Node) -> Node | None:
    """Across such an axis rather than along it; None where the node is along none."""
    return by_elements(rewriter, node) or across_rows(rewriter, node)


def by_elements(rewriter: Rewriter, node: Node) -> Node | None:
    """A candidate's sum of few products, product by product; None where the node is none."""
    if node.op is not aten.sum.dim_IntList or len(node.args) != 2 or not node.rate.per_candidate:
        return None
    whole, axes = node.args
    if whole.op is not aten.mul.Tensor or not rewriter.once(whole) or not whole.rows_first or len(axes) != 1:
        return None
    factors, axis = whole.args, axes[0] - first_axis(whole)
    plain = all(isinstance(x, Node) and x.dtype == node.dtype for x in factors)
    if not plain or axis < 0 or varies(whole.shape) or not node.dtype.is_floating_point:
        return None
    if not 1 < whole.shape[axis] <= PRODUCTS or math.prod(whole.shape[axis + 1 :]) < WIDE:
        return None
    builder, operands = rewriter.builder, [rewriter.value(x) for x in factors]
    total = None
    for i in range(whole.shape[axis]):
        parts = [_element(builder, x, axis, i) for x in operands]
        made = builder.pointwise(aten.mul.Tensor, parts, node.dtype)
        total = made if total is None else builder.pointwise(aten.add.Tensor, (total, made), node.dtype)
    return total


def across_rows(rewriter: Rewriter, node: Node) -> Node | None:
    """A candidate's softmax over few elements; None where the node is none."""
    if node.op is not aten.softmax.int or node.kwargs or not node.rate.per_candidate or not node.rows_first:
        return None
    x, axis = node.args[:2]
    last = len(x.shape) - 1 + first_axis(x)
    if axis not in (-1, last) or x.dtype != node.dtype or not x.shape or varies(x.shape[-1:]):
        return None
    if x.shape[-1] * x.dtype.itemsize >= REGISTER:
        return None
    return rewriter.builder.call(kernels.softmax_of_few, (rewriter.value(x),), node.rate, node.shape, node.dtype)


def _element(builder: Builder, x: Node, axis: int, i: int) -> Node:
    """Position i of an axis, which is gone; out of a concatenation it is taken from its part."""
    while x.shape[axis] > 1 and x.op is aten.cat.default and x.args[1] == axis + first_axis(x):
        for part in x.args[0]:
            if i < part.shape[axis]:
                break
            i -= part.shape[axis]
        x = part
    i = min(i, x.shape[axis] - 1)  # broadcast
    return builder.reshape(builder.take(x, axis, np.array([i])), [*x.shape[:axis], *x.shape[axis + 1 :]])
