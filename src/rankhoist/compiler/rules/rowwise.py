"""Operators that treat one axis as a batch. Law: rows on the batch axis never meet, so they run at their operands'
rate.
"""

from __future__ import annotations

from torch import fx

from rankhoist.capture.program import operator_name
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value, flat
from rankhoist.compiler.rules.arguments import form, named
from rankhoist.compiler.rules.table import table


def batch_first(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Convolutions, cells and the like: axis 0 is the batch; weights have no rows."""
    depth = {"conv1d": 3, "conv2d": 4, "conv3d": 5}.get(operator_name(node))
    first = form(args[0])
    if depth is not None and len(first.layout) != depth:
        raise Decline(f"a convolution of {first.axes}, without a batch axis")
    for value in flat((args, kwargs)):
        if isinstance(value, Form):
            _check_rows(value, 0)
    return interpreter.run_rowwise(node, args, kwargs)


def attention(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`scaled_dot_product_attention` over the last two axes; rows are in an axis before."""
    arguments = named(node, args, kwargs)
    operands = [form(arguments[k]) for k in ("query", "key", "value")] + (
        [form(arguments["attn_mask"])] if arguments["attn_mask"] is not None else []
    )
    depth = max(len(o.layout) for o in operands)
    places = {axis + depth - len(o.layout) for o in operands for axis, e in enumerate(o.layout) if ROW in e}
    folds = {tuple(o.sizes[d] if d != ROW else ROW for d in e) for o in operands for e in o.layout if ROW in e}
    if len(places) != 1 or next(iter(places)) >= depth - 2 or len(folds) > 1:
        raise Decline(f"attends over the rows: {', '.join(o.axes for o in operands)}")
    return interpreter.run_rowwise(node, args, kwargs)


def recurrent(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Whole recurrent layers: the batch axis is 0 or 1 by `batch_first`; states have it on axis 1."""
    arguments = named(node, args, kwargs)
    if "batch_first" not in arguments:
        raise Decline("packed sequences order rows by length")
    if arguments.get("train") and arguments.get("dropout"):
        raise Decline("dropout in training mode")
    states = arguments["hx"] if isinstance(arguments["hx"], list) else [arguments["hx"]]
    _check_rows(form(arguments["input"]), 0 if arguments["batch_first"] else 1)
    for state in states:
        _check_rows(form(state), 1)
    return interpreter.run_rowwise(node, args, kwargs)


def _check_rows(value: Form, axis: int) -> None:
    if any(ROW in entry for i, entry in enumerate(value.layout) if i != axis):
        raise Decline(f"rows of {value.axes} are not on axis {axis}")


RULES = table([
    ("gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell cdist", batch_first),
    ("gru lstm rnn_tanh rnn_relu", recurrent),
])  # fmt: skip
