"""Moves: positions, dims and original axes of one form rearranged; nothing is computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from rankhoist.compiler.algebra import spans
from rankhoist.compiler.algebra.cuts import drop_axes, flatten_labels, split_at, take
from rankhoist.compiler.algebra.forms import ROW, Block, Decline, Form, Label, Labels, Positions, cells, whole
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized, varies

T = TypeVar("T")
MORE_PIECES = 16  # that a reshape may cut blocks into: each is a tensor of its own from there on


def ordered(form: Form) -> Form:
    """Number the dims in the order in which the original axes show them."""
    shown = [d for entry in form.layout for d in entry if d != ROW]
    return reorder(form, shown)


def reorder(form: Form, order: Sequence[int]) -> Form:
    """New dim i is old dim `order[i]`."""
    if list(order) == list(range(len(order))):
        return form
    new = {old: i for i, old in enumerate(order)}
    dims = tuple(form.dims[o] for o in order)
    blocks = {
        tuple(cell[o] for o in order): Block(tuple(block.labels[o] for o in order), block.terms)
        for cell, block in form.blocks.items()
    }
    layout = tuple(tuple(d if d == ROW else new[d] for d in entry) for entry in form.layout)
    return Form(dims, blocks, layout, form.dtype)


def insert_dim(form: Form, at: int, layout: tuple[tuple[int, ...], ...] | None = None) -> Form:
    """A new dim of size 1 at place `at`; `layout` is already in terms of the new numbering where given."""
    dims = (*form.dims[:at], whole(1), *form.dims[at:])
    blocks = {
        (*cell[:at], 0, *cell[at:]): Block((*block.labels[:at], (), *block.labels[at:]), block.terms)
        for cell, block in form.blocks.items()
    }
    if layout is None:
        layout = tuple(tuple(d + 1 if d >= at else d for d in entry) for entry in form.layout)
    return Form(dims, blocks, layout, form.dtype)


def drop_dim(builder: Builder, form: Form, dim: int) -> Form:
    """Remove a dim of size 1, from its original axis too (an axis left empty disappears)."""
    blocks = {}
    for cell, block in form.blocks.items():
        bare = drop_axes(builder, block, dict.fromkeys(block.labels[dim]))
        blocks[cell[:dim] + cell[dim + 1 :]] = Block(block.labels[:dim] + block.labels[dim + 1 :], bare.terms)
    layout = tuple(tuple(d - 1 if d > dim else d for d in e if d != dim) for e in form.layout if e != (dim,))
    return Form(form.dims[:dim] + form.dims[dim + 1 :], blocks, layout, form.dtype)


def take_dim(builder: Builder, form: Form, dim: int, index: Positions) -> Form:
    """Positions `index` of one dim, in that order, repeats allowed."""
    size = form.sizes[dim]
    if len(index) == size and (index == np.arange(size)).all():
        return form
    owner, offset = _owners(form, dim)
    segments, kept = [], []
    for k in range(len(form.dims[dim])):
        places = np.flatnonzero(owner[index] == k)
        if len(places) or (k == 0 and not len(index)):  # of no position one segment is left, which is empty
            segments.append(_cheap_order(places, offset[index[places]]))
            kept.append(k)
    dims = replaced(form.dims, dim, tuple(segments))
    blocks = {}
    for cell in cells(dims):
        old = replaced(cell, dim, kept[cell[dim]])
        blocks[cell] = take(builder, form.blocks[old], dim, offset[index[segments[cell[dim]]]])
    return replace(form, dims=dims, blocks=blocks)


def sliced(builder: Builder, form: Form, dim: int, start: Sized, end: Sized | None) -> Form:
    """Places `start` to `end` of a dim that varies, counted as slices count; to its end where that is None."""
    size = form.sizes[dim]
    return spans.taken(builder, form, dim, spans.place(start, size), size if end is None else spans.place(end, size))


def _owners(form: Form, dim: int) -> tuple[Positions, Positions]:
    """Of every position of a dim, the segment that holds it, and where in it."""
    owner, offset = np.empty(form.sizes[dim], dtype=np.int64), np.empty(form.sizes[dim], dtype=np.int64)
    for k, positions in enumerate(form.dims[dim]):
        owner[positions], offset[positions] = k, np.arange(len(positions))
    return owner, offset


def _cheap_order(places: Positions, offsets: Positions) -> Positions:
    """List a segment's positions in the order in which the block already has them: then a permutation gathers
    nothing.
    """
    return places[np.argsort(offsets, kind="stable")]


def merge_dims(form: Form, first: int, count: int) -> Form:
    """Dims `first .. first + count - 1` become one, row-major."""
    if count == 1:
        return form
    if count == 0:
        return insert_dim(form, first)
    last = first + count
    sizes = form.sizes[first:last]
    combinations = list(itertools.product(*(range(len(form.dims[d])) for d in range(first, last))))
    segments = list(whole(math.prod(sizes))) if varies(sizes) and len(combinations) == 1 else []
    for combination in combinations[len(segments) :]:
        parts = [form.dims[first + i][k] for i, k in enumerate(combination)]
        grid = np.meshgrid(*parts, indexing="ij")
        segments.append(np.ravel_multi_index([g.reshape(-1) for g in grid], sizes))
    dims = (*form.dims[:first], tuple(segments), *form.dims[last:])
    blocks = {}
    for cell in cells(dims):
        old = form.blocks[cell[:first] + combinations[cell[first]] + cell[first + 1 :]]
        joined = tuple(itertools.chain.from_iterable(old.labels[first:last]))
        blocks[cell] = Block((*old.labels[:first], joined, *old.labels[last:]), old.terms)

    def renumber(entry: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(d - count + 1 if d >= last else d for d in entry if not first < d < last)

    return Form(dims, blocks, tuple(renumber(e) for e in form.layout), form.dtype)


def split_dim(builder: Builder, form: Form, dim: int, sizes: Sequence[Sized]) -> Form:
    """One dim becomes several, row-major, and a segment that is no product of sets along the new dims becomes several
    segments. Declines where these are many, and sooner where all are known at one rate.
    """
    count = len(sizes)
    if varies(sizes):
        return _split_whole(builder, form, dim, sizes)
    owner, offset = _owners(form, dim)
    classes = _classes(owner.reshape(sizes), list(itertools.chain.from_iterable(form.dims[dim])))
    more = math.prod(len(c) for c in classes) - len(form.dims[dim])
    if more > (MORE_PIECES if form.mixed else len(form.dims[dim])):
        raise Decline(f"a reshape of {form.sizes[dim]} to {list(sizes)} cuts through a block")
    dims = (*form.dims[:dim], *classes, *form.dims[dim + 1 :])
    blocks = {}
    for cell in cells(dims):
        chosen = [classes[a][cell[dim + a]] for a in range(count)]
        grid = np.meshgrid(*chosen, indexing="ij")
        flat = np.ravel_multi_index([g.reshape(-1) for g in grid], sizes)
        old = form.blocks[replaced(cell, dim, int(owner[flat[0]]), count)]
        part = take(builder, old, dim, offset[flat])
        blocks[cell] = _distribute(builder, part, dim, [len(c) for c in chosen])
    return Form(dims, blocks, _split_layout(form, dim, count), form.dtype)


def _split_whole(builder: Builder, form: Form, dim: int, sizes: Sequence[Sized]) -> Form:
    """The same of a dim in one segment."""
    if len(form.dims[dim]) > 1:
        raise Decline(f"a reshape of {form.sizes[dim]} to {list(sizes)} cuts through a block")
    dims = (*form.dims[:dim], *map(whole, sizes), *form.dims[dim + 1 :])
    blocks = {
        (*cell[:dim], *(0 for _ in sizes), *cell[dim + 1 :]): _distribute(builder, block, dim, sizes)
        for cell, block in form.blocks.items()
    }
    return Form(dims, blocks, _split_layout(form, dim, len(sizes)), form.dtype)


def _split_layout(form: Form, dim: int, count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(itertools.chain.from_iterable(
            range(dim, dim + count) if d == dim else [d + count - 1 if d > dim else d] for d in entry
        ))
        for entry in form.layout
    )  # fmt: skip


def _classes(owner: np.ndarray, appearance: Sequence[int]) -> list[tuple[Positions, ...]]:
    """Along every axis of a grid of owners, the coordinates at which it is the same, together, in order of appearance.

    So any product of one class per axis has one owner: two of its places differ in one coordinate after the other.
    """
    result = []
    for axis, coordinates in enumerate(np.unravel_index(np.asarray(appearance, dtype=np.int64), owner.shape)):
        groups: dict[bytes, list[int]] = {}
        for value in dict.fromkeys(coordinates.tolist()):
            groups.setdefault(owner.take(value, axis).tobytes(), []).append(value)
        result.append(tuple(np.asarray(g) for g in groups.values()))
    return result


def _distribute(builder: Builder, block: Block, dim: int, sizes: Sequence[Sized]) -> Block:
    """Hand the labels of one dim out to several new dims of the given sizes."""
    bounds = [math.prod(sizes[i:]) for i in range(len(sizes))]
    block = split_at(builder, block, dim, bounds)
    parts = _cut_labels(block.labels[dim], sizes)
    if parts is None:
        block = split_at(builder, flatten_labels(builder, block, dim), dim, bounds)
        parts = _cut_labels(block.labels[dim], sizes)
    assert parts is not None
    return Block((*block.labels[:dim], *parts, *block.labels[dim + 1 :]), block.terms)


def _cut_labels(labels: Labels, sizes: Sequence[Sized]) -> list[Labels] | None:
    parts: list[Labels] = []
    rest = list(labels)
    for size in sizes:
        part: list[Label] = []
        while math.prod(x.size for x in part) < size and rest:
            part.append(rest.pop(0))
        if math.prod(x.size for x in part) != size:
            return None
        parts.append(tuple(part))
    if parts and all(x.size == 1 for x in rest):
        parts[-1] = (*parts[-1], *rest)
        return parts
    return None if rest else parts


def unfolded(builder: Builder, form: Form, axis: int, size: int, step: int) -> Form:
    """Windows along an original axis as a new last one: `x[..., t * step + j, ...]` at `[..., t, ..., j]`."""
    places = np.arange(0, form.sizes[form.dim(axis)] - size + 1, step)[:, None] + np.arange(size)
    return windows(builder, form, axis, places)


def windows(builder: Builder, form: Form, axis: int, places: np.ndarray) -> Form:
    """The same with any places of each: `x[..., places[t, j], ...]` at `[..., t, ..., j]`."""
    dim = form.dim(axis)
    split = split_dim(builder, take_dim(builder, form, dim, places.reshape(-1)), dim, places.shape)
    layout = replaced(split.layout, axis, (dim,))
    return replace(split, layout=(*layout, (dim + 1,)))


def replaced(items: tuple[T, ...], dim: int, item: T, count: int = 1) -> tuple[T, ...]:
    """A cell, or whatever has an item per dim, with another in place of `count` from `dim` on."""
    return (*items[:dim], item, *items[dim + count :])


def with_axes(form: Form, axes: Sequence[int]) -> Form:
    """New original axes of size 1 at the given places, in ascending order."""
    for axis in axes:
        dim = len(form.dims)
        form = insert_dim(form, dim, (*form.layout[:axis], (dim,), *form.layout[axis:]))
    return form
