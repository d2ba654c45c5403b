"""Operators that join tensors, or repeat one. Law: segments stand side by side; a block is constant along a repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import fx

from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.cuts import refine
from rankhoist.compiler.algebra.forms import ROW, Block, Cell, Decline, Extent, Form, shape_text
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, integer, named
from rankhoist.compiler.rules.pointwise import to_dtype
from rankhoist.compiler.rules.stacked import in_parts
from rankhoist.compiler.rules.table import table

# -- joining


def concatenate(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`cat`: the segments side by side."""
    arguments = named(node, args, kwargs)
    fake = node.meta["val"]
    forms = [form(v) for v in arguments["tensors"]]
    forms = [f for f in forms if not (len(f.layout) == 1 and f.sizes == (0,) and fake.dim() != 1)]
    forms = [f if f.dtype == fake.dtype else to_dtype(interpreter, f, fake.dtype) for f in forms]
    axis = axis_of(forms[0], arguments["dim"])
    together = under_each_other if ROW in forms[0].layout[axis] else joined
    return together(interpreter, forms, axis)


def under_each_other(interpreter: Interpreter, forms: list[Form], axis: int) -> Form:
    """Rows under rows: an axis of as many parts as there are, folded with the rows and outside of them."""
    for f in forms:
        if f.layout[axis][-1:] != (ROW,):
            raise Decline(f"puts {f.axes} under rows: another axis is folded inside of its rows, or it has none")
    forms = [in_parts(interpreter, f, axis) for f in forms]
    return side_by_side(interpreter, forms, forms[0].layout[axis][0])


