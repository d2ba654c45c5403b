"""Write results over operands that nobody reads again: fewer allocations, and memory that is in the cache already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from rankhoist.algebra import kernels
from rankhoist.algebra.ir import Node, Rate, aten, inputs_of

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
CONTIGUOUS = {  # products give a new contiguous tensor
    aten.linear.default, kernels.linear_from, kernels.linear_onto, kernels.request_linear,
    kernels.request_linear_from, kernels.request_linear_onto,
}  # fmt: skip
NEW = CONTIGUOUS | {op for op in OVER if op not in (kernels.linear_onto, kernels.request_linear_onto)}
COMMUTES = {aten.add.Tensor, aten.mul.Tensor}


def write_over(graph: fx.Graph, values: Mapping[int, fx.Node], nodes: Sequence[Node]) -> None:
    """Replace `f(x, ...)` by `f_(x, ...)` where x is fresh, of the shape and dtype of the result, and read here alone.

    Readers are those of the emitted graph, its output included.
    """
    made = {values[n.index]: n for n in nodes if not isinstance(n.op, str)}
    whole = _with_rows(nodes)
    for fx_node, node in made.items():
        over = OVER.get(node.op)
        if over is None or node.rate is Rate.WEIGHT:
            continue
        fresh = CONTIGUOUS if node.op in (kernels.linear_onto, kernels.request_linear_onto) else NEW

        def free(target: object, reader: fx.Node = fx_node, n: Node = node, known: Any = fresh) -> bool:
            own = _source(reader, target, made)
            if own is None or own.op not in known or own.index not in whole or not isinstance(target, fx.Node):
                return False
            same = own.rate.per_candidate == n.rate.per_candidate and own.dtype == n.dtype
            return same and made[target].shape == n.shape and math.prod(own.shape) == math.prod(n.shape)

        arguments = list(fx_node.args)
        if node.op in COMMUTES and len(arguments) == 2 and not free(arguments[0]):
            arguments.reverse()
        if free(arguments[0]):
            fx_node.target, fx_node.args = over, tuple(arguments)


def _source(reader: fx.Node, target: object, made: Mapping[fx.Node, Node]) -> Node | None:
    """What made the memory of `target`, if `reader` alone reads it, once; views by reshape are looked through."""
    if not isinstance(target, fx.Node) or reader.args.count(target) != 1:
        return None
    source, through = target, reader
    while source in made and made[source].op is aten.reshape.default and list(source.users) == [through]:
        source, through = source.args[0], source  # type: ignore[assignment]
    return made.get(source) if list(source.users) == [through] else None


def _with_rows(nodes: Sequence[Node]) -> set[int]:
    """Nodes whose tensor has all rows of its stage: one request's row that is to broadcast has not."""
    found: set[int] = set()
    for n in nodes:
        if n.op == "input" or n.op is kernels.repeat_rows:
            found.add(n.index)
        elif n.op is not kernels.spread and not isinstance(n.op, str):
            read = [x for x in inputs_of(n) if x.rate is not Rate.WEIGHT]
            if any(x.index in found or (x.rate.stage != n.rate.stage and x.rate.per_candidate) for x in read):
                found.add(n.index)
    return found
