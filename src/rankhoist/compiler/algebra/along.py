"""Operators along dims, and of single elements, block by block.

Law: where no cut goes through the dims, the operator of blocks is the blocks of the operator. A block is given to the
operator as a form of one tensor, without what it does not depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.algebra import grid, joins, moves, reads
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import (
    ROW,
    Block,
    Cell,
    Elsewhere,
    Factor,
    Form,
    Label,
    cells,
    one_block,
    plain,
    row_layout,
    whole,
)
from rankhoist.compiler.algebra.products import arrange
from rankhoist.compiler.graph.node import Node, Rate

Sizes = list[int | None]  # per dim: its new size, `None` for unchanged, -1 for gone


def by_blocks(
    evaluator: Evaluator, value: Form, dims: Sequence[int], rule: Callable[[Form, list[int]], Any],
    of_numbers: bool = False,
) -> Any:  # fmt: skip
    """One tensor along `dims`, block by block along the others.

    Args:
        rule: what becomes of a block whose axes are the dims (of size 1 where it is constant), and the axes that are
            `dims`: a form, or several in a list, in which these axes are gone or have other sizes.
        of_numbers: it leaves 1 of each of `dims`, and of a block that is one number, this number, as `amax` does.
    """
    before = reads.along(evaluator, value, dims)
    if before is not None:
        made = by_blocks(evaluator, before[0], dims, rule, of_numbers)
        return [before[1](f) for f in made] if isinstance(made, list) else before[1](made)
    value = _whole_along(evaluator, evaluator.settled(evaluator.tidy(value)), dims)
    several, results = False, list[dict[Cell, Block]]()
    shapes, dtypes = list[Sizes](), []
    for cell in cells(value.dims):
        block = evaluator.settle(value.blocks[cell])
        if of_numbers and block.factor.number is not None:
            present, made = [False] * len(value.dims), [block.factor.node]
            shapes = [[1 if d in dims else None for d in range(len(value.dims))]]
        else:
            present = [any(x in block.factor.labels for x in own) or d in dims for d, own in enumerate(block.labels)]
            part = _part(evaluator, block, present)
            answer = rule(part, [d + part.has_rows for d in dims])
            several = isinstance(answer, list)
            forms = answer if several else [answer]
            shapes = [_new_sizes(f, dims, len(value.dims)) for f in forms]
            made = [evaluator.node(f) for f in forms]
        dtypes = [m.dtype for m in made]
        results = results or [{} for _ in made]
        for result, sizes, node in zip(results, shapes, made, strict=True):
            where, new = _result(evaluator, cell, block, present, sizes, node)
            result[where] = new
    found = [_form(value, s, r, d) for s, r, d in zip(shapes, results, dtypes, strict=True)]
    return found if several else found[0]


def read(evaluator: Evaluator, value: Form, index: Form, dim: int, gather: Callable[[Form, int, Form], Form]) -> Form:
    """`value.gather(dim, index)`, `[c; k][n, i_n] = [c[n, i_n]; k[n, i_n]]`: no cut goes through the dim, and the index
    is the same along all others.
    """
    value = evaluator.tidy(evaluator.settled(evaluator.tidy(value)))
    others = [d for d in range(len(value.dims)) if d != dim]
    same = all(_same_along(index, d) and index.sizes[d] == value.sizes[d] for d in others)
    if not same or len(value.dims[dim]) > 1 or index.dtype != torch.int64:
        raise Elsewhere(f"places of {value.axes} by {index.axes} are of either side, or others along other axes")
    if any(block.rate is Rate.WEIGHT for block in value.blocks.values()):
        raise Elsewhere(f"a part of {value.axes} is a weight")
    for d in others:
        index = moves.take_dim(evaluator.b, index, d, np.zeros(1, dtype=np.int64))

    def rule(part: Form, axes: list[int]) -> Form:
        shape = [index.extents[axis] if axis in axes else size for axis, size in enumerate(part.extents)]
        return gather(part, axes[0], grid.stretched(evaluator.b, index, shape))

    found: Form = by_blocks(evaluator, value, [dim], rule)
    return found


def _same_along(form: Form, dim: int) -> bool:
    """Whether all of its positions have one value."""
    blocks = form.blocks.values()
    return not any({*b.labels[dim]} & {*f.labels} for b in blocks for t in b.terms for f in t.factors)


def of_elements(evaluator: Evaluator, value: Form, rule: Callable[[Form], Form]) -> Form:
    """Every element by itself: the result has the axes of the value, then those that `rule` adds."""
    blocks, extra, dtype = {}, tuple[int, ...](), value.dtype

    def build(given: Sequence[Block]) -> Block:
        nonlocal extra, dtype
        f = evaluator.settle(given[0]).factor
        made = evaluator.node(rule(_of_node(f.node)))
        extra, dtype = made.shape[len(f.labels) :], made.dtype
        new = tuple(Label(n) for n in extra)
        return one_block(Factor(made, (*f.labels, *new)), (*given[0].labels, *((x,) for x in new)))

    for cell, block in value.blocks.items():
        made = reads.through(evaluator, [block], build)
        blocks[cell + (0,) * len(extra)] = made
    depth = len(value.dims)
    layout = (*value.layout, *((depth + i,) for i in range(len(extra))))
    return Form((*value.dims, *(whole(n) for n in extra)), blocks, layout, dtype)


def _of_node(node: Node) -> Form:
    return plain(node, node.dtype, row_layout(len(node.shape), rows=node.rate is not Rate.WEIGHT))


def labelled(made: Node, block: Block) -> Block:
    """A tensor with an axis per dim in place of a block."""
    labels = tuple(Label(math.prod(x.size for x in own)) for own in block.labels)
    return one_block(Factor(made, labels), tuple((x,) for x in labels))


def whole_block(evaluator: Evaluator, block: Block) -> Node:
    """A block as a tensor with an axis per dim, also along those that it is constant along."""
    return evaluator.node(_part(evaluator, evaluator.settle(block), [True] * len(block.labels)))


def _whole_along(evaluator: Evaluator, value: Form, dims: Sequence[int]) -> Form:
    """All of `dims` in one segment, in order."""
    for d in dims:
        if len(value.dims[d]) > 1:
            value = joins.join_segments(evaluator.b, value, d)
        value = joins.in_position_order(evaluator.b, value, d)
    return value


def _part(evaluator: Evaluator, block: Block, present: list[bool]) -> Form:
    """A settled block as a form with one axis per dim: of its own size where it is `present`, else of size 1."""
    here = [(x.size if shown else 1) for own, shown in zip(block.labels, present, strict=True) for x in own]
    node = joins.expand(evaluator.b, arrange(evaluator.b, block.factor, block.visible), here)
    sizes = [math.prod(x.size for x in own) if shown else 1 for own, shown in zip(block.labels, present, strict=True)]
    return _of_node(evaluator.b.reshape(node, sizes))


def _new_sizes(made: Form, dims: Sequence[int], count: int) -> Sizes:
    """What became of `count` dims of a block, by what `rule` made of it."""
    kept = len(made.dims) == count
    return [(made.sizes[d] if kept else -1) if d in dims else None for d in range(count)]


def _result(
    evaluator: Evaluator, cell: Cell, block: Block, present: list[bool], sizes: Sizes, made: Node
) -> tuple[Cell, Block]:
    """The cell and the block of what was made of a block."""
    flat = [Label(math.prod(x.size for x in own)) for own in block.labels]
    axes = {d: flat[d] if n is None else Label(n) for d, n in enumerate(sizes) if n != -1}
    shown = tuple(x for d, x in axes.items() if present[d])
    factor = Factor(evaluator.b.reshape(made, [x.size for x in shown]), shown)
    return tuple(cell[d] for d in axes), one_block(factor, tuple((x,) for x in axes.values()))


def _form(value: Form, sizes: Sizes, blocks: dict[Cell, Block], dtype: Any) -> Form:
    left = [d for d, n in enumerate(sizes) if n != -1]
    number = {d: i for i, d in enumerate(left)}
    new_dims = tuple(value.dims[d] if sizes[d] is None else whole(sizes[d] or 0) for d in left)
    layout = tuple(tuple(d if d == ROW else number[d] for d in e if d == ROW or d in number) for e in value.layout)
    layout = tuple(new for new, old in zip(layout, value.layout, strict=True) if new or not old)
    return Form(new_dims, blocks, layout, dtype)
