"""Zeros of what no training changes, in a product that sums: fixed graphs, groups of fields, constant pooling.

Law, for finite x: `sum_j A_ij x_j = sum over j of the context of A_ij x_j` where `A_ij = 0` for all j of the candidate.
So places of the result that no candidate's position reaches are the request's: A is cut into these and the others, and
what of it is 0 throughout is the number 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankhoist.compiler.algebra.cuts import take
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import ROW, Block, Factor, Form, Positions, cells, one_block
from rankhoist.compiler.algebra.known import LARGEST, known
from rankhoist.compiler.algebra.numbers import infinities
from rankhoist.compiler.graph.lengths import varies


def cut_at_zeros(evaluator: Evaluator, factors: Sequence[Form]) -> list[Form]:
    """The factors of a product, their axes alike; those of weights are cut where their zeros keep candidates out."""
    result = list(factors)
    for i, factor in enumerate(factors):
        if factor.of_weights and any(f.mixed for f in factors):
            result[i] = _cut(evaluator, factor, [f for f in factors if f is not factor])
    return result


def _cut(evaluator: Evaluator, weight: Form, others: Sequence[Form]) -> Form:
    """The same weight, in parts that are 0 and parts that are not; as it is where that keeps no candidate out."""
    if any(varies(f.sizes) for f in (weight, *others)) or math.prod(weight.sizes) > LARGEST:
        return weight
    if any(ROW in entry or len(theirs) > 1 for f in (weight, *others) for entry, theirs in _axes(weight, f)):
        return weight
    solid = evaluator.solid(weight)
    (block,) = solid.blocks.values()
    found = known(evaluator, evaluator.node(solid))
    if found is None:
        return weight
    zero = (found.sure & (found.values == 0)).expand(solid.sizes).numpy()
    moving = _moving(solid, others)
    if not (zero & moving).any():
        return weight
    groups = [_groups(key) for key in _keys(solid, others, moving, ~zero & moving)]
    blocks, decided = {}, False
    for cell in cells(groups):
        own = [segments[k] for segments, k in zip(groups, cell, strict=True)]
        blocks[cell] = _part(evaluator, block, own)
        if zero[np.ix_(*own)].all():
            number = Factor(evaluator.b.number(0.0, solid.dtype), ())
            blocks[cell] = one_block(number, blocks[cell].labels)
            decided |= bool(moving[np.ix_(*own)].any())
    if not decided or any(infinities(evaluator, b) for f in others for b in f.blocks.values()):
        return weight
    evaluator.pin([block.factor.node])
    return replace(solid, dims=tuple(groups), blocks=blocks)


def _part(evaluator: Evaluator, block: Block, positions: Sequence[Positions]) -> Block:
    """The block at some positions of every dim."""
    for dim, own in enumerate(positions):
        block = take(evaluator.b, block, dim, own)
    return block


def _moving(weight: Form, others: Sequence[Form]) -> np.ndarray:
    """Which elements of the weight something meets that exists per candidate."""
    result = np.zeros(weight.sizes, dtype=bool)
    for form in others:
        shared = _shared(weight, form)
        for cell, block in form.blocks.items():
            if block.rate.per_candidate:
                own = [form.dims[e][cell[e]] if e is not None else slice(None) for e in shared]
                result[tuple(np.ix_(*(np.arange(n)[p] for n, p in zip(weight.sizes, own, strict=True))))] = True
    return result


def _shared(weight: Form, form: Form) -> list[int | None]:
    """For every dim of the weight the other's dim that lies along it, None where the other has none."""
    met: list[int | None] = [None] * len(weight.dims)
    for entry, theirs in _axes(weight, form):
        if theirs and theirs != (ROW,) and form.sizes[theirs[0]] == weight.sizes[entry[0]]:
            met[entry[0]] = theirs[0]
    return met


def _axes(weight: Form, form: Form) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Original axes along which the weight is more than broadcast: its dims, and the other's."""
    return [(own, theirs) for own, theirs in zip(weight.layout, form.layout, strict=True) if own]


def _keys(weight: Form, others: Sequence[Form], moving: np.ndarray, reached: np.ndarray) -> list[np.ndarray]:
    """For every dim, what tells its positions apart: whether they are a candidate's or, where they are of the weight
    alone, whether one reaches them.
    """
    met = [any(e is not None for e in at) for at in zip(*(_shared(weight, f) for f in others), strict=True)]
    axes = range(len(weight.dims))
    rest = [tuple(a for a in axes if a != d) for d in axes]
    return [np.asarray((moving if met[d] else reached).any(axis=rest[d])) for d in axes]


def _groups(key: np.ndarray) -> tuple[Positions, ...]:
    return tuple(p for p in (np.flatnonzero(key), np.flatnonzero(~key)) if len(p))
