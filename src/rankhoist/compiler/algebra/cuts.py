"""Cuts: positions of a block taken, its labels split, flattened or dropped, and several blocks cut alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankhoist.compiler.algebra import spans
from rankhoist.compiler.algebra.forms import (
    Block,
    Factor,
    Form,
    Label,
    Labels,
    Positions,
    Span,
    cells,
    map_factors,
    rename,
    same,
    with_labels,
)
from rankhoist.compiler.graph.build import Builder

# -- one block


def split_label(builder: Builder, block: Block, dim: int, label: Label, sizes: Sequence[int]) -> Block:
    """One label becomes several, by a view of every factor that has it."""
    parts = tuple(Label(s) for s in sizes)

    def build(f: Factor) -> Factor:
        at = f.labels.index(label)
        shape = [*f.node.shape[:at], *sizes, *f.node.shape[at + 1 :]]
        return Factor(builder.reshape(f.node, shape), (*f.labels[:at], *parts, *f.labels[at + 1 :]))

    at = block.labels[dim].index(label)
    labels = (*block.labels[dim][:at], *parts, *block.labels[dim][at + 1 :])
    return with_labels(map_factors(block, {label: None}, build), dim, labels)


def take(builder: Builder, block: Block, dim: int, index: Positions) -> Block:
    """The block at positions `index` (into the row-major product of its labels) of one dim."""
    labels = block.labels[dim]
    sizes = [x.size for x in labels]
    if len(index) == math.prod(sizes) and (index == np.arange(len(index))).all():
        return block
    coordinates: Any = np.unravel_index(index, sizes) if sizes else ()
    outer = _product_lists(coordinates, len(index))
    if outer is not None:
        return _take_each(builder, block, dim, outer)
    return _take_points(builder, block, dim, coordinates, len(index))


def _product_lists(coordinates: Sequence[np.ndarray], count: int) -> list[np.ndarray] | None:
    """Per-label index lists whose row-major product is the list of points, if there are such."""
    lists = [c[np.sort(np.unique(c, return_index=True)[1])] for c in coordinates]
    if not lists or math.prod(len(x) for x in lists) != count:
        return None if lists or count != 1 else []
    grid = np.meshgrid(*lists, indexing="ij")
    same = all((g.reshape(-1) == c).all() for g, c in zip(grid, coordinates, strict=True))
    return lists if same else None


def _take_each(builder: Builder, block: Block, dim: int, lists: Sequence[np.ndarray]) -> Block:
    old = block.labels[dim]
    new = tuple(
        x if len(i) == x.size and (i == np.arange(x.size)).all() else Label(len(i))
        for x, i in zip(old, lists, strict=True)
    )
    chosen = {o: (n, i) for o, n, i in zip(old, new, lists, strict=True) if o is not n}

    def build(f: Factor) -> Factor:
        node = f.node
        for axis, x in enumerate(f.labels):
            if x in chosen:
                node = builder.take(node, axis, chosen[x][1])
        return Factor(node, tuple(chosen[x][0] if x in chosen else x for x in f.labels))

    return with_labels(map_factors(block, chosen, build), dim, new)


def _take_points(builder: Builder, block: Block, dim: int, coordinates: Sequence[np.ndarray], count: int) -> Block:
    """Points that are no product of lists: every factor is gathered at them, under one new label."""
    point = Label(count)
    where = dict(zip(block.labels[dim], coordinates, strict=True))

    def build(f: Factor) -> Factor:
        own = [x for x in f.labels if x in where]
        rest = tuple(x for x in f.labels if x not in where)
        node = builder.permute(f.node, [f.labels.index(x) for x in [*own, *rest]])
        node = builder.reshape(node, [math.prod(x.size for x in own), *(x.size for x in rest)])
        flat = np.ravel_multi_index([where[x] for x in own], [x.size for x in own])
        return Factor(builder.take(node, 0, np.asarray(flat)), (point, *rest))

    return with_labels(map_factors(block, where, build), dim, (point,))


def flatten_labels(builder: Builder, block: Block, dim: int) -> Block:
    """All labels of one dim become one."""
    if len(block.labels[dim]) == 1:
        return block
    size = math.prod(x.size for x in block.labels[dim])
    coordinates = np.unravel_index(np.arange(size), [x.size for x in block.labels[dim]]) if block.labels[dim] else ()
    return _take_points(builder, block, dim, coordinates, size)


# -- several blocks


def refine(builder: Builder, forms: Sequence[Form], dims: Sequence[int]) -> list[Form]:
    """Cut dim `dims[i]` of `forms[i]` so that all have the same segments in the same order.

    Positions keep the order they have in the form computed most often, which then needs no gather.
    """
    segments = [f.dims[d] for f, d in zip(forms, dims, strict=True)]
    first = segments[0]
    if all(len(s) == len(first) and all(same(x, y) for x, y in zip(s, first, strict=True)) for s in segments[1:]):
        return list(forms)
    if any(isinstance(s, Span) for parts in segments for s in parts):
        return spans.alike(builder, forms, dims)
    size = sum(len(s) for s in first)
    owner = np.empty((len(forms), size), dtype=np.int64)
    offset = np.empty((len(forms), size), dtype=np.int64)
    for i, parts in enumerate(segments):
        for k, positions in enumerate(parts):
            owner[i, positions] = k
            offset[i, positions] = np.arange(len(positions))
    leader = max(range(len(forms)), key=lambda i: (forms[i].rate, len(segments[i])))
    order = np.lexsort((offset[leader], *owner[::-1], owner[leader]))
    keys = owner[:, order]
    cuts = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
    groups = np.split(order, cuts)
    return [
        _recut(builder, f, d, groups, owner[i], offset[i]) for i, (f, d) in enumerate(zip(forms, dims, strict=True))
    ]


def _recut(
    builder: Builder, form: Form, dim: int, groups: list[Positions], owner: np.ndarray, offset: np.ndarray
) -> Form:
    blocks = {}
    dims = (*form.dims[:dim], tuple(groups), *form.dims[dim + 1 :])
    for cell in cells(dims):
        positions = groups[cell[dim]]
        old = (*cell[:dim], int(owner[positions[0]]), *cell[dim + 1 :])
        blocks[cell] = take(builder, form.blocks[old], dim, offset[positions])
    return replace(form, dims=dims, blocks=blocks)


def unify(builder: Builder, blocks: Sequence[Block], dims: Sequence[int]) -> list[Block]:
    """Give dim `dims[i]` of `blocks[i]` the same labels everywhere, splitting labels where needed.

    The blocks must not share labels yet (see `fresh`), except for labels they are to share.
    """
    result = list(blocks)
    lists = [block.labels[d] for block, d in zip(blocks, dims, strict=True)]
    if any([x.size for x in ls] != [x.size for x in lists[0]] for ls in lists[1:]):
        result = [without_ones(builder, block, d) for block, d in zip(result, dims, strict=True)]
        lists = [block.labels[d] for block, d in zip(result, dims, strict=True)]
        bounds = sorted({p for ls in lists for p in _bounds(ls)})
        chain = all(high % low == 0 for low, high in itertools.pairwise(bounds))
        for i, d in enumerate(dims):
            result[i] = split_at(builder, result[i], d, bounds) if chain else flatten_labels(builder, result[i], d)
        lists = [block.labels[d] for block, d in zip(result, dims, strict=True)]
    for i in range(1, len(result)):
        names = {old: new for old, new in zip(lists[i], lists[0], strict=True) if old is not new}
        result[i] = rename(result[i], names)
    return result


def without_ones(builder: Builder, block: Block, dim: int) -> Block:
    """Drop labels of size 1 from a dim."""
    ones = {x: None for x in block.labels[dim] if x.size == 1}
    return with_labels(drop_axes(builder, block, ones), dim, tuple(x for x in block.labels[dim] if x.size > 1))


def drop_axes(builder: Builder, block: Block, labels: Mapping[Label, object]) -> Block:
    """Remove axes of size 1 from all factors."""

    def build(f: Factor) -> Factor:
        left = tuple(x for x in f.labels if x not in labels)
        return Factor(builder.reshape(f.node, [x.size for x in left]), left)

    return map_factors(block, labels, build) if labels else block


def _bounds(labels: Labels) -> list[int]:
    """Products of trailing label sizes: where a row-major index wraps."""
    return [math.prod(x.size for x in labels[i:]) for i in range(len(labels))]


def split_at(builder: Builder, block: Block, dim: int, bounds: Sequence[int]) -> Block:
    """Split labels of one dim so that its row-major index wraps at every one of `bounds` that divides it."""
    for label in block.labels[dim]:
        at = block.labels[dim].index(label)
        inner = math.prod(x.size for x in block.labels[dim][at + 1 :])
        inside = sorted({p // inner for p in bounds if inner < p < inner * label.size and p % inner == 0})
        steps = [1, *inside, label.size]
        if inside and all(high % low == 0 for low, high in itertools.pairwise(steps)):
            sizes = [high // low for low, high in itertools.pairwise(steps)][::-1]
            block = split_label(builder, block, dim, label, sizes)
    return block
