"""Scores that a mask has filled with a finite number, or added one to, and the condition on which they weigh nothing.

Law: `exp(f - m) = 0` in floating point where `f + GAP < m`. So if the highest score of a query lies that far above
another, its softmax is what it is for `-inf` in place of that one. Scores of a request's queries with its own keys are
known in the request stage. So is a fill, and the stage tells of every request whether the law holds; where a number was
added to a candidate's score, the candidate stage tells it of every row. A plan without the law scores others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial, reduce

import torch

from rankhoist.compiler.algebra import grid, joins
from rankhoist.compiler.algebra.along import by_blocks
from rankhoist.compiler.algebra.bounds import largest
from rankhoist.compiler.algebra.forms import Block, Cell, Decline, Elsewhere, Factor, Form, count, one_block, whole
from rankhoist.compiler.algebra.moves import replaced
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.pointwise import cast, elementwise
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.graph.node import Node, Op, Rate, aten, join

GAP = 746.0  # exp(-746) is 0 in float64, and in every shorter dtype
ROUNDED = 2.0**-7  # of a number, more than any dtype rounds it by


def hidden(originals: OriginalOperators, scores: Form, dim: int) -> Form:
    """Scores with `-inf` in place of what is filled, for queries that see keys of their request and no other; it adds
    the conditions to those of the operator.
    """
    if originals.program.training or originals.workload.stored:
        raise Elsewhere("holds on a condition, which nobody would check")
    value = originals.tidy(originals.settled(originals.tidy(scores)))
    blocks, conditions = dict(value.blocks), []
    for query, row in _rows(value, dim).items():
        fills = {k: number for k, block in row.items() if (number := _fill(originals, block)) is not None}
        seen = [k for k in row if k not in fills]
        if not fills or join(row[k].rate for k in seen) is not Rate.REQUEST:
            continue
        fill = max(fills.values())
        if fill > -GAP:
            raise Decline(f"filled with {fill:g}: for a weight of 0 it has to be {-GAP:g} or less")
        parts = {k: _highest(originals, _alone(value, replaced(query, dim, k)), dim) for k in row}
        peaks = reduce(partial(_each, originals, aten.maximum.default, dtype=value.dtype), [parts[k] for k in seen])
        usual = grid.constant_form(originals.b, fill, value.dtype, [])  # also of what is added to a score of 0
        added = [parts[k] for k in fills if row[k].rate.per_candidate]
        conditions += [_above(originals, peaks, x) for x in (usual, *added)]
        for k in fills:
            nothing = Factor(originals.b.number(-math.inf, value.dtype), ())
            blocks[replaced(query, dim, k)] = one_block(nothing, row[k].labels)
    if not conditions:
        raise Elsewhere("no query of the request has a score that is filled with a finite number")
    originals.conditions += conditions
    return replace(value, blocks=blocks)


def _rows(scores: Form, dim: int) -> dict[Cell, dict[int, Block]]:
    """Blocks of the same queries, by the segment of their keys."""
    found: dict[Cell, dict[int, Block]] = {}
    for cell, block in scores.blocks.items():
        found.setdefault(replaced(cell, dim, 0), {})[cell[dim]] = block
    return found


def _fill(originals: OriginalOperators, block: Block) -> float | None:
    """The number below 0 that a block is filled with, or at most the one that is added to scores of candidates."""
    number = block.factor.number
    if number is None and block.rate.per_candidate:
        number = largest(originals, block.factor.node)
    return number if number is not None and -math.inf < number < 0 else None


def _alone(form: Form, cell: Cell) -> Form:
    """One cell as a form of its own."""
    dims = tuple(whole(count(form.dims[d][k])) for d, k in enumerate(cell))
    return replace(form, dims=dims, blocks={(0,) * len(cell): form.blocks[cell]})


def _highest(originals: OriginalOperators, part: Form, dim: int) -> Form:
    """The largest along a dim, which keeps its axis; of nothing, -inf."""
    part, dim = joins.with_one_more(originals.b, part, dim, -math.inf)

    def amax(x: Form, axes: list[int]) -> Value:
        return originals.operate(aten.amax.default, [x, axes, True], {})

    made: Form = by_blocks(originals, part, [dim], amax, of_numbers=True)
    return made


def _each(originals: OriginalOperators, op: Op, *operands: Value, dtype: torch.dtype) -> Form:
    return elementwise(originals, op, operands, {}, dtype)


def above(originals: OriginalOperators, peaks: Form, fill: float) -> Node:
    """Whether all of these highest scores lie far enough above a number that others are filled with."""
    holds = _above(originals, peaks, grid.constant_form(originals.b, fill, peaks.dtype, []))
    return originals.b.rowwise(holds, join((holds.rate, Rate.REQUEST)))


def _above(originals: OriginalOperators, peaks: Form, hidden: Form) -> Node:
    """Whether all elements of a request, or of a row, lie far enough above what is hidden, as their dtype has it:
    `[R]` or `[N]`, false where one is no number.
    """
    each, exact = partial(_each, originals), torch.float64
    least = each(aten.sub.Tensor, cast(originals, peaks, exact), GAP, dtype=exact)
    if hidden.rate.per_candidate:  # once per request a number that is low enough in the dtype of the scores
        less = each(aten.mul.Tensor, each(aten.abs.default, least, dtype=exact), ROUNDED, dtype=exact)
        least = cast(originals, each(aten.sub.Tensor, least, less, dtype=exact), peaks.dtype)
    else:
        hidden = cast(originals, hidden, exact)
    above = originals.node(each(aten.gt.Tensor, least, hidden, dtype=torch.bool))
    flat = originals.b.reshape(above, [math.prod(above.shape)])
    return originals.b.call(aten.all.dim, (flat, 1), above.rate, (), torch.bool)
