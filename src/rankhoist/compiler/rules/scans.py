"""Scans: sums, products, largest elements so far. Law: `scan([c; k]) = [scan c; last of scan c, joined with scan k]`.

The last result of a run of positions is all that later ones need of it. So a sum over a history is the request's, and a
candidate behind it adds itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankhoist.compiler.algebra import joins, moves, sequences
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

JOINS = {
    "cumsum": aten.add.Tensor,
    "cumprod": aten.mul.Tensor,
    "logcumsumexp": aten.logaddexp.default,
    "cummax": aten.maximum.default,
    "cummin": aten.minimum.default,
}


def scan(call: Call) -> Value:
    """Run by run, each begins with what the runs before it came to."""
    value = call.form("self")
    dim, *others = value.dims_of(call.value("dim"))
    if others:
        raise Elsewhere(f"axis {call.value('dim')} of {value.axes} is folded")
    if len(call.outs) == 1:
        value = call.cast(value, call.out.dtype)
    value = call.tidy(value)
    results: list[list[Form]] = []
    for start, end, _ in sequences.runs(sequences.per_candidate(value, dim)):
        part = moves.take_dim(call.builder, value, dim, np.arange(start, end))
        own = _of_run(call, part, dim)
        results.append(_continued(call, results[-1], own, dim, start) if results else own)
    axis = value.axis(dim)
    whole = [joins.along_axis(call.builder, parts, axis) for parts in zip(*results, strict=True)]
    return whole[0] if len(whole) == 1 else whole


def _of_run(call: Call, part: Form, dim: int) -> list[Form]:
    """The scan of one run: values, and where they come from if that is asked for."""
    made = call.along(part, [dim], lambda x, axes: call.again(self=x, dim=axes[0], dtype=None))
    return made if isinstance(made, list) else [made]


def _continued(call: Call, before: Sequence[Form], own: Sequence[Form], dim: int, start: int) -> list[Form]:
    """A run after another; of equal elements, the later one counts as the largest."""
    length = before[0].sizes[dim]
    last = [moves.take_dim(call.builder, f, dim, np.asarray([length - 1])) for f in before]
    values = call.each(JOINS[call.name], own[0], last[0])
    if len(own) == 1:
        return [values]
    earlier = call.each(aten.gt.Tensor if call.name == "cummax" else aten.lt.Tensor, last[0], own[0])
    places = call.each(aten.add.Scalar, own[1], start)
    return [values, call.each(aten.where.self, earlier, last[1], places)]


LAWS = law("scans", Level.LINEAR, {"cumsum cumprod logcumsumexp cummax cummin": scan})
