"""Operators that treat one axis as a batch. Law: rows on the batch axis never meet, so they run at their operands'
rate.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rankhoist.compiler.algebra import grid, joins, moves, orders, sequences
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

WITH_BATCH = {  # axes of what else is taken for one without a batch
    "conv1d": 3, "conv2d": 4, "conv3d": 5, "im2col": 4, "col2im": 3, "pixel_shuffle": 4, "pixel_unshuffle": 4,
}  # fmt: skip


def batch_first(call: Call) -> Value:
    """Convolutions, cells and the like: axis 0 is the batch; weights have no rows."""
    depth = WITH_BATCH.get(call.name)
    operands = call.forms()
    if depth is not None and len(operands[0].layout) != depth:
        raise Decline(f"a window over {operands[0].axes}, without a batch axis")
    for value in operands:
        _check_rows(value, 0)
    return call.rowwise()


def recurrent(call: Call) -> Value:
    """Whole recurrent layers: the batch axis is 0 or 1 by `batch_first`; states have it on axis 1."""
    if call.value("batch_first") is None:
        raise Decline("packed sequences order rows by length")
    if call.value("train") and call.value("dropout"):
        raise Decline("dropout in training mode")
    _check_rows(call.form("input"), 0 if call.value("batch_first") else 1)
    for state in call.forms("hx"):
        _check_rows(state, 1)
    return call.rowwise()


def scattered(call: Call) -> Value:
    """`scatter`, `index_add`, ...: along an axis without rows, every row is put into its own."""
    _check_own(call)
    return call.rowwise()


def put_to_own_row(call: Call) -> Value:
    """`x[arange(rows)[:, None], i] = v`: every row is put into its own, where nothing of another row is."""
    value, (own, *others) = call.form("self"), call.value("indices")
    if not isinstance(own, orders.RowNumber) or not own.own_row:
        raise Elsewhere("puts elements at places that depend on the inputs")
    places = [call.form(of=i) for i in others if i is not None]
    behind = len(own.behind) + len(value.layout) - 1 - len(places)
    if value.layout[0] != (ROW,) or any(i.dtype == torch.bool for i in places):
        raise Decline(f"puts rows into {value.axes} by {', '.join(i.axes for i in places)}")
    kept = all(own.beside(i, len(own.behind)) for i in places)
    if not kept or not own.beside(call.form("values"), behind):
        raise Decline(f"puts rows of {call.form('values').axes} into {value.axes}, where they stand otherwise")
    return call.rowwise()


def at_constant_places(call: Call) -> Form:
    """`put(x, i, y)[p] = put(x[p], i_j, y_j for all j with i_j in p)`: places that no candidate's value is put to, and
    all others.
    """
    if call.value("src", "source") is None:
        raise Elsewhere("puts one number to all places")
    _check_own(call)
    b, axis, value, source = call.builder, call.value("dim"), call.form("self"), call.form("src", "source")
    axis, dim, own_dim = value.place(axis), value.dim(axis), source.dim(axis)
    if any(f.varies(d) for f in (value, source) for d in range(len(f.dims))):
        raise Elsewhere(f"lengths of {source.axes} or {value.axes} vary")
    places = _places(call, axis)
    reached = sequences.per_candidate(value, dim)
    reached[places[sequences.per_candidate(source, own_dim)]] = True
    if reached.all() or not reached.any():
        raise Elsewhere("the candidate's values are put to all places, or to none")
    groups, parts = (np.flatnonzero(~reached), np.flatnonzero(reached)), []
    for group in groups:
        there = np.flatnonzero(np.isin(places, group))
        part, given = moves.take_dim(b, value, dim, group), moves.take_dim(b, source, own_dim, there)
        index = grid.tensor_form(b, torch.from_numpy(np.searchsorted(group, places[there])))
        if not _counted(call):
            index = replace(index, layout=tuple((0,) if i == axis else () for i in range(len(source.layout))))
            index = grid.stretched(b, index, given.extents)
        changed = {"self": part, "index": index, "src" if call.value("source") is None else "source": given}
        parts.append(call.again(**changed) if len(there) else part)
    made = joins.along_axis(b, parts, axis)
    return moves.take_dim(b, made, made.dim(axis), np.argsort(np.concatenate(groups)))


def _places(call: Call, axis: int) -> np.ndarray:
    """Where every position of what is put goes, the same for all rows and along all other axes; known now."""
    index, source = call.form("index"), call.form("src", "source")
    if not index.layout:
        raise Elsewhere("puts one position to one place")
    dim = index.dim(0 if _counted(call) else axis)
    if not _counted(call):
        value = call.form("self")
        same = all(x == y for i, (x, y) in enumerate(zip(value.extents, source.extents, strict=True)) if i != axis)
        if index.extents != source.extents or not same:
            raise Elsewhere(f"puts a part of {source.axes} into {value.axes}")
    blocks = {cell[dim : dim + 1]: block for cell, block in index.blocks.items()}
    settled = len(blocks) == len(index.blocks) and all(b.settled for b in blocks.values())
    if not settled or any(x not in b.labels[dim] for b in blocks.values() for x in b.factor.labels):
        raise Elsewhere(f"places {index.axes} differ along other axes")
    alone = {cell: replace(block, labels=(block.labels[dim],)) for cell, block in blocks.items()}
    found = call.constant(Form((index.dims[dim],), alone, ((0,),), index.dtype))
    if found is None or bool((found < 0).any()):
        raise Elsewhere(f"places {index.axes} are not known now")
    return found.numpy()


def _counted(call: Call) -> bool:
    """Whether an index has places of an axis, the same for all rows."""
    return "index" in call.name


def _check_own(call: Call) -> None:
    """That every row is put into its own, along an axis without rows."""
    value, index = call.forms("self", "index")
    value.dim(call.value("dim"))
    counted = _counted(call)
    if counted and index.has_rows:
        raise Decline(f"places {index.axes} differ from row to row")
    operands = [value, *([] if counted else [index]), *call.forms("src", "source")]
    places = {tuple(i for i, entry in enumerate(f.layout) if ROW in entry) for f in operands}
    if len(places) > 1 or any(len(entry) > 1 for f in operands for entry in f.layout if ROW in entry):
        raise Decline(f"puts rows of {operands[-1].axes} into {value.axes}, where they stand otherwise")


def kept(call: Call) -> Value:
    """A module that is kept as it is: whoever keeps it says that it computes every row by itself."""
    for value in call.forms("tensors"):
        if any(ROW in entry and len(entry) > 1 for entry in value.layout):
            raise Decline(f"rows of {value.axes} are folded with another axis")
    return call.rowwise()


def of_any_length(call: Call) -> Value:
    """Positions of an axis whose length varies are moved by the operator itself: it leaves the rows where they are."""
    operands = call.forms()
    if all(isinstance(size, int) for value in operands for size in value.sizes):
        raise Elsewhere("the length of no axis varies")
    for value in operands:
        moved = [value.place(axis) for axis in _axes(call)]
        if not moved or any(ROW in value.layout[axis] for axis in moved):
            raise Decline(f"moves the rows of {value.axes}")
    return call.rowwise()


def _axes(call: Call) -> list[int]:
    """The axes that an operator moves positions along."""
    if call.value("pad") is not None:
        return [-1 - i for i in range(len(call.value("pad")) // 2)]
    axes = call.value("dim", "dims")
    return [axes] if isinstance(axes, int) else list(axes or ())


def _check_rows(value: Form, axis: int) -> None:
    if any(ROW in entry for i, entry in enumerate(value.layout) if i != axis):
        raise Decline(f"rows of {value.axes} are not on axis {axis}")


PUTS = "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce"

LAWS = [*law("at constant places", Level.LINEAR, {PUTS: at_constant_places}), *law("one side alone", Level.REQUEST, {
    "select slice narrow flip roll cat concat concatenate constant_pad_nd pad": of_any_length,
    "gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell cdist conv1d conv2d conv3d convolution": batch_first,
    "im2col col2im pixel_shuffle pixel_unshuffle grid_sampler_2d grid_sampler_3d": batch_first,
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d": batch_first,
    "upsample_trilinear3d upsample_bicubic2d": batch_first,
    "gru lstm rnn_tanh rnn_relu": recurrent,
    PUTS: scattered,
    "index_put": put_to_own_row,
    "rankhoist::opaque": kept,
}, blocks=Level.LINEAR)]  # fmt: skip
