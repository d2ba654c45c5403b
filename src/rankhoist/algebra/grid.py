"""Operations on whole forms: cutting, joining, aligning, multiplying, summing and materialising their blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rankhoist.algebra.contract import arrange, settle
from rankhoist.algebra.forms import (
    ROW,
    Block,
    Cell,
    Factor,
    Form,
    Label,
    Labels,
    Positions,
    Term,
    cells,
    drop_axes,
    flatten_labels,
    fresh,
    one_block,
    refine,
    rename,
    split_at,
    take,
    unify,
    whole,
    with_labels,
)
from rankhoist.algebra.ir import Builder, Node, Rate, Workload, aten, join


class Decline(Exception):  # noqa: N818 - it is an answer, not a mistake
    """A rule that does not apply says why; the original operator then runs on materialised operands."""


# -- dims and layout


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


def drop_dim(b: Builder, form: Form, dim: int) -> Form:
    """Remove a dim of size 1, from its original axis too (an axis left empty disappears)."""
    blocks = {}
    for cell, block in form.blocks.items():
        bare = drop_axes(b, block, dict.fromkeys(block.labels[dim]))
        blocks[cell[:dim] + cell[dim + 1 :]] = Block(block.labels[:dim] + block.labels[dim + 1 :], bare.terms)
    layout = tuple(tuple(d - 1 if d > dim else d for d in e if d != dim) for e in form.layout if e != (dim,))
    return Form(form.dims[:dim] + form.dims[dim + 1 :], blocks, layout, form.dtype)


def take_dim(b: Builder, form: Form, dim: int, index: Positions) -> Form:
    """Positions `index` of one dim, in that order, repeats allowed."""
    size = form.sizes[dim]
    if len(index) == size and (index == np.arange(size)).all():
        return form
    owner, offset = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    for k, positions in enumerate(form.dims[dim]):
        owner[positions], offset[positions] = k, np.arange(len(positions))
    segments, kept = [], []
    for k in range(len(form.dims[dim])):
        places = np.flatnonzero(owner[index] == k)
        if len(places):
            segments.append(_cheap_order(places, offset[index[places]]))
            kept.append(k)
    dims = (*form.dims[:dim], tuple(segments), *form.dims[dim + 1 :])
    blocks = {}
    for cell in cells(dims):
        old = replaced(cell, dim, kept[cell[dim]])
        blocks[cell] = take(b, form.blocks[old], dim, offset[index[segments[cell[dim]]]])
    return replace(form, dims=dims, blocks=blocks)


def _cheap_order(places: Positions, offsets: Positions) -> Positions:
    """List a segment's positions in the order in which the block already has them: then a permutation gathers
    nothing.
    """
    return places[np.argsort(offsets, kind="stable")]


def merge_dims(b: Builder, form: Form, first: int, count: int) -> Form:
    """Dims `first .. first + count - 1` become one, row-major."""
    if count == 1:
        return form
    if count == 0:
        return insert_dim(form, first)
    last = first + count
    sizes = form.sizes[first:last]
    combinations = list(itertools.product(*(range(len(form.dims[d])) for d in range(first, last))))
    segments = []
    for combination in combinations:
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


def split_dim(b: Builder, form: Form, dim: int, sizes: Sequence[int]) -> Form:
    """One dim becomes several, row-major. Declines where a segment is no product of sets along the new dims."""
    count = len(sizes)
    coordinates = [np.unravel_index(positions, sizes) for positions in form.dims[dim]]
    classes = [_classes([c[a] for c in coordinates], sizes[a]) for a in range(count)]
    dims = (*form.dims[:dim], *classes, *form.dims[dim + 1 :])
    owner, offset = np.empty(math.prod(sizes), dtype=np.int64), np.empty(math.prod(sizes), dtype=np.int64)
    for k, positions in enumerate(form.dims[dim]):
        owner[positions], offset[positions] = k, np.arange(len(positions))
    blocks = {}
    for cell in cells(dims):
        chosen = [classes[a][cell[dim + a]] for a in range(count)]
        grid = np.meshgrid(*chosen, indexing="ij")
        flat = np.ravel_multi_index([g.reshape(-1) for g in grid], sizes)
        if (owner[flat] != owner[flat[0]]).any():
            raise Decline("a reshape cuts through a block")
        old = form.blocks[replaced(cell, dim, int(owner[flat[0]]), count)]
        part = take(b, old, dim, offset[flat])
        blocks[cell] = _distribute(b, part, dim, [len(c) for c in chosen])
    layout = tuple(
        tuple(itertools.chain.from_iterable(
            range(dim, dim + count) if d == dim else [d + count - 1 if d > dim else d] for d in entry
        ))
        for entry in form.layout
    )  # fmt: skip
    return Form(dims, blocks, layout, form.dtype)


def _classes(coordinates: list[np.ndarray], size: int) -> tuple[Positions, ...]:
    """Coordinates that the same segments contain, together, in order of appearance."""
    members: list[set[int]] = [set() for _ in range(size)]
    for k, c in enumerate(coordinates):
        for value in np.unique(c):
            members[value].add(k)
    groups: dict[tuple[int, ...], list[int]] = {}
    appearance = dict.fromkeys(int(v) for c in coordinates for v in c[np.sort(np.unique(c, return_index=True)[1])])
    for value in appearance:
        groups.setdefault(tuple(sorted(members[value])), []).append(value)
    return tuple(np.asarray(g) for g in groups.values())


def _distribute(b: Builder, block: Block, dim: int, sizes: Sequence[int]) -> Block:
    """Hand the labels of one dim out to several new dims of the given sizes."""
    bounds = [math.prod(sizes[i:]) for i in range(len(sizes))]
    block = split_at(b, block, dim, bounds)
    parts = _cut_labels(block.labels[dim], sizes)
    if parts is None:
        block = split_at(b, flatten_labels(b, block, dim), dim, bounds)
        parts = _cut_labels(block.labels[dim], sizes)
    assert parts is not None
    return Block((*block.labels[:dim], *parts, *block.labels[dim + 1 :]), block.terms)


def _cut_labels(labels: Labels, sizes: Sequence[int]) -> list[Labels] | None:
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


def replaced(cell: Cell, dim: int, k: int, count: int = 1) -> Cell:
    """The cell with `k` in place of `count` entries from `dim` on."""
    return (*cell[:dim], k, *cell[dim + count :])


# -- several forms at once


@dataclass(frozen=True)
class Aligned:
    """Operands broadcast against each other: common dims and layout; per cell one block each, with the same labels."""

    dims: tuple[tuple[Positions, ...], ...]
    layout: tuple[tuple[int, ...], ...]
    blocks: dict[Cell, list[Block]]


def align(b: Builder, forms: Sequence[Form]) -> Aligned:
    """Broadcast by PyTorch's rules (axes from the right), cut all operands alike, and share labels."""
    layout, places = _broadcast(forms)
    count = len({d for entry in layout for d in entry} - {ROW})
    placed = [_place(b, f, place, count) for f, place in zip(forms, places, strict=True)]
    for dim in range(count):
        having = [i for i, place in enumerate(places) if dim in place.values()]
        cut = refine(b, [placed[i] for i in having], [dim] * len(having))
        for i, form in zip(having, cut, strict=True):
            placed[i] = form
    dims = tuple(
        next(p.dims[d] for p, place in zip(placed, places, strict=True) if d in place.values()) for d in range(count)
    )
    blocks = {}
    for cell in cells(dims):
        own = []
        for form, place in zip(placed, places, strict=True):
            have = set(place.values())
            own.append(form.blocks[tuple(k if d in have else 0 for d, k in enumerate(cell))])
        blocks[cell] = share_labels(b, own, [set(place.values()) for place in places])
    return Aligned(dims, layout, blocks)


