"""Arguments that a graph leaves out because they have their default: they are put back, once, for all who read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def fill(graph: fx.Graph) -> None:
    """Whatever an operator takes by position stands at its position, defaults too: `cat(xs)` becomes `cat(xs, 0)`.

    torch leaves out what stands at the end of a call and has its default. A default of None at the end stays left
    out, for there is nothing to read, and so does what an operator takes by name alone.
    """
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            schema = [a for a in node.target._schema.arguments if not a.kwarg_only]
            node.args = _positional(schema, dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs)
            node.kwargs = {k: v for k, v in node.kwargs.items() if all(k != a.name for a in schema)}


def _positional(schema: list[Any], given: dict[str, Any]) -> tuple[Any, ...]:
    values = [given.get(a.name, a.default_value) for a in schema]
    while values and values[-1] is None and schema[len(values) - 1].has_default_value():
        values.pop()
    return tuple(values)
