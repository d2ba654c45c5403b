"""Folds: elements in row-major order under axes of other sizes; rows fold with other axes, and unfold again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.forms import ROW, Block, Decline, Extent, Form, Label, axis_text, shape_text, whole
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import varies


def to_shape(builder: Builder, value: Form, shape: Sequence[Extent]) -> Form:
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
        result, entries, used = _regroup(builder, result, dim, own, axes)
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
    builder: Builder, value: Form, dim: int, own: list[int], axes: list[Extent]
) -> tuple[Form, list[tuple[int, ...]], int]:
    """Rearrange the dims of one group; returns the layout entries of its axes (dims counted from `dim`) and their
    number.
    """
    if ROW not in own:
        merged = moves.merge_dims(value, dim, len(own))
        if not axes:
            return moves.drop_dim(builder, merged, dim), [], 0
        split = moves.split_dim(builder, merged, dim, [n for n, _ in axes]) if len(axes) > 1 else merged
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
    value = _resize(builder, value, dim, at, first)
    value = _resize(builder, value, dim + len(first), len(own) - 1 - at, second)
    folded = (*([len(before)] if high > 1 else []), ROW, *([len(first)] if low > 1 else []))
    start = len(first) + (low > 1)
    entries = [*((i,) for i in range(len(before))), folded, *((start + i,) for i in range(len(after)))]
    return value, entries, len(first) + len(second)


def _resize(builder: Builder, value: Form, dim: int, count: int, sizes: list[int]) -> Form:
    """`count` dims from `dim` on become dims of the given sizes."""
    if count == 0 and not sizes:
        return value
    value = moves.merge_dims(value, dim, count)
    if not sizes:
        return moves.drop_dim(builder, value, dim)
    return moves.split_dim(builder, value, dim, sizes) if len(sizes) > 1 else value


def alike(builder: Builder, forms: Sequence[Form]) -> list[Form]:
    """With rows folded as in the others (axes from the right): `(rows 6)` beside `(rows 2 3)` is `(rows 2 3)`, and one
    weight for all that is folded stands in any order of it.
    """
    forms = list(forms)
    for axis in {i - len(f.layout) for f in forms for i, e in enumerate(f.layout) if ROW in e and len(e) > 1}:
        having = [i for i, f in enumerate(forms) if -axis <= len(f.layout) and ROW in f.layout[axis]]
        patterns = {i: tuple(d if d == ROW else forms[i].sizes[d] for d in forms[i].layout[axis]) for i in having}
        goal = patterns[min(having, key=lambda i: (_same_along(forms[i], axis), -len(patterns[i])))]
        for i, pattern in patterns.items():
            own = axis % len(forms[i].layout)
            if pattern == goal or varies([n for n in (*pattern, *goal) if n != ROW]):
                continue
            if _same_along(forms[i], axis) and _sides(pattern, True) == _sides(goal, True):
                forms[i] = _folded(builder, forms[i], own, goal)
            elif _sides(pattern) == _sides(goal):
                forms[i] = _refolded(builder, forms[i], own, goal)
    return forms


def _sides(pattern: Sequence[int], together: bool = False) -> tuple[int, ...]:
    """How many places of one row there are outside of the rows and inside, or `together`."""
    at = pattern.index(ROW)
    outside, inside = math.prod(pattern[:at]), math.prod(pattern[at + 1 :])
    return (outside * inside,) if together else (outside, inside)


def _refolded(builder: Builder, form: Form, axis: int, pattern: Sequence[int]) -> Form:
    """The same places in the same order, as dims of other sizes."""
    shape = form.extents
    parts = [(1, True) if n == ROW else (n, False) for n in pattern]
    apart = to_shape(builder, moves.ordered(form), [*shape[:axis], *parts, *shape[axis + 1 :]])
    entry = tuple(d for e in apart.layout[axis : axis + len(pattern)] for d in e)
    return replace(apart, layout=(*apart.layout[:axis], entry, *apart.layout[axis + len(pattern) :]))


def _same_along(form: Form, axis: int) -> bool:
    """Whether no row and no place of what rows are folded with on an axis has another value."""
    dims = [d for d in form.layout[axis] if d != ROW]
    parts = ((label, block) for block in form.blocks.values() for d in dims for label in block.labels[d])
    return form.of_weights and not any(
        label in f.labels for label, block in parts for t in block.terms for f in t.factors
    )


def _folded(builder: Builder, form: Form, axis: int, pattern: Sequence[int]) -> Form:
    """One weight along rows folded as `pattern` says."""
    for dim in sorted((d for d in form.layout[axis] if d != ROW), reverse=True):
        form = moves.drop_dim(builder, form, dim)
    entry: list[int] = []
    for size in pattern:
        entry.append(ROW if size == ROW else len(form.dims))
        if size != ROW:
            blocks = {(*c, 0): Block((*b.labels, (Label(size),)), b.terms) for c, b in form.blocks.items()}
            form = replace(form, dims=(*form.dims, whole(size)), blocks=blocks)
    return replace(form, layout=(*form.layout[:axis], tuple(entry), *form.layout[axis + 1 :]))


def take_points(builder: Builder, value: Form, axes: list[int], constants: list[torch.Tensor]) -> Form:
    """Adjacent axes become one, of which points are taken; a boolean mask is the list of its true points."""
    if len(constants) == 1 and constants[0].dtype == torch.bool:
        mask = constants[0]
        axes = list(range(axes[0], axes[0] + mask.dim()))
        constants = list(mask.nonzero(as_tuple=True))
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Decline(f"axes {axes} of {value.axes} are indexed and are not neighbours")
    points = torch.broadcast_tensors(*constants)
    dims = [value.dim(axis) for axis in axes]
    sizes = [value.sizes[d] for d in dims]
    wrapped = [
        np.where(p.numpy() < 0, p.numpy() + n, p.numpy()).reshape(-1) for p, n in zip(points, sizes, strict=True)
    ]
    flat = np.ravel_multi_index(wrapped, sizes)
    first = value.layout[: axes[0]]
    merged = moves.merge_dims(replace(value, layout=_merged_layout(value, axes)), dims[0], len(dims))
    taken = moves.take_dim(builder, merged, dims[0], flat)
    shape = list(points[0].shape)
    if len(shape) == 1:
        return taken
    if not shape:
        return moves.drop_dim(builder, taken, dims[0])
    apart = replace(taken, layout=tuple((d,) for e in taken.layout for d in e))
    split = moves.split_dim(builder, apart, dims[0], shape)
    rest = taken.layout[len(first) + 1 :]
    shifted = [tuple(d + len(shape) - 1 if d > dims[0] else d for d in e) for e in rest]
    return replace(split, layout=(*first, *((dims[0] + i,) for i in range(len(shape))), *shifted))


def _merged_layout(value: Form, axes: list[int]) -> tuple[tuple[int, ...], ...]:
    together = tuple(d for axis in axes for d in value.layout[axis])
    return (*value.layout[: axes[0]], together, *value.layout[axes[-1] + 1 :])


def in_groups(builder: Builder, value: Form, axis: int, groups: int) -> Form:
    """With an axis of groups before that of channels: `[..., g i, ...]` is `[..., g, i, ...]`."""
    size, rows = value.extents[axis]
    if rows:
        raise Decline(f"the channels of {value.axes} are rows")
    shape = [*value.extents[:axis], (groups, False), (size // groups, False), *value.extents[axis + 1 :]]
    return to_shape(builder, value, shape)


def out_of_groups(builder: Builder, value: Form) -> Form:
    """`[b, g, o, ...]` as `[b, g o, ...]`."""
    (groups, _), (size, _) = value.extents[1:3]
    return to_shape(builder, value, [value.extents[0], (groups * size, False), *value.extents[3:]])