def share_labels(b: Builder, blocks: list[Block], having: Sequence[set[int]] | None = None) -> list[Block]:
    """The same labels in all blocks; `having[i]` are the dims along which block i is not broadcast (default all)."""
    result = [blocks[0], *(fresh(block) for block in blocks[1:])]
    for dim in range(len(blocks[0].labels)):
        members = [i for i in range(len(blocks)) if having is None or dim in having[i]]
        unified = unify(b, [result[i] for i in members], [dim] * len(members))
        for i, block in zip(members, unified, strict=True):
            result[i] = block
    for dim in range(len(blocks[0].labels)):
        members = [i for i in range(len(blocks)) if having is None or dim in having[i]]
        labels = result[members[0]].labels[dim]
        result = [with_labels(block, dim, labels) for block in result]
    return result


def _broadcast(forms: Sequence[Form]) -> tuple[tuple[tuple[int, ...], ...], list[dict[int, int]]]:
    """The common layout, and for each form: own dim -> common dim (dims along which it is broadcast are left out)."""
    depth = max(len(f.layout) for f in forms)
    layout: list[tuple[int, ...]] = []
    places: list[dict[int, int]] = [{} for _ in forms]
    count = 0
    for axis in range(depth):
        entries = [f.layout[axis - depth + len(f.layout)] if axis - depth + len(f.layout) >= 0 else () for f in forms]
        patterns = [_pattern(f, e) for f, e in zip(forms, entries, strict=True)]
        leader = max(range(len(forms)), key=lambda i: (ROW in entries[i], _extent(patterns[i]), len(entries[i])))
        entry = []
        for k, d in enumerate(entries[leader]):
            entry.append(d if d == ROW else count)
            if d != ROW:
                for i, own in enumerate(entries):
                    if patterns[i] == patterns[leader]:
                        places[i][own[k]] = count
                count += 1
        for pattern in patterns:
            if pattern != patterns[leader] and _extent(pattern) != 1:
                raise Decline(f"axis {axis}: operands fold rows differently ({pattern} and {patterns[leader]})")
        layout.append(tuple(entry))
    if sum(ROW in entry for entry in layout) > 1:
        raise Decline("every row meets every other row")
    return tuple(layout), places


