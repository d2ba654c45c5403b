"""Operators that only move elements. Law: positions move, blocks stay; a transpose or a fold of rows is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import fx

from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.forms import ROW, Block, Cell, Decline, Extent, Form, refine, shape_text
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, integer, named
from rankhoist.compiler.rules.pointwise import to_dtype
from rankhoist.compiler.rules.table import table

# -- reshape


def reshape(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`view`, `reshape`, `flatten`, `unflatten`: rows may fold with other axes and unfold again."""
    return to_shape(c, form(args[0]), c.shape(node.meta["val"]))


def to_shape(c: Interpreter, value: Form, shape: Sequence[Extent]) -> Form:
    """The value with original axes of the given sizes, elements in row-major order."""
    items = [(ROW if d == ROW else value.sizes[d]) for entry in value.layout for d in entry]
    if not value.has_rows and any(rows for _, rows in shape):
        raise Decline("a reshape makes rows out of something else")
    groups = _groups(items, shape)
    if groups is None:
        raise Decline(f"a reshape to {shape_text(shape)} cuts rows apart")
    result = replace(value, layout=tuple((d,) for entry in value.layout for d in entry))
    layout: list[tuple[int, ...]] = []
    dim = 0
    for own, axes in groups:
        result, entries, used = _regroup(c, result, dim, own, axes)
        layout += [tuple(d if d == ROW else d + dim for d in entry) for entry in entries]
        dim += used
    return replace(result, layout=tuple(layout))


def _groups(items: list[int], shape: Sequence[Extent]) -> list[tuple[list[int], list[Extent]]] | None:
    """Runs of old items and new axes with equal products; `None` if there are none."""
    groups = []
    i = k = 0
    while i < len(items) or k < len(shape):
        own: list[int] = []
        axes: list[Extent] = []
        left, right = (1, 0), (1, 0)
        while True:
            if (own or axes) and left == right:
                break
            if (
                i < len(items)
                and (not own or _behind(left, right))
                and not (not own and k < len(shape) and shape[k] == (1, False))
            ):
                own.append(items[i])
                left = (left[0], left[1] + 1) if items[i] == ROW else (left[0] * items[i], left[1])
                i += 1
                if not axes and left == (1, 0):
                    break
            elif k < len(shape):
                axes.append(shape[k])
                right = (right[0] * shape[k][0], right[1] + shape[k][1])
                k += 1
            else:
                return None
        groups.append((own, axes))
    return groups


def _behind(left: tuple[int, int], right: tuple[int, int]) -> bool:
    """Whether the old items cover less than the new axes so far."""
    return left[1] < right[1] or (left[1] == right[1] and left[0] < right[0])


def _regroup(
    c: Interpreter, value: Form, dim: int, own: list[int], axes: list[Extent]
) -> tuple[Form, list[tuple[int, ...]], int]:
    """Rearrange the dims of one group; returns the layout entries of its axes (dims counted from `dim`) and their
    number.
    """
    if ROW not in own:
        merged = moves.merge_dims(c.b, value, dim, len(own))
        if not axes:
            return moves.drop_dim(c.b, merged, dim), [], 0
        split = moves.split_dim(c.b, merged, dim, [n for n, _ in axes]) if len(axes) > 1 else merged
        return split, [(i,) for i in range(len(axes))], len(axes)
    at = own.index(ROW)
    if len(axes) == 1:
        count = len(own) - 1
        return value, [(*range(at), ROW, *range(at, count))], count
    row = next(i for i, (_, rows) in enumerate(axes) if rows)
    before, after = [n for n, _ in axes[:row]], [n for n, _ in axes[row + 1 :]]
    outer, inner = math.prod(own[:at]), math.prod(own[at + 1 :])
    high, low = outer // max(math.prod(before), 1), inner // max(math.prod(after), 1)
    if high * math.prod(before) != outer or low * math.prod(after) != inner or high * low != axes[row][0]:
        raise Decline("a reshape cuts rows apart")
    first, second = [*before, *([high] if high > 1 else [])], [*([low] if low > 1 else []), *after]
    value = _resize(c, value, dim, at, first)
    value = _resize(c, value, dim + len(first), len(own) - 1 - at, second)
    folded = (*([len(before)] if high > 1 else []), ROW, *([len(first)] if low > 1 else []))
    start = len(first) + (low > 1)
    entries = [*((i,) for i in range(len(before))), folded, *((start + i,) for i in range(len(after)))]
    return value, entries, len(first) + len(second)


def _resize(c: Interpreter, value: Form, dim: int, count: int, sizes: list[int]) -> Form:
    """`count` dims from `dim` on become dims of the given sizes."""
    if count == 0 and not sizes:
        return value
    value = moves.merge_dims(c.b, value, dim, count)
    if not sizes:
        return moves.drop_dim(c.b, value, dim)
    return moves.split_dim(c.b, value, dim, sizes) if len(sizes) > 1 else value


# -- axes


