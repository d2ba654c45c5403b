"""Scans: sums, products, largest elements so far. Law: `scan([c; k]) = [scan c; last of scan c, joined with scan k]`.

The last result of a run of positions is all that later ones need of it. So a sum over a history is the request's, and a
candidate behind it adds itself.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from rankhoist.capture.program import operator_name, overload
from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.forms import Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Node, aten
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import form, named, tidy
from rankhoist.compiler.rules.joining import joined
from rankhoist.compiler.rules.pointwise import apply_op, to_dtype
from rankhoist.compiler.rules.reduce import along, by_blocks, dims_of
from rankhoist.compiler.rules.sequences import per_candidate, runs
from rankhoist.compiler.rules.table import table

JOINS = {
    "cumsum": aten.add.Tensor,
    "cumprod": aten.mul.Tensor,
    "logcumsumexp": aten.logaddexp.default,
    "cummax": aten.maximum.default,
    "cummin": aten.minimum.default,
}


def scan(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Run by run, each begins with what the runs before it came to."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    dims = dims_of(value, arguments["dim"])
    if len(dims) != 1:
        return along(interpreter, node, args, kwargs)
    fakes = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
    if len(fakes) == 1 and fakes[0].dtype != value.dtype:
        value = to_dtype(interpreter, value, fakes[0].dtype)
    value = tidy(interpreter, value)
    found = runs(interpreter, per_candidate(value, dims[0]))
    if found is None:
        return along(interpreter, node, args, kwargs)
    results: list[list[Form]] = []
    for start, end, _ in found:
        part = moves.take_dim(interpreter.b, value, dims[0], np.arange(start, end))
        own = _of_run(interpreter, node, part, dims[0], [f.dtype for f in fakes])
        results.append(own if not results else _continued(interpreter, node, results[-1], own, dims[0], start))
    axis = value.axis(dims[0])
    whole = [joined(interpreter, list(parts), axis) for parts in zip(*results, strict=True)]
    return whole[0] if len(whole) == 1 else whole


def _of_run(interpreter: Interpreter, node: fx.Node, part: Form, dim: int, dtypes: Sequence[torch.dtype]) -> list[Form]:
    """The scan of one run: values, and where they come from if that is asked for."""

    def call(x: Node, axes: list[int], shapes: Sequence[tuple[int, ...]]) -> list[Node]:
        made = interpreter.b.call(overload(node), (x, axes[0]), x.rate, shapes[0], dtypes[0])
        if len(dtypes) == 1:
            return [made]
        pair = zip(shapes, dtypes, strict=True)
        return [
            interpreter.b.call(operator.getitem, (made, i), x.rate, shape, dtype, free=True)
            for i, (shape, dtype) in enumerate(pair)
        ]

    return by_blocks(interpreter, part, [dim], [part.extents] * len(dtypes), dtypes, call)


def _continued(
    interpreter: Interpreter, node: fx.Node, before: Sequence[Form], own: Sequence[Form], dim: int, start: int
) -> list[Form]:
    """A run after another; of equal elements, the later one counts as the largest."""

    def ops(op: Any, *operands: Any, dtype: torch.dtype | None = None) -> Form:
        return apply_op(interpreter, op, list(operands), dtype)

    length = before[0].sizes[dim]
    last = [moves.take_dim(interpreter.b, f, dim, np.asarray([length - 1])) for f in before]
    values = ops(JOINS[operator_name(node)], own[0], last[0])
    if len(own) == 1:
        return [values]
    beats = aten.gt.Tensor if operator_name(node) == "cummax" else aten.lt.Tensor
    earlier = ops(beats, last[0], own[0], dtype=torch.bool)
    places = ops(aten.add.Scalar, own[1], start)
    return [values, ops(aten.where.self, earlier, last[1], places, dtype=own[1].dtype)]


RULES = table([
    ("cumsum cumprod logcumsumexp cummax cummin", scan),
])  # fmt: skip