def _pattern(form: Form, entry: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d if d == ROW else form.sizes[d] for d in entry)


def _extent(pattern: tuple[int, ...]) -> int:
    """Size of an axis; -1 in a pattern stands for the rows and never counts as 1."""
    return math.prod(1_000_003 if size == ROW else size for size in pattern)


def _place(b: Builder, form: Form, place: dict[int, int], count: int) -> Form:
    """Move a form's dims to their common places, dropping those it is broadcast along."""
    for dim in sorted((d for d in range(len(form.dims)) if d not in place), reverse=True):
        form = drop_dim(b, form, dim)
        place_items = {(k - 1 if k > dim else k): v for k, v in place.items()}
        place.clear()
        place.update(place_items)
    order = sorted(place, key=lambda d: place[d])
    form = reorder(form, order)
    common = sorted(place.values())
    for dim in range(count):
        if dim not in common:
            form = insert_dim(form, dim)
    place.clear()
    place.update({v: v for v in common})
    return form


def map_blocks(aligned: Aligned, dtype: torch.dtype, build: Callable[[list[Block]], Block]) -> Form:
    """A form from one new block per cell."""
    return Form(aligned.dims, {c: build(blocks) for c, blocks in aligned.blocks.items()}, aligned.layout, dtype)


def multiply(b: Builder, forms: Sequence[Form], dtype: torch.dtype) -> Form:
    """The product, unevaluated."""
    return map_blocks(align(b, forms), dtype, multiply_blocks)


