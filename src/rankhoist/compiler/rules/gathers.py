"""`gather` along one axis. Law: every row, and every place of all other axes, reads for itself,

gather(x, n, i)[..., j, ...] = gather(x[..., j, ...], n, i[..., j, ...])    for places j of an axis that is not n
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from rankhoist.compiler.algebra import folds, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law


def constant_places(call: Call) -> Form:
    """`x.gather(axis, p)`, p constant: points of that axis and of those along which p changes."""
    value, index = call.forms("self", "index")
    axis = value.place(call.value("dim"))
    others = [a for a in range(len(value.layout)) if a != axis]
    same = tuple(tuple(d for d in e if d != ROW) for e in index.layout)  # for all rows
    places = call.constant(replace(index, layout=same))
    if places is None or not value.mixed:
        raise Elsewhere(f"{value.axes} is gathered by {index.axes}, and is whole or {index.axes} depends on the inputs")
    if any(value.extents[a] != index.extents[a] for a in others):
        raise Elsewhere(f"gathers from a part of {value.axes} by {index.axes}")
    places = places.reshape([math.prod(index.sizes[d] for d in e) for e in same])
    changing = [a for a in others if not torch.equal(places, places.narrow(a, 0, 1).expand_as(places))]
    rest = [a for a in others if a not in changing]
    order = [*rest, *changing, axis]
    points = places.permute(order)[(0,) * len(rest)]
    at = torch.meshgrid(*map(torch.arange, points.shape), indexing="ij")[:-1]
    together = moves.ordered(replace(value, layout=tuple(value.layout[a] for a in order)))
    taken = folds.take_points(call.builder, together, [*range(len(rest), len(order))], [*at, points])
    return replace(taken, layout=tuple(taken.layout[order.index(a)] for a in range(len(order))))


def by_blocks(call: Call) -> Value:
    """Block by block where both are cut alike; rows may be folded, with the same axes in both."""
    value, index = call.forms("self", "index")
    axis = value.place(call.value("dim"))
    if value.of_weights and not value.has_rows:
        raise Decline(f"gathers from {value.axes}, which is a weight")
    value, index = (moves.ordered(f) for f in folds.alike(call.builder, (value, index)))
    dim, _ = value.dim(axis), index.dim(axis)
    patterns = [[[d if d == ROW else f.sizes[d] for d in e] for e in f.layout] for f in (value, index)]
    others = [a for a, (x, i) in enumerate(zip(*patterns, strict=True)) if x != i and a != axis]
    differing = [f.layout[a] for a in others for f in (value, index)]
    if any(ROW in e for e in differing):
        raise Decline(f"gathers across rows: {value.axes} by {index.axes}")
    if any(len(e) != 1 for e in differing) or any(f.varies(f.dim(a)) for a in others for f in (value, index)):
        return call.rowwise(self=value, index=index)
    for a in others:
        value = moves.take_dim(call.builder, value, value.dim(a), np.arange(index.sizes[index.dim(a)]))
    return replace(call.read(value, index, dim), layout=value.layout)


LAWS = [
    *law("constant index", Level.REQUEST, {"gather": constant_places}, blocks=Level.LINEAR),
    *law("gathers of blocks", Level.REQUEST, {"gather": by_blocks}, blocks=Level.LINEAR),
]
