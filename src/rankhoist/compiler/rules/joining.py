"""Operators that join tensors, or repeat one. Law: segments stand side by side; a block is constant along a repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from rankhoist.compiler.algebra import grid, joins, moves, stacked
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

Copies = Literal["reflect", "wrap", "edge"]
COPIES: dict[str, Copies] = {"reflect": "reflect", "circular": "wrap", "replicate": "edge"}  # as NumPy names them

# -- joining


def concatenate(call: Call) -> Form:
    """`cat`: the segments side by side; one alone is all there is."""
    given = call.forms("tensors")
    depth = max(len(f.layout) for f in given)  # `[0]` may stand for nothing of any depth
    forms = [call.cast(f, call.out.dtype) for f in given if len(f.layout) == depth or f.sizes != (0,)]
    if len(forms) == 1:
        return forms[0]
    axis = forms[0].place(call.value("dim"))
    if ROW in forms[0].layout[axis]:
        return stacked.under_each_other(call.builder, forms, axis)
    if any(f.varies(f.dim(axis)) for f in forms) and len({f.rate.per_candidate for f in forms}) == 1:
        raise Decline(f"joins {', '.join(f.axes for f in forms)}, of one rate, along an axis that varies")
    return joins.along_axis(call.builder, forms, axis)


def stack(call: Call) -> Form:
    """A new axis, one position per operand."""
    axis = call.value("dim") % (len(call.forms("tensors")[0].layout) + 1)
    forms = [moves.with_axes(call.cast(f, call.out.dtype), [axis]) for f in call.forms("tensors")]
    return joins.along_axis(call.builder, forms, axis)


def pad(call: Call) -> Form:
    """A constant block on either side, or copies of positions that are there."""
    value, mode = call.form(), call.value("mode")
    if mode not in ("constant", None):
        return _padded_by_copies(call, value, COPIES[mode])
    number = call.value("value") if call.value("value") is not None else 0.0
    amounts = call.number("pad")
    for k in range(0, len(amounts), 2):
        axis = len(value.layout) - 1 - k // 2
        dim = value.dim(axis)
        if value.varies(dim) and not value.mixed:
            raise Decline(f"pads axis {axis} of {value.axes}, which varies")
        low, high = amounts[k : k + 2]
        if low < 0 or high < 0:
            end = value.sizes[dim] + min(high, 0)
            value = moves.take_dim(call.builder, value, dim, np.arange(-min(low, 0), end))
        value = joins.padded(call.builder, value, axis, low, high, number)
    return value


def _padded_by_copies(call: Call, value: Form, mode: Copies) -> Form:
    """`x[..., p]`, p being the places of an axis, padded in the same way."""
    amounts = call.number("pad")
    for k in range(0, len(amounts), 2):
        axis = len(value.layout) - 1 - k // 2
        dim = value.dim(axis)
        if value.varies(dim) or min(amounts[k : k + 2]) < 0:
            raise Decline(f"pads axis {axis} of {value.axes} by copies, which varies or is cut")
        places = np.pad(np.arange(value.sizes[dim]), amounts[k : k + 2], mode=mode)
        value = moves.take_dim(call.builder, value, dim, places)
    return value


# -- broadcasting


def expand(call: Call) -> Form:
    """Axes of size 1 become longer: the block is constant along them, nothing is copied."""
    return grid.stretched(call.builder, call.form(), call.out.extents)


def repeat(call: Call) -> Form:
    """`repeat`, `tile`: whole axes again and again; a constant as often as there are rows is folded with these."""
    value, shape = call.form(), call.out.extents
    lead = len(shape) - len(value.layout)
    goal = []
    for axis, (number, rows) in enumerate(shape):
        own, own_rows = value.extents[axis - lead] if axis >= lead else (1, False)
        if (own, own_rows) == (1, False):
            goal.append((number, rows))
            continue
        if own_rows:
            if (own, True) != (number, rows):
                value = stacked.under_each_other(call.builder, [value] * (number // own), axis - lead)
        else:
            if number != own:
                dim = value.dim(axis - lead)
                value = moves.take_dim(call.builder, value, dim, np.tile(np.arange(own), number // own))
            if rows and not value.has_rows:  # all of it for every row
                entry = (ROW, *value.layout[axis - lead])
                value = replace(value, layout=moves.replaced(value.layout, axis - lead, entry))
        goal.append((number, rows))
    return grid.stretched(call.builder, value, goal)


def repeat_interleave(call: Call) -> Form:
    """Every position as often as a constant says; repeating rows folds a constant axis behind them."""
    value, times = call.form("self"), _times(call)
    if call.value("dim") is None:
        raise Decline(f"repeats {value.axes} flattened")
    axis = value.place(call.value("dim"))
    if ROW in value.layout[axis]:
        dim = len(value.dims)
        value = moves.insert_dim(value, dim, (*value.layout, (dim,)))
        value = moves.take_dim(call.builder, value, dim, np.zeros(times.item(), dtype=np.int64))
        layout = list(value.layout[:-1])
        layout[axis] = (*layout[axis], dim)
        return replace(value, layout=tuple(layout))
    dim = value.dim(axis)
    return moves.take_dim(call.builder, value, dim, np.repeat(np.arange(value.sizes[dim]), times))


def _times(call: Call) -> np.ndarray:
    """How often each position is repeated, or one number for all of them."""
    tensors = call.forms("repeats")
    known = call.constant(tensors[0]) if tensors else torch.tensor(call.number("repeats"))
    if known is None:
        raise Decline("repeats as often as a tensor says that depends on the inputs")
    return known.reshape(-1).numpy()


LAWS = [
    *law("positions move", Level.LOOKUP, {
        "cat concat concatenate": concatenate,
        "stack": stack,
        "constant_pad_nd pad": pad,
    }),
    *law("constants and broadcasts", Level.LOOKUP, {
        "expand broadcast_to": expand,
        "repeat tile": repeat,
        "repeat_interleave": repeat_interleave,
    }),
]  # fmt: skip
