"""Lookups: tables read by ids, and elements chosen by index. Law: a lookup of blocks of ids is the blocks of the
lookup.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from rankhoist.capture.program import overload
from rankhoist.compiler.algebra import joins, moves
from rankhoist.compiler.algebra.contract import settle
from rankhoist.compiler.algebra.forms import ROW, Decline, Factor, Form, Label, one_block, shape_text, whole
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Rate, aten
from rankhoist.compiler.algebra.values import RowNumber, Value
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, integer, named, tidy
from rankhoist.compiler.rules.table import table


def embedding(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Rows of a table: `[..., ] -> [..., D]`."""
    arguments = named(node, args, kwargs)
    weight, ids = form(arguments["weight"]), form(arguments["indices"])
    if weight.rate is not Rate.WEIGHT or weight.has_rows:
        raise Decline(f"the table is no weight, but {weight.axes}")
    read = joins.materialise(interpreter.b, weight, interpreter.workload)
    return _looked_up(
        interpreter,
        tidy(interpreter, ids),
        weight.dtype,
        weight.sizes[1:],
        lambda f: (aten.embedding.default, (read, f.node)),
    )


def _looked_up(interpreter: Interpreter, ids: Form, dtype: torch.dtype, extra: tuple[int, ...], call: Any) -> Form:
    """Per block of ids: `call(factor)` gives the operator; the result has the axes of the ids, then `extra`."""
    blocks = {}
    for cell, block in ids.blocks.items():
        f = settle(interpreter.b, block, interpreter.workload).factor
        op, given = call(f)
        made = interpreter.b.call(op, given, f.node.rate, (*f.node.shape, *extra), dtype)
        new = tuple(Label(n) for n in extra)
        labels = (*block.labels, *((x,) for x in new))
        blocks[cell + (0,) * len(extra)] = one_block(Factor(made, (*f.labels, *new)), labels)
    depth = len(ids.dims)
    layout = (*ids.layout, *((depth + i,) for i in range(len(extra))))
    return Form((*ids.dims, *(whole(n) for n in extra)), blocks, layout, dtype)