def multiply_blocks(blocks: Sequence[Block]) -> Block:
    """Terms times terms. Law: `(sum_i t_i)(sum_j u_j) = sum_ij t_i u_j`."""
    terms = []
    for chosen in itertools.product(*(block.terms for block in blocks)):
        parts = [chosen[0], *(_private_fresh(t, blocks[0]) for t in chosen[1:])]
        factors = tuple(itertools.chain.from_iterable(t.factors for t in parts))
        terms.append(Term(factors, math.prod(t.scale for t in parts)))
    return Block(blocks[0].labels, tuple(terms))


def _private_fresh(term: Term, block: Block) -> Term:
    """Summed labels of one term must not meet those of another."""
    visible = set(block.visible)
    private = {x for f in term.factors for x in f.labels if x not in visible}
    return rename(Block((), (term,)), {x: Label(x.size) for x in private}).terms[0]


def total(b: Builder, forms: Sequence[Form], dtype: torch.dtype, scales: Sequence[float]) -> Form:
    """The scaled sum, unevaluated: all terms side by side."""

    def build(blocks: list[Block]) -> Block:
        terms = (replace(t, scale=t.scale * s) for block, s in zip(blocks, scales, strict=True) for t in block.terms)
        return Block(blocks[0].labels, tuple(terms))

    return map_blocks(align(b, forms), dtype, build)


def sum_dims(b: Builder, form: Form, dims: Sequence[int], scale: float = 1.0) -> Form:
    """Sum over dims, unevaluated: their labels become summed ones; a term constant along a label counts its size."""
    gone = set(dims)
    left = [d for d in range(len(form.dims)) if d not in gone]
    new_dims = tuple(form.dims[d] for d in left)
    blocks = {}
    for cell in cells(new_dims):
        parts = []
        for inner in itertools.product(*(range(len(form.dims[d])) for d in sorted(gone))):
            at = dict(zip(left, cell, strict=True)) | dict(zip(sorted(gone), inner, strict=True))
            block = form.blocks[tuple(at[d] for d in range(len(form.dims)))]
            summed = [x for d in gone for x in block.labels[d]]
            terms = tuple(_summed(t, summed, scale) for t in block.terms)
            parts.append(Block(tuple(block.labels[d] for d in left), terms))
        shared = share_labels(b, parts) if len(parts) > 1 else parts
        blocks[cell] = Block(shared[0].labels, tuple(t for p in shared for t in p.terms))
    number = {old: new for new, old in enumerate(left)}
    layout = tuple(tuple(d if d == ROW else number[d] for d in e if d not in gone) for e in form.layout)
    layout = tuple(new for new, old in zip(layout, form.layout, strict=True) if new or not old)
    return Form(new_dims, blocks, layout, form.dtype)


def _summed(term: Term, labels: Sequence[Label], scale: float) -> Term:
    present = {x for f in term.factors for x in f.labels}
    absent = math.prod(x.size for x in labels if x not in present)
    return replace(term, scale=term.scale * absent * scale)


# -- joining blocks


def settle_all(b: Builder, form: Form, workload: Workload) -> Form:
    """Every block evaluated to one tensor."""
    return replace(form, blocks={cell: settle(b, block, workload) for cell, block in form.blocks.items()})


def coalesce(b: Builder, form: Form, dim: int, workload: Workload) -> Form:
    """Join the segments of `dim` that are computed equally often into one: at most one of each stage remains.

    Position lists of the joined segments are kept, so an interleaved layout is sorted out here, once, at compile time.
    """
    if len(form.dims[dim]) == 1:
        return form
    others = list(cells([*form.dims[:dim], *form.dims[dim + 1 :]]))
    kinds: dict[object, list[int]] = {}
    for k in range(len(form.dims[dim])):
        column = [form.blocks[replaced(cell, dim, k, 0)] for cell in others]
        joinable = all(block.pure and set(block.labels[dim]) <= set(block.factor.labels) for block in column)
        kind = tuple((_stage(x), _present(x, dim)) for x in column) if joinable else (k,)
        kinds.setdefault(kind, []).append(k)
    if len(kinds) == len(form.dims[dim]):
        return form
    groups = list(kinds.values())
    segments = tuple(np.concatenate([form.dims[dim][k] for k in group]) for group in groups)
    dims = (*form.dims[:dim], segments, *form.dims[dim + 1 :])
    blocks = {}
    for cell in cells(dims):
        parts = [form.blocks[replaced(cell, dim, k)] for k in groups[cell[dim]]]
        blocks[cell] = join_blocks(b, parts, dim) if len(parts) > 1 else parts[0]
    return replace(form, dims=dims, blocks=blocks)


