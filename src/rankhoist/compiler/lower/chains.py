"""Few columns of many rows that a chain of maps makes: the chain is taken from its short end.

    ((x W) * d + x) v = x (W (d * v) + v)      for the rows of x, weights W, a row d and a matrix v with few columns

On the left every row goes through the chain, on the right every column of v. Matrices of a request are such rows: what
a cross network's last layer multiplies by is made of one column, not of as many as a candidate has entries.
"""

from __future__ import annotations

from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.lower.rewriter import Rewriter

FEWER = 2  # times as many rows as columns, or more: else nothing is gained

Ends = dict[Node, Node]  # a tensor `[rows, a, k]` -> the columns that it is multiplied by, `[n, k]`


def from_the_end(rewriter: Rewriter, node: Node) -> Node | None:
    """The same by columns, or None where the node is no map of a request's rows, or no other map is before it."""
    if not _is_map(node) or FEWER * node.shape[1] > node.shape[0]:
        return None
    builder, value = rewriter.builder, rewriter.value
    ends: Ends = {}
    if not _pulled(rewriter, node.args[0], value(node.args[1]), ends):
        return None
    total = None
    for x, v in ends.items():
        part = _product(builder, node, value(x), v)
        total = part if total is None else builder.pointwise(aten.add.Tensor, (total, part), node.dtype)
    return total


def _is_map(node: Node) -> bool:
    """Rows `[a, k]` of a request by weights `[n, k]`, nothing added."""
    plain = node.op is aten.linear.default and len(node.args) == 2 and node.rate is Rate.REQUEST and node.rows_first
    return plain and len(node.shape) == 2 and node.args[0].rate is Rate.REQUEST and node.args[1].rate is Rate.WEIGHT


def _pulled(rewriter: Rewriter, x: Node, v: Node, ends: Ends) -> bool:
    """Take `v` through what makes `x`, as far as it is read here alone; whether it has passed a map."""
    builder, value = rewriter.builder, rewriter.value
    if rewriter.once(x) and x.rate is Rate.REQUEST and x.rows_first:
        if _is_map(x):
            weight = builder.permute(value(x.args[1]), [1, 0])
            shape, inner = (v.shape[0], weight.shape[0]), weight.shape[1]
            madds = shape[0] * shape[1] * inner
            made = builder.call(aten.linear.default, (v, weight), v.rate, shape, v.dtype, multiply_adds=madds)
            _pulled(rewriter, x.args[0], made, ends)
            return True
        if x.op is aten.add.Tensor and not x.kwargs and all(_whole(a, x) for a in x.args):
            return any([_pulled(rewriter, a, v, ends) for a in x.args])
        if x.op is aten.mul.Tensor:
            for own, other in (x.args, x.args[::-1]):
                if _whole(own, x) and isinstance(other, Node) and other.shape == (1, x.shape[1]):
                    made = builder.pointwise(aten.mul.Tensor, (v, value(other)), v.dtype)
                    return _pulled(rewriter, own, made, ends)
    ends[x] = v if x not in ends else builder.pointwise(aten.add.Tensor, (ends[x], v), v.dtype)
    return False


def _whole(x: object, node: Node) -> bool:
    """A request's tensor of the same rows and columns."""
    return isinstance(x, Node) and x.rate is Rate.REQUEST and x.shape == node.shape and x.dtype == node.dtype


def _product(builder: Builder, node: Node, x: Node, v: Node) -> Node:
    """`[rows, a, k] x [n, k] -> [rows, a, n]`."""
    (a, k), n = x.shape, v.shape[0]
    if v.rate is Rate.WEIGHT:
        return builder.call(aten.linear.default, (x, v), x.rate, (a, n), node.dtype, multiply_adds=a * k * n)
    args = (x, builder.permute(v, [1, 0]))
    return builder.call(aten.matmul.default, args, x.rate, (a, n), node.dtype, multiply_adds=a * k * n)
