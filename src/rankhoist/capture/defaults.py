"""Arguments that a graph leaves out because they have their default: they are put back, once, for all who read it.

So is a default that is no argument: what is computed of whole numbers has torch's default dtype where it runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


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
            _lift(graph, node)


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


def _lift(graph: fx.Graph, node: fx.Node) -> None:
    """`f(whole numbers) = f(the same as floats)`: an operator on elements casts them itself, to torch's default dtype.

    `arange(4) / 4`, `sigmoid(count)`, `age * 0.1`: here they are cast to that of the capture.
    """
    dtype, given = _floating(node), node.all_input_nodes
    if dtype is not None and node.target is aten.where.Scalar:  # of two numbers, by a condition that stays one
        with graph.inserting_before(node):
            device = node.meta["val"].device
            yes = graph.call_function(aten.full.default, ([], node.args[1]), {"dtype": dtype, "device": device})
        yes.meta = {**node.meta, "val": node.meta["val"].new_empty([])}
        node.target, node.args = aten.where.ScalarOther, (node.args[0], yes, node.args[2])
    if dtype is None or torch.Tag.pointwise not in node.target.tags or any(map(_floating, given)):  # type: ignore[union-attr]
        return
    for own in given:
        value = own.meta.get("val")
        if isinstance(value, torch.Tensor):
            with graph.inserting_before(node):
                cast = graph.call_function(aten._to_copy.default, (own,), {"dtype": dtype})
            cast.meta = {**node.meta, "val": value.to(dtype)}
            node.replace_input_with(own, cast)


def _floating(node: fx.Node) -> torch.dtype | None:
    """A tensor's dtype, if it is one of those that the default decides: complex numbers follow the floats."""
    made = node.meta.get("val")
    if isinstance(made, torch.Tensor) and (made.is_floating_point() or made.is_complex()):
        return made.dtype
    return None
