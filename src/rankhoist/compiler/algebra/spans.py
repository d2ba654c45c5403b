"""Dims whose length varies, cut into spans: a history of any length with the candidate behind it.

Soundness: a place is an expression in the lengths, and a dim is cut at one only where the order of its places is the
same for all lengths; else `Decline`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cmp_to_key

import numpy as np
import torch

from rankhoist.compiler.algebra.forms import (
    Block,
    Cell,
    Decline,
    Factor,
    Form,
    Label,
    Positions,
    Span,
    map_factors,
    one_block,
    with_labels,
)
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized, order, varies
from rankhoist.compiler.graph.node import Node


def of(segments: Sequence[Positions], offset: Sized = 0) -> list[Span]:
    """Segments of any dim as spans, moved to begin at `offset`."""
    found = [s if isinstance(s, Span) else Span(len(s), int(s[0])) for s in segments]
    whole = [np.arange(r.first, r.end) for r, s in zip(found, segments, strict=True) if not isinstance(s, Span)]
    if whole and not np.array_equal(np.concatenate(segments), np.concatenate(whole)):
        raise Decline(f"positions of an axis of length {sum(map(len, segments))} do not follow one another")
    return [Span(r.count, r.first + offset) for r in found]


def first(positions: Positions) -> Sized:
    """The first of all places."""
    return positions.first if isinstance(positions, Span) else int(min(positions))


def joined(segments: Sequence[Span]) -> Span:
    """Neighbours as one."""
    return Span(sum(s.count for s in segments), segments[0].first)


def place(index: Sized, size: Sized) -> Sized:
    """A place as slices count it: a negative one from the end, none before the front or behind the end."""
    if isinstance(index, int) and index < 0:
        index = size + index
    if order(index, 0) < 0:
        return 0
    return size if order(index, size) > 0 else index


def taken(builder: Builder, form: Form, dim: int, start: Sized, end: Sized) -> Form:
    """Places `start` to `end` of a dim in spans."""
    parts = _cut(form.dims[dim], [start, end])
    inside = [(k, span) for k, span in parts if order(start, span.first) <= 0 and order(span.end, end) <= 0]
    if not inside:
        raise Decline(f"takes no position of an axis of length {form.sizes[dim]}, which varies")
    return _of_spans(builder, form, dim, inside, -1 * start)


def alike(builder: Builder, forms: Sequence[Form], dims: Sequence[int]) -> list[Form]:
    """Dim `dims[i]` of `forms[i]` cut at the places of all."""
    given = [f.dims[d] for f, d in zip(forms, dims, strict=True)]
    places = [place for spans in given for span in spans for place in (span.first, span.end)]
    return [_of_spans(builder, f, d, _cut(spans, places)) for f, d, spans in zip(forms, dims, given, strict=True)]


def _cut(spans: Sequence[Span], places: Sequence[Sized]) -> list[tuple[int, Span]]:
    """Runs cut at places, with the number of the span that each is of; some may be empty."""
    found = []
    for k, span in enumerate(spans):
        inner = {p for p in places if order(span.first, p) < 0 and order(p, span.end) < 0}
        ends = [span.first, *sorted(inner, key=cmp_to_key(order)), span.end]
        found += [(k, Span(b - a, a)) for a, b in itertools.pairwise(ends)]
    return found


def _of_spans(builder: Builder, form: Form, dim: int, parts: Sequence[tuple[int, Span]], by: Sized = 0) -> Form:
    """A form with these parts of its spans in place of them, moved by so much."""
    old = form.dims[dim]
    blocks = {}
    for cell, block in form.blocks.items():
        for new, (k, span) in enumerate(parts):
            if k == cell[dim]:
                where = (*cell[:dim], new, *cell[dim + 1 :])
                blocks[where] = _part(builder, block, dim, old[k], span)
    spans = [Span(span.count, span.first + by) for _, span in parts]
    segments: list[Positions] = list(spans)
    if not varies([s.count for s in spans]):
        segments = [np.arange(s.first, s.end) for s in spans]
    return replace(form, dims=(*form.dims[:dim], tuple(segments), *form.dims[dim + 1 :]), blocks=blocks)


def _part(builder: Builder, block: Block, dim: int, of: Span, span: Span) -> Block:
    if span == of:
        return block
    if len(block.labels[dim]) != 1:
        raise Decline(f"cuts an axis of length {of.count}, which varies and is folded")
    (label,), new = block.labels[dim], Label(span.count)

    def build(f: Factor) -> Factor:
        node = f.node
        for axis, own in enumerate(f.labels):
            if own is label:
                node = builder.part(node, axis, span.first - of.first, span.count)
        return Factor(node, tuple(new if own is label else own for own in f.labels))

    return with_labels(map_factors(block, {label: None}, build), dim, (new,))


def triangle(builder: Builder, queries: Sequence[Span], keys: Sequence[Span]) -> Form:
    """True where a query comes after a key or with it, `[queries, keys]`, for spans of both."""
    blocks: dict[Cell, Block] = {}
    for i, q in enumerate(queries):
        for j, k in enumerate(keys):
            labels, node = (Label(q.count), Label(k.count)), _seen(builder, q, k)
            blocks[i, j] = one_block(Factor(node, labels if node.shape else ()), tuple((x,) for x in labels))
    return Form((tuple(queries), tuple(keys)), blocks, ((0,), (1,)), torch.bool)


def _seen(builder: Builder, queries: Span, keys: Span) -> Node:
    if queries == keys and queries.count != 1:
        return builder.lower_triangle(queries.count)
    if order(keys.end, queries.first + 1) <= 0:
        return builder.number(True, torch.bool)
    if order(queries.end, keys.first) <= 0:
        return builder.number(False, torch.bool)
    raise Decline(f"queries {queries.first} to {queries.end} see keys {keys.first} to {keys.end} in part")
