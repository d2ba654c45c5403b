"""Joins: blocks set side by side as one tensor, forms side by side as one form; and segments taken apart again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankhoist.compiler.algebra import folds, spans
from rankhoist.compiler.algebra.cuts import flatten_labels, refine, take, unify
from rankhoist.compiler.algebra.forms import (
    ROW,
    Block,
    Cell,
    Decline,
    Factor,
    Form,
    Label,
    Positions,
    Span,
    Term,
    cells,
    count,
    fresh,
    one_block,
    whole,
)
from rankhoist.compiler.algebra.grid import constant_form, share_labels
from rankhoist.compiler.algebra.moves import ordered, replaced
from rankhoist.compiler.algebra.products import arrange
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized, varies
from rankhoist.compiler.graph.node import Node, Rate, aten


def _together(segments: Sequence[Positions]) -> Positions:
    return spans.joined(segments) if isinstance(segments[0], Span) else np.concatenate(segments)


def join_blocks(builder: Builder, parts: Sequence[Block], dim: int) -> Block:
    """Settled blocks side by side along `dim`, as one tensor; its axes are in the order of the largest part's."""
    flat = [flatten_labels(builder, p, dim) for p in [parts[0], *(fresh(p) for p in parts[1:])]]
    for d in range(len(flat[0].labels)):
        if d != dim:
            flat = unify(builder, flat, [d] * len(flat))
    lead = max(flat, key=lambda p: (p.rate.per_candidate, math.prod(p.factor.node.shape)))
    first = [x for x in lead.factor.labels if x not in lead.labels[dim]]
    used = {x for p in flat for x in p.factor.labels}
    others = [*first, *(x for d, own in enumerate(lead.labels) if d != dim for x in own if x in used - set(first))]
    at = next((i for i, x in enumerate(lead.factor.labels) if x in lead.labels[dim]), 0)
    nodes = []
    for p in flat:
        order = [*others[:at], *p.labels[dim], *others[at:]]
        nodes.append(expand(builder, arrange(builder, p.factor, order), [x.size for x in order]))
    label = Label(sum(n.shape[at] for n in nodes))
    factor = Factor(builder.cat(nodes, at), (*others[:at], label, *others[at:]))
    return one_block(factor, replaced(flat[0].labels, dim, (label,)))


def join_terms(builder: Builder, parts: Sequence[Block], dim: int) -> Block:
    """Blocks of like terms side by side along `dim`, unevaluated. Law: `[a x + b, c y + d] = [a, c] [x, y] + [b, d]`.

    A factor that all parts have, and that is constant along `dim`, is one of the whole.
    """
    if all(p.settled for p in parts):
        return join_blocks(builder, parts, dim)
    terms = parts[0].terms
    at = [(t, f) for t, term in enumerate(terms) for f in range(len(term.factors))]
    made = share_labels(builder, [_join_factors(builder, parts, dim, t, f) for t, f in at])
    factors = {place: block.factor for place, block in zip(at, made, strict=True)}
    own = (tuple(factors[t, f] for f in range(len(term.factors))) for t, term in enumerate(terms))
    return Block(made[0].labels, tuple(Term(x, term.scale) for x, term in zip(own, terms, strict=True)))


def _join_factors(builder: Builder, parts: Sequence[Block], dim: int, t: int, f: int) -> Block:
    """One factor of each, of the same place."""
    factors = [p.terms[t].factors[f] for p in parts]
    first, labels = factors[0], parts[0].labels
    if not set(labels[dim]) & set(first.labels) and all(x.node is first.node for x in factors):
        length = sum(math.prod(x.size for x in p.labels[dim]) for p in parts)
        return one_block(first, replaced(labels, dim, (Label(length),)))
    return join_blocks(builder, [one_block(x, p.labels) for x, p in zip(factors, parts, strict=True)], dim)


def expand(builder: Builder, node: Node, shape: Sequence[Sized]) -> Node:
    """Broadcast axes of size 1 after the row axis (a view)."""
    if tuple(shape) == node.shape:
        return node
    if node.rate is Rate.WEIGHT and varies(shape):  # how long it is depends on the call
        node = builder.rowwise(node, Rate.REQUEST)
    sizes = ([-1] if node.rate is not Rate.WEIGHT else []) + list(shape)
    return builder.call(aten.expand.default, (node, sizes), node.rate, shape, node.dtype, free=True)


def join_segments(builder: Builder, form: Form, dim: int) -> Form:
    """All segments of `dim` become one, in order of position where that costs nothing."""
    order, segments = list(range(len(form.dims[dim]))), form.dims[dim]
    if not isinstance(segments[0], Span):
        order.sort(key=lambda k: int(segments[k][0]))
    return join_groups(builder, form, dim, [order])