def _stage(block: Block) -> str:
    return block.rate.stage


def _present(block: Block, dim: int) -> tuple[bool, ...]:
    """Which other dims a pure block really extends along (those it is constant along stay free of cost)."""
    labels = set(block.factor.labels)
    return tuple(all(x in labels for x in own) for d, own in enumerate(block.labels) if d != dim)


def join_blocks(b: Builder, parts: Sequence[Block], dim: int) -> Block:
    """Pure blocks side by side along `dim`, as one tensor."""
    flat = [flatten_labels(b, p, dim) for p in [parts[0], *(fresh(p) for p in parts[1:])]]
    for d in range(len(flat[0].labels)):
        if d != dim:
            flat = unify(b, flat, [d] * len(flat))
    used = {x for p in flat for x in p.factor.labels}
    others = [x for d, own in enumerate(flat[0].labels) if d != dim for x in own if x in used]
    nodes = []
    for p in flat:
        node = arrange(b, p.factor, [*p.labels[dim], *others])
        shape = [*(x.size for x in p.labels[dim]), *(x.size for x in others)]
        nodes.append(expand(b, node, shape))
    label = Label(sum(n.shape[0] for n in nodes))
    factor = Factor(b.cat(nodes, 0), (label, *others))
    return one_block(factor, (*flat[0].labels[:dim], (label,), *flat[0].labels[dim + 1 :]))


def expand(b: Builder, node: Node, shape: Sequence[int]) -> Node:
    """Broadcast axes of size 1 after the row axis (a view)."""
    if tuple(shape) == node.shape:
        return node
    sizes = ([-1] if node.rate is not Rate.WEIGHT else []) + list(shape)
    return b.call(aten.expand.default, (node, sizes), node.rate, shape, node.dtype, free=True)


def materialise(b: Builder, form: Form, workload: Workload) -> Node:
    """The whole value as one canonical node `[rows, *dims]`, at the highest rate of its blocks."""
    form = settle_all(b, form, workload)
    for dim in range(len(form.dims)):
        if len(form.dims[dim]) > 1:
            form = join_segments(b, form, dim)
    form = _all_in_order(b, form)
    block = next(iter(form.blocks.values()))
    shape = [x.size for x in block.visible]
    node = expand(b, arrange(b, block.factor, block.visible), shape)
    return b.reshape(node, form.sizes)


def join_segments(b: Builder, form: Form, dim: int) -> Form:
    """All segments of `dim` become one, in order of position where that costs nothing."""
    order = sorted(range(len(form.dims[dim])), key=lambda k: int(form.dims[dim][k][0]))
    positions = np.concatenate([form.dims[dim][k] for k in order])
    dims = (*form.dims[:dim], (positions,), *form.dims[dim + 1 :])
    blocks = {}
    for cell in cells(dims):
        parts = [form.blocks[replaced(cell, dim, k)] for k in order]
        blocks[cell] = join_blocks(b, parts, dim)
    return replace(form, dims=dims, blocks=blocks)


def in_position_order(b: Builder, form: Form, dim: int) -> Form:
    """A dim of one segment with its positions ascending."""
    (positions,) = form.dims[dim]
    if (positions == np.arange(len(positions))).all():
        return form
    blocks = {cell: take(b, block, dim, np.argsort(positions)) for cell, block in form.blocks.items()}
    return replace(form, dims=(*form.dims[:dim], whole(len(positions)), *form.dims[dim + 1 :]), blocks=blocks)