def transpose(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Two axes swapped: the layout changes, nothing moves."""
    value = form(args[0])
    order = list(range(len(value.layout)))
    i, k = (axis_of(value, a) for a in args[1:3])
    order[i], order[k] = order[k], order[i]
    return permuted(value, order)


def permute(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes reordered: the layout changes, nothing moves."""
    value = form(args[0])
    return permuted(value, [axis_of(value, a) for a in args[1]])


def reverse_axes(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`t`, `numpy_T`: axes in reverse."""
    value = form(args[0])
    return permuted(value, list(range(len(value.layout)))[::-1])


def permuted(value: Form, order: Sequence[int]) -> Form:
    """New axis i is old axis `order[i]`."""
    return replace(value, layout=tuple(value.layout[a] for a in order))


def unsqueeze(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A new axis of size 1."""
    value = form(args[0])
    return moves.with_axes(value, [args[1] if args[1] >= 0 else args[1] + len(value.layout) + 1])


def squeeze(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes that the exported graph shows to be of size 1 go, whatever the row count of a call."""
    value = form(args[0])
    chosen = range(len(value.layout)) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    axes = sorted((axis_of(value, a) for a in chosen), reverse=True)
    for axis in axes:
        if value.extents[axis] == (1, False):
            for dim in sorted(value.layout[axis], reverse=True):
                value = moves.drop_dim(c.b, value, dim)
    return value


# -- parts


def select(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """One position of an axis."""
    value = form(args[0])
    dim = dim_of(value, integer(args[1]))
    index = integer(args[2]) % value.sizes[dim]
    return moves.drop_dim(c.b, moves.take_dim(c.b, value, dim, np.asarray([index])), dim)


def slice_axis(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x[:, start:end:step]`; a slice that keeps every row is nothing."""
    a = named(node, args, kwargs)
    value = form(a["self"])
    axis = axis_of(value, a["dim"])
    if ROW in value.layout[axis] and c.shape(node.meta["val"]) == c.shape(_operand(node).meta["val"]):
        return value
    dim = dim_of(value, axis)
    start, end, step = (None if a[k] is None else integer(a[k]) for k in ("start", "end", "step"))
    return moves.take_dim(c.b, value, dim, np.arange(value.sizes[dim])[slice(start, end, step)])


def narrow(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`length` positions of an axis from `start` on."""
    value = form(args[0])
    dim = dim_of(value, integer(args[1]))
    start = integer(args[2]) % value.sizes[dim]
    return moves.take_dim(c.b, value, dim, np.arange(start, start + integer(args[3])))


def _operand(node: fx.Node) -> fx.Node:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def split(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`split`, `chunk`, `tensor_split`: consecutive parts, of the sizes that the exported graph shows."""
    a = named(node, args, kwargs)
    value = form(a["self"])
    axis = axis_of(value, a["dim"])
    dim = dim_of(value, axis)
    sizes = [c.shape(fake)[axis][0] for fake in node.meta["val"]]
    ends = np.cumsum(sizes)
    return [moves.take_dim(c.b, value, dim, np.arange(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def unbind(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Every position of an axis by itself."""
    value = form(args[0])
    dim = dim_of(value, args[1] if len(args) > 1 else 0)
    return [moves.drop_dim(c.b, moves.take_dim(c.b, value, dim, np.asarray([i])), dim) for i in range(value.sizes[dim])]


def flip(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes back to front."""
    value = form(args[0])
    for axis in args[1]:
        dim = dim_of(value, axis)
        value = moves.take_dim(c.b, value, dim, np.arange(value.sizes[dim])[::-1])
    return value


def roll(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Positions shifted around."""
    a = named(node, args, kwargs)
    value = form(a["self"])
    if not a["dims"]:
        raise Decline("rolls over all axes at once")
    for axis, shift in zip(a["dims"], a["shifts"], strict=True):
        dim = dim_of(value, axis)
        value = moves.take_dim(c.b, value, dim, np.roll(np.arange(value.sizes[dim]), integer(shift)))
    return value


# -- joining


def concatenate(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`cat`: the segments side by side."""
    a = named(node, args, kwargs)
    fake = node.meta["val"]
    forms = [form(v) for v in a["tensors"]]
    forms = [f for f in forms if not (len(f.layout) == 1 and f.sizes == (0,) and fake.dim() != 1)]
    forms = [f if f.dtype == fake.dtype else to_dtype(c, f, fake.dtype) for f in forms]
    return joined(c, forms, axis_of(forms[0], a["dim"]))


def stack(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A new axis, one position per operand."""
    a = named(node, args, kwargs)
    depth = node.meta["val"].dim()
    axis = a["dim"] % depth
    dtype = node.meta["val"].dtype
    forms = []
    for value in (form(v) for v in a["tensors"]):
        value = value if value.dtype == dtype else to_dtype(c, value, dtype)
        forms.append(moves.with_axes(value, [axis]))
    return joined(c, forms, axis)


def joined(c: Interpreter, forms: list[Form], axis: int) -> Form:
    """Forms side by side along an axis that holds no rows."""
    forms = [moves.ordered(f) for f in forms]
    dim = dim_of(forms[0], axis)
    shapes = {
        tuple(tuple(d if d == ROW else f.sizes[d] if d != dim else 0 for d in e) for e in f.layout) for f in forms
    }
    if len(shapes) > 1:
        raise Decline("joins tensors that fold rows differently")
    for other in range(len(forms[0].dims)):
        if other != dim:
            forms = refine(c.b, forms, [other] * len(forms))
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


def pad(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Constant padding: a constant block on either side."""
    a = named(node, args, kwargs)
    if a.get("mode", "constant") != "constant":
        raise Decline(f"padding by {a['mode']}")
    value = form(a["self"])
    number = a["value"] if a["value"] is not None else 0.0
    amounts = [integer(n) for n in a["pad"]]
    for k in range(0, len(amounts), 2):
        axis = len(value.layout) - 1 - k // 2
        dim = dim_of(value, axis)
        low, high = amounts[k : k + 2]
        if low < 0 or high < 0:
            end = value.sizes[dim] + min(high, 0)
            value = moves.take_dim(c.b, value, dim, np.arange(-min(low, 0), end))
        parts = [_constant_like(c, value, axis, low, number), value, _constant_like(c, value, axis, high, number)]
        value = joined(c, [p for p in parts if p is not None], axis)
    return value


def _constant_like(c: Interpreter, value: Form, axis: int, size: int, number: float) -> Form | None:
    if size <= 0:
        return None
    sizes = value.extents
    sizes[axis] = (size, False)
    made = grid.constant_form(c.b, number, value.dtype, sizes)
    if any(ROW in e and len(e) > 1 for e in value.layout):
        raise Decline("pads a tensor whose rows are folded with another axis")
    return made


# -- broadcasting


def expand(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes of size 1 become longer: the block is constant along them, nothing is copied."""
    return stretched(c, form(args[0]), c.shape(node.meta["val"]))


def stretched(c: Interpreter, value: Form, shape: Sequence[Extent]) -> Form:
    """Broadcast to original axes of the given sizes."""
    lead = len(shape) - len(value.layout)
    value = replace(value, layout=((),) * lead + value.layout)
    grown: list[Extent] = []
    for own, (number, rows) in zip(value.extents, shape, strict=True):
        if own not in ((number, rows), (1, False)):
            raise Decline("expands an axis that is not of size 1")
        grown.append((1, False) if own == (number, rows) else (number, rows))
    target = grid.constant_form(c.b, 1.0, value.dtype, grown)
    return grid.map_blocks(grid.align(c.b, [value, target]), value.dtype, lambda blocks: blocks[0])


def repeat(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`repeat`, `tile`: whole axes again and again."""
    value = form(args[0])
    shape = c.shape(node.meta["val"])
    lead = len(shape) - len(value.layout)
    goal: list[Extent] = []
    for axis, (number, rows) in enumerate(shape):
        own, own_rows = value.extents[axis - lead] if axis >= lead else (1, False)
        if (own, own_rows) == (1, False):
            goal.append((number, rows))
            continue
        if own_rows or rows:
            if (own, True) != (number, rows):
                raise Decline("repeats the rows themselves")
        elif number != own:
            dim = dim_of(value, axis - lead)
            value = moves.take_dim(c.b, value, dim, np.tile(np.arange(own), number // own))
        goal.append((number, rows))
    return stretched(c, value, goal)


def repeat_interleave(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Every position several times; repeating rows folds a constant axis behind them."""
    a = named(node, args, kwargs)
    value, count = form(a["self"]), integer(a["repeats"])
    if a["dim"] is None:
        raise Decline("repeats a flattened tensor")
    axis = axis_of(value, a["dim"])
    if ROW in value.layout[axis]:
        dim = len(value.dims)
        value = moves.insert_dim(value, dim, (*value.layout, (dim,)))
        value = moves.take_dim(c.b, value, dim, np.zeros(count, dtype=np.int64))
        layout = list(value.layout[:-1])
        layout[axis] = (*layout[axis], dim)
        return replace(value, layout=tuple(layout))
    dim = dim_of(value, axis)
    return moves.take_dim(c.b, value, dim, np.repeat(np.arange(value.sizes[dim]), count))


RULES = table([
    # `view.dtype` is no reshape: another number of elements, from the same bytes
    ("view.default reshape _unsafe_view flatten unflatten view_as ravel _reshape_alias view_copy.default", reshape),
    ("transpose swapaxes swapdims", transpose),
    ("permute", permute),
    ("t numpy_T", reverse_axes),
    ("unsqueeze", unsqueeze),
    ("squeeze", squeeze),
    ("select", select),
    ("slice", slice_axis),
    ("narrow", narrow),
    ("split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split", split),
    ("unbind", unbind),
    ("flip", flip),
    ("roll", roll),
    ("cat concat concatenate", concatenate),
    ("stack", stack),
    ("constant_pad_nd pad", pad),
    ("expand expand_as broadcast_to", expand),
    ("repeat tile", repeat),
    ("repeat_interleave", repeat_interleave),
])  # fmt: skip