def stack(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A new axis, one position per operand."""
    arguments = named(node, args, kwargs)
    depth = node.meta["val"].dim()
    axis = arguments["dim"] % depth
    dtype = node.meta["val"].dtype
    forms = []
    for value in (form(v) for v in arguments["tensors"]):
        value = value if value.dtype == dtype else to_dtype(interpreter, value, dtype)
        forms.append(moves.with_axes(value, [axis]))
    return joined(interpreter, forms, axis)


def joined(interpreter: Interpreter, forms: list[Form], axis: int) -> Form:
    """Forms side by side along an axis that holds no rows; those without a position there are left out."""
    forms = [moves.ordered(f) for f in forms]
    dim = dim_of(forms[0], axis)
    return side_by_side(interpreter, [f for f in forms if f.extents[axis] != (0, False)] or forms[:1], dim)


def side_by_side(interpreter: Interpreter, forms: list[Form], dim: int) -> Form:
    """Ordered forms along one dim, all others alike."""
    shapes = [
        tuple(tuple(d if d == ROW else f.sizes[d] if d != dim else 0 for d in e) for e in f.layout) for f in forms
    ]
    for f, shape in zip(forms, shapes, strict=True):
        if shape != shapes[0]:
            raise Decline(f"joins tensors that fold rows differently: {forms[0].axes} and {f.axes}")
    for other in range(len(forms[0].dims)):
        if other != dim:
            forms = refine(interpreter.b, forms, [other] * len(forms))
    segments: list[np.ndarray] = []
    blocks: dict[Cell, Block] = {}
    offset = 0
    for f in forms:
        for cell, block in f.blocks.items():
            blocks[moves.replaced(cell, dim, cell[dim] + len(segments))] = block
        segments += [positions + offset for positions in f.dims[dim]]
        offset += f.sizes[dim]
    dims = (*forms[0].dims[:dim], tuple(segments), *forms[0].dims[dim + 1 :])
    return Form(dims, blocks, forms[0].layout, forms[0].dtype)


def pad(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Constant padding: a constant block on either side."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    if arguments.get("mode", "constant") != "constant":
        raise Decline(f"pads {value.axes} by {arguments['mode']}")
    number = arguments["value"] if arguments["value"] is not None else 0.0
    amounts = [integer(n) for n in arguments["pad"]]
    for k in range(0, len(amounts), 2):
        axis = len(value.layout) - 1 - k // 2
        dim = dim_of(value, axis)
        low, high = amounts[k : k + 2]
        if low < 0 or high < 0:
            end = value.sizes[dim] + min(high, 0)
            value = moves.take_dim(interpreter.b, value, dim, np.arange(-min(low, 0), end))
        value = padded(interpreter, value, axis, low, high, number)
    return value


def padded(interpreter: Interpreter, value: Form, axis: int, low: int, high: int, number: float) -> Form:
    """So many positions of one number before an axis and behind it."""
    sides = [_constant_like(interpreter, value, axis, size, number) for size in (low, high)]
    return joined(interpreter, [p for p in (sides[0], value, sides[1]) if p is not None], axis)


def _constant_like(interpreter: Interpreter, value: Form, axis: int, size: int, number: float) -> Form | None:
    if size <= 0:
        return None
    sizes = value.extents
    sizes[axis] = (size, False)
    made = grid.constant_form(interpreter.b, number, value.dtype, sizes)
    if any(ROW in e and len(e) > 1 for e in value.layout):
        raise Decline(f"pads {value.axes}, whose rows are folded with another axis")
    return made


# -- broadcasting


def expand(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes of size 1 become longer: the block is constant along them, nothing is copied."""
    return stretched(interpreter, form(args[0]), interpreter.shape(node.meta["val"]))


def stretched(interpreter: Interpreter, value: Form, shape: Sequence[Extent]) -> Form:
    """Broadcast to original axes of the given sizes."""
    lead = len(shape) - len(value.layout)
    value = replace(value, layout=((),) * lead + value.layout)
    grown: list[Extent] = []
    for own, (number, rows) in zip(value.extents, shape, strict=True):
        if own not in ((number, rows), (1, False)):
            raise Decline(f"expands {value.axes} to {shape_text(shape)}, along an axis that is not of size 1")
        grown.append((1, False) if own == (number, rows) else (number, rows))
    target = grid.constant_form(interpreter.b, 1.0, value.dtype, grown)
    return grid.map_blocks(grid.align(interpreter.b, [value, target]), value.dtype, lambda blocks: blocks[0])


def repeat(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`repeat`, `tile`: whole axes again and again."""
    value = form(args[0])
    shape = interpreter.shape(node.meta["val"])
    lead = len(shape) - len(value.layout)
    goal: list[Extent] = []
    for axis, (number, rows) in enumerate(shape):
        own, own_rows = value.extents[axis - lead] if axis >= lead else (1, False)
        if (own, own_rows) == (1, False):
            goal.append((number, rows))
            continue
        if own_rows or rows:
            if (own, True) != (number, rows):
                value = under_each_other(interpreter, [value] * (number // own), axis - lead)
        elif number != own:
            dim = dim_of(value, axis - lead)
            value = moves.take_dim(interpreter.b, value, dim, np.tile(np.arange(own), number // own))
        goal.append((number, rows))
    return stretched(interpreter, value, goal)


def repeat_interleave(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Every position several times; repeating rows folds a constant axis behind them."""
    arguments = named(node, args, kwargs)
    value, count = form(arguments["self"]), integer(arguments["repeats"])
    if arguments["dim"] is None:
        raise Decline(f"repeats {value.axes} flattened")
    axis = axis_of(value, arguments["dim"])
    if ROW in value.layout[axis]:
        dim = len(value.dims)
        value = moves.insert_dim(value, dim, (*value.layout, (dim,)))
        value = moves.take_dim(interpreter.b, value, dim, np.zeros(count, dtype=np.int64))
        layout = list(value.layout[:-1])
        layout[axis] = (*layout[axis], dim)
        return replace(value, layout=tuple(layout))
    dim = dim_of(value, axis)
    return moves.take_dim(interpreter.b, value, dim, np.repeat(np.arange(value.sizes[dim]), count))


RULES = table([
    ("cat concat concatenate", concatenate),
    ("stack", stack),
    ("constant_pad_nd pad", pad),
    ("expand expand_as broadcast_to", expand),
    ("repeat tile", repeat),
    ("repeat_interleave", repeat_interleave),
])  # fmt: skip
