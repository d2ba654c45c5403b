"""Scores that a mask has filled with a finite number, and the condition on which they weigh nothing.

Law: `exp(f - m) = 0` in floating point where `f + GAP < m`. So if the highest score of a query lies that far above the
fill, its softmax is what it is for `-inf` in place of the fill. Scores of a request's queries with its own keys are
known in the request stage, so that it tells of every request whether the law holds; a plan without it scores others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

import torch

from rankhoist.compiler.algebra.along import by_blocks
from rankhoist.compiler.algebra.forms import Block, Cell, Decline, Elsewhere, Factor, Form, one_block, whole
from rankhoist.compiler.algebra.moves import replaced
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.pointwise import elementwise
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, aten, join

GAP = 746.0  # exp(-746) is 0 in float64, and in every shorter dtype


def hidden(originals: OriginalOperators, scores: Form, dim: int) -> Form:
    """Scores with `-inf` in place of what is filled, for queries that see keys of their request and no other; it adds
    the condition to those of the operator.
    """
    if originals.program.training or originals.workload.stored:
        raise Elsewhere("holds on a condition, which nobody would check")
    value = originals.tidy(originals.settled(originals.tidy(scores)))
    blocks, conditions = dict(value.blocks), []
    for query, row in _rows(value, dim).items():
        fills = {k: number for k, block in row.items() if (number := _fill(block)) is not None}
        seen = {k: block for k, block in row.items() if k not in fills}
        if not fills or join(block.rate for block in seen.values()) is not Rate.REQUEST:
            continue
        fill = max(fills.values())
        if fill > -GAP:
            raise Decline(f"filled with {fill:g}: for a weight of 0 it has to be {-GAP:g} or less")
        peaks = [_highest(originals, _alone(value, replaced(query, dim, k)), dim) for k in seen]
        conditions.append(_above(originals, reduce(lambda x, y: _larger(originals, x, y), peaks), fill))
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


def _fill(block: Block) -> float | None:
    """The number that a block is filled with, if it is one below 0."""
    number = block.factor.number
    return number if number is not None and -math.inf < number < 0 else None


def _alone(form: Form, cell: Cell) -> Form:
    """One cell as a form of its own."""
    dims = tuple(whole(len(form.dims[d][k])) for d, k in enumerate(cell))
    return replace(form, dims=dims, blocks={(0,) * len(cell): form.blocks[cell]})


def _highest(originals: OriginalOperators, part: Form, dim: int) -> Form:
    """The largest along a dim, which keeps its axis."""

    def largest(x: Form, axes: list[int]) -> Value:
        return originals.operate(aten.amax.default, [x, axes, True], {})

    made: Form = by_blocks(originals, part, [dim], largest, of_numbers=True)
    return made


def _larger(originals: OriginalOperators, x: Form, y: Form) -> Form:
    return elementwise(originals, aten.maximum.default, (x, y), {}, x.dtype)


def _above(originals: OriginalOperators, peaks: Form, fill: float) -> Node:
    """Whether all elements of a request lie far enough above the fill, as their dtype has it: `[R]`, false where one is
    no number.
    """
    b, node = originals.b, originals.node(peaks)
    flat = _in_float64(b, b.reshape(node, [math.prod(node.shape)]))
    least = b.pointwise(aten.add.Tensor, (_in_float64(b, b.number(fill, peaks.dtype)), GAP), torch.float64)
    above = b.pointwise(aten.gt.Tensor, (flat, b.reshape(least, [1])), torch.bool)
    return b.call(aten.all.dim, (above, 1), above.rate, (), torch.bool)


def _in_float64(b: Builder, node: Node) -> Node:
    kwargs = {"dtype": torch.float64}
    return b.call(aten._to_copy.default, (node,), node.rate, node.shape, torch.float64, kwargs=kwargs)