def _all_in_order(b: Builder, form: Form) -> Form:
    for dim in range(len(form.dims)):
        form = in_position_order(b, form, dim)
    return form


def solid(b: Builder, form: Form, workload: Workload) -> Form:
    """The same value as one block."""
    if len(form.blocks) == 1 and form.settled:
        return _all_in_order(b, form)
    node = materialise(b, form, workload)
    labels = tuple(Label(s) for s in form.sizes)
    block = one_block(Factor(node, labels), tuple((x,) for x in labels))
    return Form(tuple(whole(s) for s in form.sizes), {(0,) * len(labels): block}, form.layout, form.dtype)


def highest(forms: Sequence[Form]) -> Rate:
    """The rate at which something that reads all of `forms` is computed."""
    return join(f.rate for f in forms)


def constant_form(b: Builder, value: float, dtype: torch.dtype, shape: Sequence[tuple[int, bool]]) -> Form:
    """A number along axes of the given sizes, each `(size, times the row count?)`; nothing of that size ever exists."""
    node = b.number(value, dtype)
    sizes: list[int] = []
    layout: list[tuple[int, ...]] = []
    for size, rows in shape:
        entry = [ROW] if rows else []
        if size != 1 or not rows:
            entry.append(len(sizes))
            sizes.append(size)
        layout.append(tuple(entry))
    block = Block(tuple((Label(s),) for s in sizes), (Term((Factor(node, ()),)),))
    return Form(tuple(whole(s) for s in sizes), {(0,) * len(sizes): block}, tuple(layout), dtype)


def worth_keeping(block: Block) -> bool:
    """Whether an unevaluated block can save work: not if all terms are per-candidate tensors along the same axes."""
    own = set(block.visible)
    moving = [t for t in block.terms if t.rate.per_candidate]
    if not moving:
        return False
    if any(len(t.factors) > 1 or set(t.factors[0].labels) - own for t in moving) or len(moving) < len(block.terms):
        return True
    return any(set(t.factors[0].labels) != set(moving[0].factors[0].labels) for t in moving)


def segment(form: Form, dim: int, k: int) -> Form:
    """Segment `k` of a dim as a form of its own, its positions numbered from 0."""
    dims = (*form.dims[:dim], whole(len(form.dims[dim][k])), *form.dims[dim + 1 :])
    blocks = {(*cell[:dim], 0, *cell[dim + 1 :]): block for cell, block in form.blocks.items() if cell[dim] == k}
    return replace(form, dims=dims, blocks=blocks)


def assemble(b: Builder, form: Form, dim: int, parts: Sequence[Form]) -> Form:
    """The inverse of `segment`: parts in place of the segments of a dim; all other dims are cut alike."""
    axes = [f.layout for f in parts]
    if any(len(a) != len(form.layout) for a in axes):
        raise Decline("parts with other axes")
    aligned = [ordered(p) for p in parts]
    own = ordered(form)
    at = [d for e in form.layout for d in e if d != ROW].index(dim)
    for other in range(len(own.dims)):
        if other != at:
            aligned = refine(b, aligned, [other] * len(aligned))
    dims = (*aligned[0].dims[:at], own.dims[at], *aligned[0].dims[at + 1 :])
    blocks = {}
    for k, part in enumerate(aligned):
        for cell, block in part.blocks.items():
            blocks[replaced(cell, at, k)] = block
    return Form(dims, blocks, own.layout, form.dtype)


def with_axes(form: Form, axes: Sequence[int]) -> Form:
    """New original axes of size 1 at the given places, in ascending order."""
    for axis in axes:
        dim = len(form.dims)
        form = insert_dim(form, dim, (*form.layout[:axis], (dim,), *form.layout[axis:]))
    return form
