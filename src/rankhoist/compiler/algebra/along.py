"""Operators along dims, and of single elements, block by block.

Law: where no cut goes through the dims, the operator of blocks is the blocks of the operator. A block is given to the
operator as a form of one tensor, without what it does not depend on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rankhoist.compiler.algebra import joins, moves, reads
from rankhoist.compiler.algebra.cuts import refine
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import (
    ROW,
    Block,
    Cell,
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
from rankhoist.compiler.graph.node import Node, Rate, join

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
            present = [d in dims or _depends(block, d) for d in range(len(block.labels))]
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


def gathered(
    evaluator: Evaluator, value: Form, index: Form, dim: int, gather: Callable[[Form, int, Form], Form]
) -> Form:  # fmt: skip
    """`value.gather(dim, index)`, both with the same other dims, block by block along these. For places j of one,

        gather(x, n, i)[..., j, ...] = gather(x[..., j, ...], n, i[..., j, ...])

    as every place reads for itself. So does every place of i along n; x is whole there, for any place may be read.

    Args:
        gather: the same of two forms of one tensor.
    """
    value, index = _read_alike(evaluator, value, index, dim)
    pairs = {cell: (value.blocks[moves.replaced(cell, dim, 0)], block) for cell, block in index.blocks.items()}
    if len({join(b.rate for b in pair) for pair in pairs.values()}) == 1 < len(pairs):  # nothing is known earlier
        everywhere = range(len(value.dims))
        value, index = (_whole_along(evaluator, f, everywhere) for f in (value, index))
        pairs = {cell: (value.blocks[cell], index.blocks[cell]) for cell in cells(index.dims)}
    blocks = {}
    for cell, pair in pairs.items():
        own = [evaluator.settle(block) for block in pair]
        present = [d == dim or any(_depends(b, d) for b in own) for d in range(len(cell))]
        rows = any(b.rate is not Rate.WEIGHT for b in own)
        parts = [replace(_part(evaluator, b, present), layout=row_layout(len(cell), rows=rows)) for b in own]
        made = evaluator.node(gather(parts[0], dim + rows, parts[1]))
        sizes = [parts[1].sizes[d] if d == dim else None for d in range(len(cell))]
        _, blocks[cell] = _result(evaluator, cell, own[0], present, sizes, made)
    return Form(index.dims, blocks, value.layout, value.dtype)


def _read_alike(evaluator: Evaluator, value: Form, index: Form, dim: int) -> tuple[Form, Form]:
    """Settled, cut alike along all dims but one, along which the value is whole."""
    value, index = (evaluator.tidy(evaluator.settled(evaluator.tidy(f))) for f in (value, index))
    value = evaluator.tidy(_whole_along(evaluator, value, [dim]))
    for d in range(len(value.dims)):
        if d != dim:
            value, index = refine(evaluator.b, [value, index], [d, d])
    return value, index


def _depends(block: Block, dim: int) -> bool:
    return any(x in block.factor.labels for x in block.labels[dim])


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