def join_groups(builder: Builder, form: Form, dim: int, groups: Sequence[Sequence[int]]) -> Form:
    """The segments of `dim` that form a group become one, with their positions side by side."""
    segments = tuple(_together([form.dims[dim][k] for k in group]) for group in groups)
    dims = replaced(form.dims, dim, segments)
    blocks = {}
    for cell in cells(dims):
        parts = [form.blocks[replaced(cell, dim, k)] for k in groups[cell[dim]]]
        blocks[cell] = join_terms(builder, parts, dim) if len(parts) > 1 else parts[0]
    return replace(form, dims=dims, blocks=blocks)


def in_position_order(builder: Builder, form: Form, dim: int) -> Form:
    """A dim of one segment with its positions ascending."""
    (positions,) = form.dims[dim]
    if isinstance(positions, Span) or (positions == np.arange(len(positions))).all():
        return form
    blocks = {cell: take(builder, block, dim, np.argsort(positions)) for cell, block in form.blocks.items()}
    return replace(form, dims=replaced(form.dims, dim, whole(len(positions))), blocks=blocks)


def segment(form: Form, dim: int, k: int) -> Form:
    """Segment `k` of a dim as a form of its own, its positions numbered from 0."""
    dims = replaced(form.dims, dim, whole(count(form.dims[dim][k])))
    blocks = {replaced(cell, dim, 0): block for cell, block in form.blocks.items() if cell[dim] == k}
    return replace(form, dims=dims, blocks=blocks)


def segments(form: Form, dim: int) -> list[Form]:
    """All of them."""
    return [segment(form, dim, k) for k in range(len(form.dims[dim]))]


def assemble(builder: Builder, form: Form, dim: int, parts: Sequence[Form]) -> Form:
    """The inverse of `segment`: parts in place of the segments of a dim; all other dims are cut alike."""
    axes = [f.layout for f in parts]
    if any(len(a) != len(form.layout) for a in axes):
        raise Decline(f"parts of {form.axes} with other axes")
    aligned = [ordered(p) for p in parts]
    own = ordered(form)
    at = [d for e in form.layout for d in e if d != ROW].index(dim)
    for other in range(len(own.dims)):
        if other != at:
            aligned = refine(builder, aligned, [other] * len(aligned))
    dims = replaced(aligned[0].dims, at, own.dims[at])
    blocks = {}
    for k, part in enumerate(aligned):
        for cell, block in part.blocks.items():
            blocks[replaced(cell, at, k)] = block
    return Form(dims, blocks, own.layout, form.dtype)


def along_axis(builder: Builder, forms: Sequence[Form], axis: int) -> Form:
    """Forms side by side along an original axis that holds no rows; those without a position there are left out."""
    forms = [ordered(f) for f in folds.alike(builder, forms)]
    dim = forms[0].dim(axis)
    return side_by_side(builder, [f for f in forms if f.extents[axis] != (0, False)] or forms[:1], dim)


def side_by_side(builder: Builder, forms: Sequence[Form], dim: int) -> Form:
    """Forms along one dim, in order, folds and all others alike: their segments follow one another."""
    forms = [ordered(f) for f in forms]
    shapes = [
        tuple(tuple(d if d == ROW else f.sizes[d] if d != dim else 0 for d in e) for e in f.layout) for f in forms
    ]
    for f, shape in zip(forms, shapes, strict=True):
        if shape != shapes[0]:
            raise Decline(f"joins tensors that fold rows differently: {forms[0].axes} and {f.axes}")
    for other in range(len(forms[0].dims)):
        if other != dim:
            forms = refine(builder, forms, [other] * len(forms))
    segments: list[Positions] = []
    length = sum(f.sizes[dim] for f in forms)
    blocks: dict[Cell, Block] = {}
    offset = 0
    for f in forms:
        for cell, block in f.blocks.items():
            blocks[replaced(cell, dim, cell[dim] + len(segments))] = block
        moved = spans.of(f.dims[dim], offset) if varies([length]) else [p + offset for p in f.dims[dim]]
        segments += moved
        offset += f.sizes[dim]
    return Form(replaced(forms[0].dims, dim, tuple(segments)), blocks, forms[0].layout, forms[0].dtype)


def padded(builder: Builder, value: Form, axis: int, low: int, high: int, number: float) -> Form:
    """So many positions of one number before an axis and behind it."""
    sides = [_constant_like(builder, value, axis, size, number) for size in (low, high)]
    return along_axis(builder, [p for p in (sides[0], value, sides[1]) if p is not None], axis)


def with_one_more(builder: Builder, value: Form, dim: int, number: float) -> tuple[Form, int]:
    """A form to reduce along a dim, and that dim; where its length varies it may be 0, so it has one position more."""
    if not varies([value.sizes[dim]]):
        return value, dim
    axis = value.axis(dim)
    value = padded(builder, value, axis, 0, 1, number)
    return value, value.dim(axis)


def _constant_like(builder: Builder, value: Form, axis: int, size: int, number: float) -> Form | None:
    """So many positions of a number, which has no extent: the rows may be folded with whatever they are."""
    if size <= 0:
        return None
    sizes = replaced(value.sizes, value.dim(axis), size)
    return replace(constant_form(builder, number, value.dtype, [(n, False) for n in sizes]), layout=value.layout)
