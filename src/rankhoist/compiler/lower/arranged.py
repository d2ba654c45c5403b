"""Elements of small operands, arranged before they meet: `(a * b + c)` permuted is `a`, `b` and `c` permuted.

What a product reads next then lies in memory as it reads it; large results are not copied into another order, and
neither are their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, aten, first_axis
from rankhoist.compiler.lower.rewriter import Rewriter

ELEMENTS = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor}
SMALLER = 2  # times: each operand, than the result


def arranged_before(rewriter: Rewriter, node: Node) -> Node | None:
    """The same of arranged operands; None where one of them is as large as the result."""
    if node.op is not aten.permute.default or not node.rows_first or node.rate is Rate.WEIGHT:
        return None
    x, axes = node.args
    if x.op not in ELEMENTS or list(axes[:1]) != [0]:
        return None
    return _arranged(rewriter, x, [axis - first_axis(x) for axis in axes[1:]])


def _arranged(rewriter: Rewriter, x: Node, order: Sequence[int]) -> Node | None:
    if x.op not in ELEMENTS or x.kwargs or not rewriter.once(x) or not x.rows_first:
        return None
    operands = []
    for operand in x.args:
        if not isinstance(operand, Node):
            operands.append(operand)
            continue
        own = operand.args[0] if operand.op is kernels.spread else operand
        if not own.rows_first or len(own.shape) != len(x.shape):
            return None
        small = SMALLER * math.prod(own.sizes) <= math.prod(x.sizes)
        made = _copied(rewriter.builder, rewriter.value(own), order) if small else _arranged(rewriter, operand, order)
        if made is None:
            return None
        operands.append(made)
    return rewriter.builder.pointwise(x.op, operands, x.dtype)


def _copied(builder: Builder, x: Node, order: Sequence[int]) -> Node:
    """In memory, too: results lie as their operands do."""
    view, kwargs = builder.permute(x, order), {"memory_format": torch.contiguous_format}
    return view if view is x else builder.call(aten.clone.default, (view,), x.rate, view.shape, x.dtype, kwargs=kwargs)
