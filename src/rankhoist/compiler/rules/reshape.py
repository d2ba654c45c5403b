"""Operators that only change axes. Law: a transpose, a fold of rows or an unfold changes the layout, blocks stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Extent, Form, axis_text, shape_text
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, form
from rankhoist.compiler.rules.table import table

# -- reshape


def reshape(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`view`, `reshape`, `flatten`, `unflatten`: rows may fold with other axes and unfold again."""
    return to_shape(interpreter, form(args[0]), interpreter.shape(node.meta["val"]))


def to_shape(interpreter: Interpreter, value: Form, shape: Sequence[Extent]) -> Form:
    """The value with original axes of the given sizes, elements in row-major order."""
    items = [(ROW if d == ROW else value.sizes[d]) for entry in value.layout for d in entry]
    if not value.has_rows and any(rows for _, rows in shape):
        raise Decline(f"a reshape of {value.axes} to {shape_text(shape)} makes rows out of something else")
    groups = _groups(items, shape)
    if groups is None:
        raise Decline(f"a reshape of {value.axes} to {shape_text(shape)} cuts rows apart")
    result = replace(value, layout=tuple((d,) for entry in value.layout for d in entry))
    layout: list[tuple[int, ...]] = []
    dim = 0
    for own, axes in groups:
        result, entries, used = _regroup(interpreter, result, dim, own, axes)
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
    interpreter: Interpreter, value: Form, dim: int, own: list[int], axes: list[Extent]
) -> tuple[Form, list[tuple[int, ...]], int]:
    """Rearrange the dims of one group; returns the layout entries of its axes (dims counted from `dim`) and their
    number.
    """
    if ROW not in own:
        merged = moves.merge_dims(interpreter.b, value, dim, len(own))
        if not axes:
            return moves.drop_dim(interpreter.b, merged, dim), [], 0
        split = moves.split_dim(interpreter.b, merged, dim, [n for n, _ in axes]) if len(axes) > 1 else merged
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
        raise Decline(f"a reshape of {axis_text(own)} to {shape_text(axes)} cuts rows apart")
    first, second = [*before, *([high] if high > 1 else [])], [*([low] if low > 1 else []), *after]
    value = _resize(interpreter, value, dim, at, first)
    value = _resize(interpreter, value, dim + len(first), len(own) - 1 - at, second)
    folded = (*([len(before)] if high > 1 else []), ROW, *([len(first)] if low > 1 else []))
    start = len(first) + (low > 1)
    entries = [*((i,) for i in range(len(before))), folded, *((start + i,) for i in range(len(after)))]
    return value, entries, len(first) + len(second)


def _resize(interpreter: Interpreter, value: Form, dim: int, count: int, sizes: list[int]) -> Form:
    """`count` dims from `dim` on become dims of the given sizes."""
    if count == 0 and not sizes:
        return value
    value = moves.merge_dims(interpreter.b, value, dim, count)
    if not sizes:
        return moves.drop_dim(interpreter.b, value, dim)
    return moves.split_dim(interpreter.b, value, dim, sizes) if len(sizes) > 1 else value


# -- axes


def transpose(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Two axes swapped: the layout changes, nothing moves."""
    value = form(args[0])
    order = list(range(len(value.layout)))
    i, k = (axis_of(value, a) for a in args[1:3])
    order[i], order[k] = order[k], order[i]
    return permuted(value, order)


def permute(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes reordered: the layout changes, nothing moves."""
    value = form(args[0])
    return permuted(value, [axis_of(value, a) for a in args[1]])


def reverse_axes(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`t`, `numpy_T`: axes in reverse."""
    value = form(args[0])
    return permuted(value, list(range(len(value.layout)))[::-1])


def permuted(value: Form, order: Sequence[int]) -> Form:
    """New axis i is old axis `order[i]`."""
    return replace(value, layout=tuple(value.layout[a] for a in order))


def unsqueeze(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A new axis of size 1."""
    value = form(args[0])
    return moves.with_axes(value, [args[1] if args[1] >= 0 else args[1] + len(value.layout) + 1])


def squeeze(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes that the exported graph shows to be of size 1 go, whatever the row count of a call."""
    value = form(args[0])
    chosen = range(len(value.layout)) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    axes = sorted((axis_of(value, a) for a in chosen), reverse=True)
    for axis in axes:
        if value.extents[axis] == (1, False):
            for dim in sorted(value.layout[axis], reverse=True):
                value = moves.drop_dim(interpreter.b, value, dim)
    return value


RULES = table([
    # `view.dtype` is no reshape: another number of elements, from the same bytes
    ("view.default reshape _unsafe_view flatten unflatten view_as ravel _reshape_alias view_copy.default", reshape),
    ("transpose swapaxes swapdims", transpose),
    ("permute", permute),
    ("t numpy_T", reverse_axes),
    ("unsqueeze", unsqueeze),
    ("squeeze", squeeze),
])  # fmt: skip
