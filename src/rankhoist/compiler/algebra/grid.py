"""Several forms at once: cut alike, broadcast, multiplied, added and summed over dims, all unevaluated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rankhoist.compiler.algebra import folds, spans
from rankhoist.compiler.algebra.cuts import refine, unify
from rankhoist.compiler.algebra.forms import (
    ROW,
    Block,
    Cell,
    Decline,
    Extent,
    Factor,
    Form,
    Label,
    Positions,
    Span,
    Term,
    axis_text,
    cells,
    fresh,
    plain,
    rename,
    row_layout,
    shape_text,
    whole,
    with_labels,
)
from rankhoist.compiler.algebra.moves import drop_dim, insert_dim, reorder
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized
from rankhoist.compiler.graph.node import Rate, aten


@dataclass(frozen=True)
class Aligned:
    """Operands broadcast against each other: common dims and layout; per cell one block each, with the same labels."""

    dims: tuple[tuple[Positions, ...], ...]
    layout: tuple[tuple[int, ...], ...]
    blocks: dict[Cell, list[Block]]


def align(builder: Builder, forms: Sequence[Form]) -> Aligned:
    """Broadcast by PyTorch's rules (axes from the right), cut all operands alike, and share labels."""
    forms = folds.alike(builder, forms)
    layout, places = _broadcast(forms)
    count = len({d for entry in layout for d in entry} - {ROW})
    placed = [_place(builder, f, place, count) for f, place in zip(forms, places, strict=True)]
    for dim in range(count):
        having = [i for i, place in enumerate(places) if dim in place.values()]
        cut = refine(builder, [placed[i] for i in having], [dim] * len(having))
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
        blocks[cell] = share_labels(builder, own, [set(place.values()) for place in places])
    return Aligned(dims, layout, blocks)


def share_labels(builder: Builder, blocks: list[Block], having: Sequence[set[int]] | None = None) -> list[Block]:
    """The same labels in all blocks; `having[i]` are the dims along which block i is not broadcast (default all)."""
    result = [blocks[0], *(fresh(block) for block in blocks[1:])]
    for dim in range(len(blocks[0].labels)):
        members = [i for i in range(len(blocks)) if having is None or dim in having[i]]
        unified = unify(builder, [result[i] for i in members], [dim] * len(members))
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
                shown = f"{axis_text(pattern)} and {axis_text(patterns[leader])}"
                raise Decline(f"operands fold rows differently: axis {axis} is {shown}")
        layout.append(tuple(entry))
    if sum(ROW in entry for entry in layout) > 1:
        raise Decline(f"every row meets every other row: {', '.join(f.axes for f in forms)}")
    return tuple(layout), places


def _pattern(form: Form, entry: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d if d == ROW else form.sizes[d] for d in entry)


def _extent(pattern: tuple[int, ...]) -> int:
    """Size of an axis; -1 in a pattern stands for the rows and never counts as 1."""
    return math.prod(1_000_003 if size == ROW else size for size in pattern)


def _place(builder: Builder, form: Form, place: dict[int, int], count: int) -> Form:
    """Move a form's dims to their common places, dropping those it is broadcast along."""
    for dim in sorted((d for d in range(len(form.dims)) if d not in place), reverse=True):
        form = drop_dim(builder, form, dim)
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


def tensor_form(builder: Builder, tensor: torch.Tensor) -> Form:
    """A tensor known now, without rows."""
    return plain(builder.constant(tensor), tensor.dtype, row_layout(tensor.dim(), rows=False))


def counted(builder: Builder, size: Sized) -> Form:
    """`arange(size)`: counted when it is computed, not kept as a constant."""
    kwargs = {"dtype": torch.int64, "device": builder.device}
    node = builder.call(aten.arange.default, (size,), Rate.WEIGHT, (size,), torch.int64, kwargs=kwargs)
    return plain(node, node.dtype, row_layout(1, rows=False))


