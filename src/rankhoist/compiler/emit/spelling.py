"""The same graph with less overhead per call: torch's own functions instead of ATen overloads.

An ATen overload called from Python costs two to three times as much as the function that reaches it through torch's
binding (3 to 8 microseconds, measured), which is most of the time when there are few candidates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import row


def spelled(module: fx.GraphModule) -> Callable[..., tuple[Any, ...]]:
    """A function that computes what `module` computes."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = made = graph.node_copy(node, lambda n: values[n])
        if node.op != "call_function":
            continue
        soonest = row(node.target).spelled
        if isinstance(soonest, str):
            if not made.kwargs:
                made.op, made.target = "call_method", soonest
        elif node.target is aten.slice.Tensor and _whole(node):
            x, axis, start, end = made.args[:4]
            made.target, made.args = torch.narrow, (x, axis, start, end - start)  # type: ignore[operator]
        elif node.target is aten.index.Tensor:
            x, places = made.args
            every = (slice(None) if p is None else p for p in places)  # type: ignore[union-attr]
            made.target, made.args = operator.getitem, (x, tuple(every))
        elif node.target is aten.embedding.default:
            made.target, made.args = F.embedding, _lookup(made.args)
        else:
            made.target = soonest or node.target
    run: Callable[..., tuple[Any, ...]] = fx.GraphModule(nn.Module(), graph).forward
    return run


def _lookup(args: Any) -> Any:
    """The arguments of torch's function; all but table and ids are about gradients."""
    table, ids, untrained, by_frequency, sparse = (*args, -1, False, False)[:5]
    if untrained < 0 and not sparse:
        return ids, table
    return ids, table, untrained if untrained >= 0 else None, None, 2.0, by_frequency, sparse


def _whole(node: fx.Node) -> bool:
    """Whether a slice has the length its bounds say, in steps of one: `narrow` does not clip."""
    axis, start, end, step = (*node.args[1:], 1)[:4] if len(node.args) >= 4 else (0, 0, 0, 0)
    shape = node.meta.get("shape", ())
    numbers = all(type(x) is int for x in (axis, start, end))
    return numbers and step == 1 and 0 < axis <= len(shape) and shape[axis - 1] == end - start  # type: ignore
