"""Operators that treat one axis as a batch. Law: rows on the batch axis never meet, so they run at their operands'
rate.
"""

from __future__ import annotations

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
    value, index = call.forms("self", "index")
    value.dim(call.value("dim"))
    counted = "index" in call.name  # places of an axis, the same for all rows
    if counted and index.has_rows:
        raise Decline(f"places {index.axes} differ from row to row")
    operands = [value, *([] if counted else [index]), *call.forms("src", "source")]
    places = {tuple(i for i, entry in enumerate(f.layout) if ROW in entry) for f in operands}
    if len(places) > 1 or any(len(entry) > 1 for f in operands for entry in f.layout if ROW in entry):
        raise Decline(f"puts rows of {operands[-1].axes} into {value.axes}, where they stand otherwise")
    return call.rowwise()


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


LAWS = law("one side alone", Level.REQUEST, {
    "select slice narrow flip roll cat concat concatenate constant_pad_nd pad": of_any_length,
    "gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell cdist conv1d conv2d conv3d convolution": batch_first,
    "im2col col2im pixel_shuffle pixel_unshuffle grid_sampler_2d grid_sampler_3d": batch_first,
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d": batch_first,
    "upsample_trilinear3d upsample_bicubic2d": batch_first,
    "gru lstm rnn_tanh rnn_relu": recurrent,
    "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce": scattered,
    "rankhoist::opaque": kept,
}, blocks=Level.LINEAR)  # fmt: skip
