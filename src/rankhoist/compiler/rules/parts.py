"""Operators that take elements along an axis. Law: positions move, blocks stay."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from rankhoist.compiler.algebra import moves, stacked
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law


def select(call: Call) -> Form:
    """One position of an axis."""
    value = call.form()
    dim = value.dim(call.number("dim"))
    if len(value.dims[dim]) > 1 and value.varies(dim):
        place = call.number("index")
        return moves.drop_dim(call.builder, moves.sliced(call.builder, value, dim, place, place + 1 or None), dim)
    index = call.number("index") % value.sizes[dim]
    return moves.drop_dim(call.builder, moves.take_dim(call.builder, value, dim, np.asarray([index])), dim)


def slice_axis(call: Call) -> Form:
    """`x[:, start:end:step]`; of rows, all of them or some of the parts that stand under each other."""
    value = call.form()
    axis = value.place(call.value("dim"))
    if ROW in value.layout[axis]:
        return _slice_rows(call, value, axis)
    dim = value.dim(axis)
    if _all_of(value.sizes[dim], *(call.value(k) for k in ("start", "end", "step"))):
        return value
    if len(value.dims[dim]) > 1 and value.varies(dim) and call.value("step") in (None, 1):
        start, end = (call.value(k) for k in ("start", "end"))
        to_end = isinstance(end, int) and end >= stacked.END
        return moves.sliced(call.builder, value, dim, start or 0, None if to_end else end)
    bounds = [None if call.value(k) is None else call.number(k) for k in ("start", "end", "step")]
    return moves.take_dim(call.builder, value, dim, np.arange(value.sizes[dim])[slice(*bounds)])


def _all_of(size: Any, start: Any, end: Any, step: Any) -> bool:
    """Whether a slice is a whole axis, whose length may vary."""
    to_end = end in (None, size) or (isinstance(end, int) and end >= stacked.END)
    return start in (None, 0) and step in (None, 1) and to_end


def _slice_rows(call: Call, value: Form, axis: int) -> Form:
    if call.value("step") != 1:
        raise Decline(f"takes every so many rows of {value.axes}")
    given = [default if call.value(k) is None else call.value(k) for k, default in (("start", 0), ("end", stacked.END))]
    return stacked.parts(call.builder, value, axis, *(stacked.part_number(call.rows, value, axis, x) for x in given))


def narrow(call: Call) -> Form:
    """`length` positions of an axis from `start` on."""
    value = call.form()
    axis = value.place(call.number("dim"))
    if ROW in value.layout[axis]:
        given = call.value("start"), call.value("length")
        first, count = (stacked.part_number(call.rows, value, axis, x) for x in given)
        return stacked.parts(call.builder, value, axis, first, first + count)
    dim = value.dim(axis)
    start = call.number("start") % value.sizes[dim]
    return moves.take_dim(call.builder, value, dim, np.arange(start, start + call.number("length")))


def split(call: Call) -> list[Form]:
    """`split`, `chunk`, `tensor_split`: consecutive parts, of the sizes that the exported graph shows."""
    value = call.form()
    axis = value.place(call.value("dim"))
    sizes = [promised.extents[axis][0] for promised in call.outs]
    if ROW in value.layout[axis]:
        return _split_rows(call, value, axis)
    dim = value.dim(axis)
    ends = np.cumsum(sizes)
    return [moves.take_dim(call.builder, value, dim, np.arange(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def _split_rows(call: Call, value: Form, axis: int) -> list[Form]:
    extents = (promised.extents[axis] for promised in call.outs)
    sizes = (call.rows * size if rows else size for size, rows in extents)
    bounds = [stacked.part_number(call.rows, value, axis, x) for x in itertools.accumulate(sizes, initial=0)]
    return [stacked.parts(call.builder, value, axis, first, last) for first, last in itertools.pairwise(bounds)]


def unbind(call: Call) -> list[Form]:
    """Every position of an axis by itself."""
    value = call.form()
    dim = value.dim(call.value("dim"))
    return [
        moves.drop_dim(call.builder, moves.take_dim(call.builder, value, dim, np.asarray([i])), dim)
        for i in range(value.sizes[dim])
    ]


def flip(call: Call) -> Form:
    """Axes back to front."""
    value = call.form()
    for axis in call.value("dims"):
        dim = value.dim(axis)
        value = moves.take_dim(call.builder, value, dim, np.arange(value.sizes[dim])[::-1])
    return value


def roll(call: Call) -> Form:
    """Positions shifted around."""
    value, axes = call.form(), call.value("dims")
    if not axes:
        raise Decline(f"rolls over all axes of {value.axes} at once")
    for axis, shift in zip(axes, call.number("shifts"), strict=True):
        dim = value.dim(axis)
        value = moves.take_dim(call.builder, value, dim, np.roll(np.arange(value.sizes[dim]), shift))
    return value


LAWS = law("positions move", Level.LOOKUP, {
    "select": select,
    "slice": slice_axis,
    "narrow": narrow,
    "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split": split,
    "unbind": unbind,
    "flip": flip,
    "roll": roll,
})  # fmt: skip