def lower_triangle(builder: Builder, scores: Form, places: Positions | None = None) -> Form:
    """True where a query comes after a key or with it, along the last two axes of scores.

    `places` are those of the queries among all, where scores are of some.
    """
    queries, keys = (scores.dims[entry[0]] for entry in scores.layout[-2:])
    if any(isinstance(s, Span) for s in (*queries, *keys)):
        return spans.triangle(builder, spans.of(queries if places is None else [places]), spans.of(keys))
    rows = np.arange(sum(map(len, queries))) if places is None else np.asarray(places)
    seen = rows[:, None] >= np.arange(sum(map(len, keys)))
    return tensor_form(builder, torch.from_numpy(seen))


def multiply(builder: Builder, forms: Sequence[Form], dtype: torch.dtype) -> Form:
    """The product, unevaluated."""
    return map_blocks(align(builder, forms), dtype, multiply_blocks)


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


def total(builder: Builder, forms: Sequence[Form], dtype: torch.dtype, scales: Sequence[float]) -> Form:
    """The scaled sum, unevaluated: all terms side by side."""

    return map_blocks(align(builder, forms), dtype, lambda blocks: add_blocks(blocks, scales))


def add_blocks(blocks: Sequence[Block], scales: Sequence[float]) -> Block:
    """Terms side by side."""
    terms = (replace(t, scale=t.scale * s) for block, s in zip(blocks, scales, strict=True) for t in block.terms)
    return Block(blocks[0].labels, tuple(terms))


def sum_dims(builder: Builder, form: Form, dims: Sequence[int], scale: float = 1.0) -> Form:
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
        shared = share_labels(builder, parts) if len(parts) > 1 else parts
        blocks[cell] = Block(shared[0].labels, tuple(t for p in shared for t in p.terms))
    number = {old: new for new, old in enumerate(left)}
    layout = tuple(tuple(d if d == ROW else number[d] for d in e if d not in gone) for e in form.layout)
    layout = tuple(new for new, old in zip(layout, form.layout, strict=True) if new or not old)
    return Form(new_dims, blocks, layout, form.dtype)


def _summed(term: Term, labels: Sequence[Label], scale: float) -> Term:
    present = {x for f in term.factors for x in f.labels}
    absent = math.prod(x.size for x in labels if x not in present)
    return replace(term, scale=term.scale * absent * scale)


def the_number(form: Form) -> float | None:
    """The one number that a form is everywhere, if it is one."""
    if len(form.blocks) != 1:
        return None
    (block,) = form.blocks.values()
    return block.factor.number if block.settled and not block.factor.labels else None


def constant_form(builder: Builder, value: float, dtype: torch.dtype, shape: Sequence[Extent]) -> Form:
    """A number along axes of the given sizes; nothing of that size ever exists."""
    node = builder.number(value, dtype)
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


def stretched(builder: Builder, value: Form, shape: Sequence[Extent]) -> Form:
    """Broadcast to original axes of the given sizes."""
    lead = len(shape) - len(value.layout)
    value = replace(value, layout=((),) * lead + value.layout)
    grown: list[Extent] = []
    for own, (number, rows) in zip(value.extents, shape, strict=True):
        if own not in ((number, rows), (1, False)):
            raise Decline(f"expands {value.axes} to {shape_text(shape)}, along an axis that is not of size 1")
        grown.append((1, False) if own == (number, rows) else (number, rows))
    target = constant_form(builder, 1.0, value.dtype, grown)
    return map_blocks(align(builder, [value, target]), value.dtype, lambda blocks: blocks[0])


def worth_keeping(block: Block, workload: Workload) -> bool:
    """Whether an unevaluated block can save products: not if its terms are per-candidate tensors along the same axes.

    Such a sum is better evaluated where its author wrote it, also for rounding: sums of large terms that cancel stay
    together. A sum of what is known of the request alone and of what a store keeps of the item costs no products yet.
    """
    own = set(block.visible)
    if workload.stored and len({t.rate for t in block.terms}) > 1 and not any(t.rate is Rate.PAIR for t in block.terms):
        return True
    moving = [t for t in block.terms if t.rate.per_candidate]
    if not moving:
        return False
    if any(len(t.factors) > 1 for t in moving):
        return True
    lengths = [own & set(t.factors[0].labels) for t in moving]
    along = own if len(moving) < len(block.terms) else lengths[0]
    return any(x != along for x in lengths)
