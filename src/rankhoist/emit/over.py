"""Write results over operands that nobody reads again: fewer allocations, and memory that is in the cache already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from rankhoist.algebra import kernels
from rankhoist.algebra.ir import Node, Rate, aten

OVER: dict[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.exp.default: aten.exp_.default,
    aten.addcmul.default: aten.addcmul_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
    kernels.linear_onto: kernels.linear_onto_,
    kernels.request_linear_onto: kernels.request_linear_onto_,
}
FRESH = {  # a new contiguous tensor with all rows, of which no gradient formula and no view remembers anything
    aten.linear.default, aten.addcmul.default, kernels.linear_from, kernels.linear_onto, kernels.request_linear,
    kernels.request_linear_from, kernels.request_linear_onto,
}  # fmt: skip
COMMUTES = {aten.add.Tensor, aten.mul.Tensor}


def write_over(graph: fx.Graph, values: Mapping[int, fx.Node], nodes: Sequence[Node]) -> None:
    """Replace `f(x, ...)` by `f_(x, ...)` where x is fresh, of the shape and dtype of the result, and read here alone.

    Readers are those of the emitted graph, its output included.
    """
    made = {values[n.index]: n for n in nodes if not isinstance(n.op, str)}
    for fx_node, node in made.items():
        over = OVER.get(node.op)
        if over is None or node.rate is Rate.WEIGHT:
            continue
        arguments = list(fx_node.args)
        if node.op in COMMUTES and len(arguments) == 2 and not _free(fx_node, node, arguments[0], made):
            arguments.reverse()
        if _free(fx_node, node, arguments[0], made):
            fx_node.target, fx_node.args = over, tuple(arguments)


def _free(reader: fx.Node, node: Node, target: object, made: Mapping[fx.Node, Node]) -> bool:
    """Whether `target` is fresh, whole, and read by `reader` alone, once."""
    if not isinstance(target, fx.Node) or reader.args.count(target) != 1:
        return False
    source, through = target, reader
    while source in made and made[source].op is aten.reshape.default and list(source.users) == [through]:
        source, through = source.args[0], source  # type: ignore[assignment]
    own = made.get(source)
    if own is None or own.op not in FRESH or list(source.users) != [through]:
        return False
    same = own.rate.per_candidate == node.rate.per_candidate and own.dtype == node.dtype
    shown = made[target]
    return same and shown.shape == node.shape and math.prod(own.shape) == math.prod(node.shape)
