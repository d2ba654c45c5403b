"""Forms in training mode: statistics of a batch by counts, and dropout block by block."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rankhoist.compiler.algebra import along, grid, joins, moves
from rankhoist.compiler.algebra.forms import Block, Cell, Form, Positions, plain
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.values import Opaque, Value
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import OFFSETS, Node, Rate, aten


class Normed(NamedTuple):
    """Rows, and the mean and unbiased variance of the batch by channel."""

    rows: Form
    mean: Node
    variance: Node


def normed_by_counts(originals: OriginalOperators, x: Form, affine: Sequence[Form], eps: float) -> Normed:
    """Batch norm along axis 1, which alone may be cut: by counts where channels are the request's.

    Args:
        affine: weight and bias, or nothing.
    """
    (channels,) = x.layout[1]
    made = []
    for k, own in enumerate(x.dims[channels]):
        weights = [moves.take_dim(originals.b, f, 0, own) for f in affine]
        part = joins.segment(x, channels, k)
        made.append((_of_rows if part.rate.per_candidate else _of_requests)(originals, part, weights, eps))
    rows = joins.assemble(originals.b, x, channels, [n.rows for n in made])
    order = np.argsort(np.concatenate(x.dims[channels]))
    mean, variance = (_joined(originals, own, order) for own in ([n.mean for n in made], [n.variance for n in made]))
    return Normed(rows, mean, variance)


def _of_rows(originals: OriginalOperators, part: Form, affine: Sequence[Form], eps: float) -> Normed:
    """The operator itself over all rows; with momentum 1, the running statistics are the batch's."""
    sizes = [(part.extents[1][0], False)]
    running = [grid.constant_form(originals.b, number, part.dtype, sizes) for number in (0.0, 1.0)]
    args = (part, *(affine or (None, None)), *running, True, 1.0, eps)
    made = originals.operate(aten._native_batch_norm_legit_functional.default, args, {}, Rate.PAIR)
    return Normed(made[0], made[3].node, made[4].node)


def _of_requests(originals: OriginalOperators, part: Form, affine: Sequence[Form], eps: float) -> Normed:
    b, weights = originals.b, [originals.node(f) for f in affine] if affine else [None, None]
    x = b.rowwise(originals.node(part), Rate.REQUEST)
    args, size = (x, OFFSETS, *weights, eps, part.layout[1][0] + 1), [part.extents[1][0]]
    elements = [2 * int(np.prod(x.shape))]
    whole = b.call(kernels.norm_by_counts, args, Rate.REQUEST, elements, x.dtype, rows_first=False)
    y = b.call(operator.getitem, (whole, 0), Rate.REQUEST, x.shape, x.dtype, free=True)
    mean, variance = (
        b.call(operator.getitem, (whole, i), Rate.REQUEST, size, x.dtype, free=True, rows_first=False) for i in (1, 2)
    )
    return Normed(plain(y, x.dtype, part.layout), mean, variance)


def _joined(originals: OriginalOperators, parts: Sequence[Node], order: Positions) -> Node:
    """A statistic of all channels, in their order."""
    b, dtype, size = originals.b, parts[0].dtype, [len(order)]
    args = (list(parts), 0)
    whole = b.call(aten.cat.default, args, Rate.PAIR, size, dtype, rows_first=False) if len(parts) > 1 else parts[0]
    if (order == np.arange(len(order))).all():
        return whole
    chosen = b.constant(torch.from_numpy(order))
    return b.call(aten.index_select.default, (whole, 0, chosen), Rate.PAIR, size, dtype, rows_first=False)


def moved(originals: OriginalOperators, before: Value, batch: Node, momentum: float) -> Opaque:
    """The new running statistic."""
    shown = originals.present(before, Rate.PAIR)
    args = (shown, batch, momentum)
    made = originals.b.call(aten.lerp.Scalar, args, Rate.PAIR, batch.shape, shown.dtype, rows_first=False)
    return Opaque(made, shown.dtype)


def dropped(originals: OriginalOperators, x: Form, share: float) -> Form:
    """A mask for every element of every block: per request where the block is the request's, else per row."""
    b, blocks = originals.b, dict[Cell, Block]()
    for number, (cell, block) in enumerate(x.blocks.items()):
        part = along.whole_block(originals, block)
        rate = Rate.PAIR if part.rate.per_candidate else Rate.REQUEST
        args = (b.rowwise(part, rate), share, f"{b.source}.{number}")
        blocks[cell] = along.labelled(b.call(kernels.dropped, args, rate, part.shape, part.dtype), block)
    return Form(x.dims, blocks, x.layout, x.dtype)
