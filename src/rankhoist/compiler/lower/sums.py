"""Sums as one operator.

* `x + z W` is a product that starts from x: a weight, a request's row, or another product, so that sums of products
  pile up in one tensor;
* `x + a * b` is one pass over memory; where some are broadcast, written over one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rankhoist.compiler.graph import activations, kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import OWNER, Node, Op, Rate, aten, join
from rankhoist.compiler.graph.operators import row
from rankhoist.compiler.lower.rewriter import Rewriter

PRODUCTS = {aten.linear.default, kernels.linear_from, kernels.request_linear}
FROM_A_ROW = {kernels.linear_from, kernels.request_linear_from}


def fused(rewriter: Rewriter, node: Node) -> Node | None:
    """A sum with a product as one operator."""
    if node.op is not aten.add.Tensor or node.kwargs or not all(isinstance(a, Node) for a in node.args):
        return None
    x, y = node.args
    if x is y:
        return None
    for total, part in ((x, y), (y, x)):
        made = _sum_with_product(rewriter, node, total, part)
        if made is not None:
            return made
    for total, part in ((x, y), (y, x)):
        if part.op is aten.mul.Tensor and rewriter.once(part) and not part.kwargs:
            made = _sum_with_factors(rewriter, node, total, part.args)
            if made is not None:
                return made
    return None


def _sum_with_factors(rewriter: Rewriter, node: Node, total: Node, factors: Sequence[Any]) -> Node | None:
    """`total + a * b` in one pass, written over one of them that is new and is not broadcast, if there is such."""
    operands: list[Any] = [total, *factors]
    if not node.dtype.is_floating_point or not all(isinstance(x, Node) and x.dtype == node.dtype for x in operands):
        return None
    if rewriter.limits.trained and not all(_whole(node, x) for x in operands):
        return None  # gradients of what broadcasts are those of the operators apart
    op: Op = aten.addcmul.default
    if not (_whole(node, total) and _over(total, rewriter)):
        for own, scale in (factors, factors[::-1]):
            if node.rate.per_candidate and _whole(node, own) and _over(own, rewriter):
                op, operands = kernels.scaled_from, [own, scale, total]
                break
    return rewriter.builder.call(op, [rewriter.value(x) for x in operands], node.rate, node.shape, node.dtype)


def _whole(node: Node, x: Node) -> bool:
    """A tensor of the result's shape and rows."""
    return x.shape == node.shape and _same_rows(x, node)


def _over(x: Node, rewriter: Rewriter) -> bool:
    """Whether the result may be written over it: it is new, and read here alone, also by no gradient."""
    return not rewriter.limits.trained and rewriter.once(x) and x.rows_first and row(x.op).new


def _sum_with_product(rewriter: Rewriter, node: Node, total: Node, part: Node) -> Node | None:
    """`total + z W`, where the product has the shape of the sum, and total that shape or one row's last axis."""
    builder, value = rewriter.builder, rewriter.value
    inner = part.args[0] if part.op is aten.reshape.default and rewriter.once(part) else part
    if not isinstance(inner, Node) or not plain_product(inner) or not rewriter.once(inner):
        return None
    biased = inner.op is kernels.linear_from or (inner.op is aten.linear.default and len(inner.args) != 2)
    if biased or math.prod(part.shape) != math.prod(node.shape) or not node.rows_first:
        return None
    product = value(inner)
    if product.op is not inner.op or total.dtype != inner.dtype or total.dtype != node.dtype:
        return None
    made: Node | None = None
    if total.shape == node.shape and _same_rows(total, product):
        made = _onto(builder, builder.reshape(value(total), inner.shape), product)
    elif math.prod(total.shape) == inner.shape[-1] and (total.shape[-1:] == inner.shape[-1:] or len(inner.shape) == 1):
        made = _from(builder, value(total), product, inner.shape[-1:])
    elif rewriter.limits.ends and total.op is kernels.spread and total.shape == node.shape:
        made = _from(builder, value(total), product, inner.shape)
    return None if made is None else builder.reshape(made, node.shape)


def plain_product(node: Node) -> bool:
    """Rows times a matrix; no original operator over tensors whose first axis is not the rows."""
    if node.op not in PRODUCTS or not node.rows_first or node.rate is Rate.WEIGHT:
        return False
    return bool(node.args[1].rate <= Rate.REQUEST)


def _same_rows(x: Node, y: Node) -> bool:
    """Both have the rows of the request stage, or both those of the candidate stage, none of them broadcast."""
    rows = x.rate is not Rate.WEIGHT and x.rate.per_candidate == y.rate.per_candidate
    return rows and x.op is not kernels.spread


def _onto(builder: Builder, total: Node, product: Node) -> Node:
    """Another per-candidate tensor plus a product."""
    op = kernels.linear_onto if product.op is aten.linear.default else kernels.request_linear_onto
    rate = join((total.rate, product.rate))
    madds = product.work.multiply_adds
    return builder.call(op, (total, *product.args), rate, product.shape, product.dtype, multiply_adds=madds)


def _from(builder: Builder, start: Node, product: Node, own: Sequence[int]) -> Node | None:
    """A row of the model or of the request plus a product; of the request, also a tensor as large as a row's."""
    madds, shape, dtype = product.work.multiply_adds, product.shape, product.dtype
    if start.op is kernels.spread:
        start = start.args[0]
    if start.rate.per_candidate:
        return None
    start = builder.reshape(start, own)
    linear = product.op is aten.linear.default
    if len(own) > 1 and not linear:
        return None
    if start.rate is Rate.WEIGHT:
        if not linear:
            return None
        args = (*product.args, start)
        return builder.call(aten.linear.default, args, product.rate, shape, dtype, multiply_adds=madds)
    if not product.rate.per_candidate:
        return None
    if linear:
        args = (*product.args, start, OWNER)
        return builder.call(kernels.linear_from, args, Rate.PAIR, shape, dtype, multiply_adds=madds)
    x, m, offsets = product.args
    args = (x, m, start, OWNER, offsets)
    return builder.call(kernels.request_linear_from, args, Rate.PAIR, shape, dtype, multiply_adds=madds)


# -- what a kernel ends with


def ended(rewriter: Rewriter, node: Node) -> Node | None:
    """A function of a product that starts from a request's row, by the kernel that makes it."""
    name = activations.NAMES.get(node.op)
    if name is None or len(node.args) > 1 or node.kwargs:
        return None
    inner = node.args[0]
    if inner.op not in FROM_A_ROW or inner.kwargs or inner.dtype != node.dtype or not rewriter.once(inner):
        return None
    args, madds, ends = rewriter.value(inner).args, inner.work.multiply_adds, {"activation": name}
    return rewriter.builder.call(inner.op, args, node.rate, node.shape, node.dtype, kwargs=ends, multiply_adds=madds)
