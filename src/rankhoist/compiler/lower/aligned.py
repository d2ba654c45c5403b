"""Weights padded with zeros, once: kernels for tensor cores load and store several numbers at once, from places that
are multiples of as many.

    x W^T  =  x [W; 0]^T without its last columns

and behind the columns of W there are others, in memory alone, so that each of its rows begins at such a place. Neither
the rows x nor what is read of the result are copied.
"""

from __future__ import annotations

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, aten, first_axis
from rankhoist.compiler.lower.rewriter import Rewriter

MOST = 1.1  # times as many rows or columns as there are: of a narrow weight, padding would be most of the work


def aligned_product(rewriter: Rewriter, node: Node) -> Node | None:
    """The same by a weight whose sizes are multiples of a number; None where they are, or it is no such product."""
    builder, value, to = rewriter.builder, rewriter.value, rewriter.limits.aligned
    if node.op not in (aten.linear.default, kernels.linear_from) or not node.rows_first or node.rate is Rate.WEIGHT:
        return None
    x, weight, *rest = node.args
    start = rest[0] if rest else None
    if weight.rate is not Rate.WEIGHT or len(weight.shape) != 2 or (start and not start.rows_first):
        return None
    (n, k), last = weight.shape, len(node.shape) - 1 + first_axis(node)
    more, behind = _missing(n, to), _missing(k, to)
    if not more and not behind:
        return None
    wide = _padded(builder, value(weight), [behind, more])
    own = builder.call(aten.slice.Tensor, (wide, 1, 0, k, 1), Rate.WEIGHT, [n + more, k], weight.dtype, free=True)
    starts = [_padded(builder, value(start), [more]), *rest[1:]] if start else []
    shape, madds = [*node.shape[:-1], n + more], node.work.multiply_adds // n * (n + more)
    args = (value(x), own if behind else wide, *starts)
    made = builder.call(node.op, args, node.rate, shape, node.dtype, kwargs=node.kwargs, multiply_adds=madds)
    if not more:
        return made
    return builder.call(aten.slice.Tensor, (made, last, 0, n, 1), node.rate, node.shape, node.dtype, free=True)


def _missing(size: int, to: int) -> int:
    more = -size % to
    return more if size + more <= MOST * size else 0


def _padded(builder: Builder, x: Node, behind: list[int]) -> Node:
    """So many zeros behind each axis, the last one first."""
    if not any(behind):
        return x
    sides = [side for more in behind for side in (0, more)]
    shape = [*x.shape[: -len(behind)], *(n + m for n, m in zip(x.shape[-len(behind) :], behind[::-1], strict=True))]
    return builder.call(aten.constant_pad_nd.default, (x, sides), x.rate, shape, x.dtype)
