"""A number of each row times a row of weights, or of the request, `[rows, ..., 1] * [n]`, as a product over one column.

So are its gradients then: they read all n columns of all rows and add up as they go, where those of an elementwise
operator are first written, each as large as the result.
"""

from __future__ import annotations

import math
from typing import Any

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import OFFSETS, Node, Rate, aten
from rankhoist.compiler.lower.rewriter import Rewriter


def outer_product(rewriter: Rewriter, node: Node) -> Node | None:
    """The product; None where the node is none, or has few columns."""
    builder, value = rewriter.builder, rewriter.value
    if node.shape[-1:] < (rewriter.limits.outer,):
        return None
    if node.op is not aten.mul.Tensor or node.rate is Rate.WEIGHT or node.kwargs:
        return None
    if not all(_is_factor(x, node) for x in node.args):
        return None
    n, madds = node.shape[-1], math.prod(node.sizes)
    for x, y in (node.args, node.args[::-1]):
        own = y.args[0] if y.op is kernels.spread else y
        rows = x.rate.stage == node.rate.stage and x.op is not kernels.spread
        if not rows or x.shape != (*node.shape[:-1], 1) or math.prod(own.shape) != n:
            continue
        if own.rate is Rate.WEIGHT:
            args = (value(x), builder.reshape(value(own), [n, 1]))
            return builder.call(aten.linear.default, args, node.rate, node.shape, node.dtype, multiply_adds=madds)
        if own is not y and own.rate is Rate.REQUEST:
            of_request = (value(x), builder.reshape(value(own), [1, n]), OFFSETS)
            return builder.call(
                kernels.request_linear, of_request, node.rate, node.shape, node.dtype, multiply_adds=madds
            )
    return None


def _is_factor(x: Any, node: Node) -> bool:
    return isinstance(x, Node) and x.rows_first and x.dtype == node.dtype
