"""Arguments that a graph leaves out because they have their default: they are put back, once, for all who read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def fill(graph: fx.Graph) -> None:
    """Whatever an operator takes by position stands at its position, defaults too: `cat(xs)` becomes `cat(xs, 0)`.

    torch leaves out what stands at the end of a call and has its default. A default of None at the end stays left
    out, for there is nothing to read, and so does what an operator takes by name alone, but for a result's dtype.
    """
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            schema = [a for a in node.target._schema.arguments if not a.kwarg_only]
            node.args = _positional(schema, dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs)
            node.kwargs = {k: v for k, v in node.kwargs.items() if all(k != a.name for a in schema)} | _dtype(node)


def _positional(schema: list[Any], given: dict[str, Any]) -> tuple[Any, ...]:
    values = [given.get(a.name, a.default_value) for a in schema]
    while values and values[-1] is None and schema[len(values) - 1].has_default_value():
        values.pop()
    return tuple(values)


def _dtype(node: fx.Node) -> dict[str, torch.dtype]:
    """The floating dtype of what has no operand to take it from, by name: `eye(4)`, `full([4], 0.5)`.

    Left out, it is torch's default in whatever process runs the graph, not that of the capture.
    """
    takes = any(a.name == "dtype" and a.kwarg_only for a in node.target._schema.arguments)  # type: ignore[union-attr]
    if not takes or node.kwargs.get("dtype") is not None or any(map(_floating, node.all_input_nodes)):
        return {}
    own = _floating(node)
    return {"dtype": own} if own else {}


def _floating(node: fx.Node) -> torch.dtype | None:
    """A tensor's dtype, if it is one of those that the default decides: complex numbers follow the floats."""
    made = node.meta.get("val")
    if isinstance(made, torch.Tensor) and (made.is_floating_point() or made.is_complex()):
        return made.dtype
    return None