def one_hot(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`[...] -> [..., classes]`, the number of classes as the exported graph shows it."""
    classes = interpreter.shape(node.meta["val"])[-1][0]
    ids = tidy(interpreter, form(args[0]))
    return _looked_up(interpreter, ids, torch.int64, (classes,), lambda f: (aten.one_hot.default, (f.node, classes)))


def bucketize(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """The bucket of every element, for constant boundaries."""
    value, edges = form(args[0]), form(args[1])
    if edges.rate is not Rate.WEIGHT:
        raise Decline(f"the boundaries are no weight, but {edges.axes}")
    read = joins.materialise(interpreter.b, edges, interpreter.workload)
    blocks = {}
    for cell, block in tidy(interpreter, value).blocks.items():
        f = settle(interpreter.b, block, interpreter.workload).factor
        given = (f.node, read, *args[2:])
        made = interpreter.b.call(
            overload(node), given, f.node.rate, f.node.shape, node.meta["val"].dtype, kwargs=kwargs
        )
        blocks[cell] = one_block(Factor(made, f.labels), block.labels)
    return replace(tidy(interpreter, value), blocks=blocks, dtype=node.meta["val"].dtype)


def index_select(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Positions of one axis, by a constant index, or rows of a weight by ids."""
    value, index = form(args[0]), form(args[2])
    return _index_axis(interpreter, value, axis_of(value, args[1]), index)


def index(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x[..., i, j, ...]`: constant indices move positions; ids read a weight; "my own row" reads every row for
    itself.
    """
    value = form(args[0])
    chosen = [(axis, i) for axis, i in enumerate(args[1]) if i is not None]
    if any(isinstance(i, RowNumber) for _, i in chosen):
        return _own_row(interpreter, node, value, chosen)
    axes = [axis for axis, _ in chosen]
    constants = [interpreter.constant(i) for _, i in chosen]
    if all(k is not None for k in constants):
        return _constant_index(interpreter, value, axes, [k for k in constants if k is not None])
    if len(chosen) == 1:
        return _index_axis(interpreter, value, chosen[0][0], form(chosen[0][1]))
    raise Decline(f"axes {axes} of {value.axes} are indexed by tensors that depend on the inputs")


def _constant_index(interpreter: Interpreter, value: Form, axes: list[int], constants: list[torch.Tensor]) -> Form:
    """Adjacent axes become one, of which points are taken; a boolean mask is the list of its true points."""
    if len(constants) == 1 and constants[0].dtype == torch.bool:
        mask = constants[0]
        axes = list(range(axes[0], axes[0] + mask.dim()))
        constants = list(mask.nonzero(as_tuple=True))
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Decline(f"axes {axes} of {value.axes} are indexed and are not neighbours")
    points = torch.broadcast_tensors(*constants)
    value = moves.ordered(value)
    dims = [dim_of(value, axis) for axis in axes]
    sizes = [value.sizes[d] for d in dims]
    wrapped = [
        np.where(p.numpy() < 0, p.numpy() + n, p.numpy()).reshape(-1) for p, n in zip(points, sizes, strict=True)
    ]
    flat = np.ravel_multi_index(wrapped, sizes)
    first = value.layout[: axes[0]]
    merged = moves.merge_dims(
        interpreter.b, replace(value, layout=_merged_layout(value, axes, dims[0])), dims[0], len(dims)
    )
    taken = moves.take_dim(interpreter.b, merged, dims[0], flat)
    shape = list(points[0].shape)
    if len(shape) == 1:
        return taken
    if not shape:
        return moves.drop_dim(interpreter.b, taken, dims[0])
    split = moves.split_dim(
        interpreter.b, replace(taken, layout=tuple((d,) for e in taken.layout for d in e)), dims[0], shape
    )
    rest = [e for e in taken.layout[len(first) + 1 :]]
    shifted = [tuple(d + len(shape) - 1 if d > dims[0] else d for d in e) for e in rest]
    return replace(split, layout=(*first, *((dims[0] + i,) for i in range(len(shape))), *shifted))


def _merged_layout(value: Form, axes: list[int], dim: int) -> tuple[tuple[int, ...], ...]:
    together = tuple(d for axis in axes for d in value.layout[axis])
    return (*value.layout[: axes[0]], together, *value.layout[axes[-1] + 1 :])


def _index_axis(interpreter: Interpreter, value: Form, axis: int, index: Form) -> Form:
    """One axis indexed by a tensor of ids."""
    constant = interpreter.constant(index)
    if constant is not None:
        return _constant_index(interpreter, value, [axis], [constant])
    if value.rate is Rate.WEIGHT and not value.has_rows:
        ids = tidy(interpreter, index)
        if ids.dtype not in (torch.int64, torch.int32):
            raise Decline(f"axis {axis} of {value.axes} is indexed by {ids.dtype} that depends on the inputs")
        read = joins.materialise(interpreter.b, value, interpreter.workload)
        if axis == 0:
            extra = value.sizes[1:]
            return _looked_up(interpreter, ids, value.dtype, extra, lambda f: (aten.index.Tensor, (read, [f.node])))
    raise Decline(f"axis {axis} of {value.axes} is indexed by a tensor that depends on the inputs")


def _own_row(interpreter: Interpreter, node: fx.Node, value: Form, chosen: list[tuple[int, Value]]) -> Value:
    """`x[arange(rows), ids]` reads the own row of x: it runs at the rate of x and ids."""
    axes = [axis for axis, _ in chosen]
    if not isinstance(chosen[0][1], RowNumber) or chosen[0][1].step != 1 or value.layout[axes[0]] != (ROW,):
        raise Decline(f"the row number indexes axes {axes} of {value.axes}, which are not the rows first")
    if len(chosen) == 1:
        return value
    others = [form(i) for _, i in chosen[1:]]
    shown = ", ".join(i.axes for i in others)
    if any(ROW in e for i in others for e in i.layout[1:]):
        raise Decline(f"{value.axes} is indexed by {shown}, with rows in a later axis")
    if any(len(i.layout) > 1 for i in others) or axes != list(range(axes[0], axes[0] + len(axes))):
        raise Decline(f"axes {axes} of {value.axes} are indexed by {shown}, not by one element per row")
    return interpreter.run_rowwise(node, [value, [None] * axes[0] + [i for _, i in chosen]], {})


def gather(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`gather` along an axis without rows reads every row for itself."""
    value, index = form(args[0]), form(args[2])
    dim_of(value, args[1])
    rows = [[axis for axis, e in enumerate(f.layout) if ROW in e] for f in (value, index)]
    if value.rate is Rate.WEIGHT and not value.has_rows:
        raise Decline(f"gathers from {value.axes}, which is a weight")
    if rows[0] != rows[1] or any(len(f.layout[r]) > 1 for f, rs in zip((value, index), rows, strict=True) for r in rs):
        raise Decline(f"gathers across rows: {value.axes} by {index.axes}")
    return interpreter.run_rowwise(node, [value, args[1], index, *args[3:]], kwargs)


def masked_select(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A constant mask over the axes after the rows, flattened: points of these axes, folded behind the rows."""
    value = form(args[0])
    mask = form(args[1])
    constant = interpreter.constant(replace(mask, layout=tuple(tuple(d for d in e if d != ROW) for e in mask.layout)))
    if constant is None:
        raise Decline(f"selects from {value.axes} by a mask that depends on the inputs")
    if not value.layout or value.layout[0] != (ROW,):
        raise Decline(f"selects from {value.axes}, whose first axis is not the rows")
    inner = [value.sizes[d] for e in value.layout[1:] for d in e]
    shown = constant.reshape([n for n in constant.shape if n != 0])
    if shown.dim() == len(inner) + 1 and shown.shape[0] == 1:
        shown = shown[0]
    points = torch.broadcast_to(shown, inner).reshape(-1).nonzero().reshape(-1)
    merged = moves.merge_dims(interpreter.b, value, 0, len(inner))
    taken = moves.take_dim(interpreter.b, replace(merged, layout=((ROW,), (0,))), 0, points.numpy())
    symbol = interpreter.size(node.meta["val"].shape[0])
    interpreter.memo.symbols[symbol] = interpreter.program.rows * len(points)
    return replace(taken, layout=((ROW, 0),))


def row_number(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`arange(rows)` marks "my own row"; `arange(0, L * rows, L)` where the own row begins among rows of length L."""
    arguments = named(node, args, kwargs)
    shape = interpreter.shape(node.meta["val"])
    if arguments.get("start", 0) not in (0, None) or shape != [(1, True)]:
        raise Decline(f"counts over the rows: {shape_text(shape)} numbers from {arguments.get('start', 0)}")
    return RowNumber(node.meta["val"].dtype, integer(arguments.get("step") or 1))


def embedding_bag(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Bags `[rows, L]`, flattened, with an offset per row: every row reads its own ids."""
    arguments = named(node, args, kwargs)
    ids, offsets, weights = form(arguments["indices"]), arguments["offsets"], arguments.get("per_sample_weights")
    shapes = [f.layout for f in (ids, *([form(weights)] if weights is not None else []))]
    length = math.prod(ids.sizes)
    if (
        not isinstance(offsets, RowNumber)
        or any(len(x) != 1 or x[0][0] != ROW for x in shapes)
        or offsets.step != length
    ):
        raise Decline(f"bags given by offsets may cross rows: {ids.axes}")
    if form(arguments["weight"]).rate is not Rate.WEIGHT:
        raise Decline(f"the table is no weight, but {form(arguments['weight']).axes}")
    return interpreter.run_rowwise(node, args, kwargs)


LOOKUPS = table([
    ("embedding", embedding),
    ("one_hot", one_hot),
    ("embedding_bag _embedding_bag_forward_only _embedding_bag", embedding_bag),
])  # fmt: skip

RULES = {**LOOKUPS, **table([
    ("bucketize", bucketize),
    ("index_select", index_select),
    ("index", index),
    ("gather", gather),
    ("masked_select", masked_select),
    ("arange", row_number),
])}  # fmt: skip
