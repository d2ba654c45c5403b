"""Lookups: tables read by ids, and elements chosen by index. Law: a lookup of blocks of ids is the blocks of the
lookup.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import sympy
import torch

from rankhoist.compiler.algebra import bags, folds, grid, joins, moves, orders, sequences
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

NUMBERS = (torch.int64, torch.int32)
LONG = 256  # elements of an embedding; shorter ones cost little to read, and what is made of them may be longer

# -- tables


def embedding(call: Call) -> Form:
    """Rows of a table: `[..., ] -> [..., D]`."""
    table, ids = call.forms("weight", "indices")
    if not table.of_weights or table.has_rows:
        raise Decline(f"the table is no weight, but {table.axes}")
    return call.by_element(call.tidy(ids), lambda part: call.again(weight=table, indices=part))


def one_hot(call: Call) -> Form:
    """`[...] -> [..., classes]`, the number of classes as the exported graph shows it."""
    classes, _ = call.out.extents[-1]
    return call.by_element(call.tidy(call.form()), lambda part: call.run(aten.one_hot.default, part, classes))


def bucketize(call: Call) -> Form:
    """The bucket of every element, for constant boundaries: `b(x)_i = b(x_i)`."""
    name = "boundaries" if call.name == "bucketize" else "sorted_sequence"
    edges = call.form(name)
    if not edges.of_weights or edges.has_rows or len(edges.layout) != 1:
        raise Decline(f"the boundaries are no list of weights, but {edges.axes}")
    if call.value("sorter") is not None:
        raise Decline("the boundaries are sorted by an index")
    return call.by_element(call.tidy(call.form("self")), lambda part: call.again(**{"self": part, name: edges}))


def embedding_bag(call: Call) -> Value:
    """Bags `[rows, L]`, or T of them `[rows, T, L]`, flattened, with an offset of each: a row reads its own ids."""
    ids, offsets = call.form("indices"), call.value("offsets")
    bags = call.forms("indices", "per_sample_weights")
    mine = _per_row(call, offsets) == math.prod(ids.sizes)
    if not mine or any(len(f.layout) != 1 or f.layout[0][0] != ROW for f in bags):
        raise Decline(f"bags given by offsets may cross rows: {ids.axes}")
    table = call.form("weight")
    if not table.of_weights:
        raise Decline(f"the table is no weight, but {table.axes}")
    if not isinstance(offsets, orders.RowNumber) or not ids.mixed or len(bags) > 1 or call.value("include_last_offset"):
        return call.rowwise()
    return _by_place(call, ids, offsets)


def _by_place(call: Call, ids: Form, offsets: orders.RowNumber) -> Value:
    """`E([c; k]) = [E(c); E(k)]` along the places of bags, one behind the other in every row."""
    made, sizes = [], (offsets.count, offsets.step)
    ids = moves.ordered(ids)
    if ids.sizes != sizes:
        ids = moves.split_dim(call.builder, moves.merge_dims(ids, 0, len(ids.sizes)), 0, sizes)
    for start, end, _ in sequences.runs(sequences.per_candidate(ids, 0)):
        part = moves.take_dim(call.builder, ids, 0, np.arange(start, end))
        own = call.again(indices=part, offsets=replace(offsets, count=end - start))[0]
        made.append(moves.insert_dim(own, 0, ((ROW, 0), (1,))) if end - start == 1 else own)
    return [joins.side_by_side(call.builder, made, 0), *[None] * (len(call.outs) - 1)]


def _per_row(call: Call, offsets: Value) -> sympy.Expr | int | None:
    """How many ids every row has, where all have as many."""
    if isinstance(offsets, bags.Bounds) and offsets.first:
        totals = [key.total for key in call.bags(offsets.lengths)]
        return totals[0] / call.rows if len(totals) == 1 and totals[0] is not None else None
    return offsets.step * offsets.count if isinstance(offsets, orders.RowNumber) and offsets.each == 1 else None


def table_index(call: Call) -> Form:
    """`w[ids]`: rows of a weight."""
    table, index = _table(call)
    ids = call.tidy(index)
    if ids.dtype not in NUMBERS:
        raise Decline(f"axis 0 of {table.axes} is indexed by {ids.dtype} that depends on the inputs")
    if call.name == "index":
        return call.by_element(ids, lambda part: call.run(aten.index.Tensor, table, [part]))
    return call.by_element(ids, lambda part: _embedded(call, table, part))


def _embedded(call: Call, table: Form, ids: Form) -> Form:
    """Rows of a table of any rank by the operator of embeddings, which counts no row from the end either."""
    flat = table if len(table.sizes) == 2 else call.run(aten.reshape.default, table, [table.sizes[0], -1])
    rows: Form = call.run(aten.embedding.default, flat, ids)
    if len(table.sizes) == 1:
        rows = call.run(aten.squeeze.dim, rows, -1)
    elif flat is not table:
        rows = call.run(aten.unflatten.int, rows, -1, list(table.sizes[1:]))
    return rows


def numbers_of_a_table(call: Call) -> Form:
    """`take(w, i) = w.flatten()[i]`, and of a list of numbers `gather(w, 0, i) = w[i]`."""
    table, ids = call.forms("self", "index")
    if not table.of_weights or table.has_rows:
        raise Elsewhere(f"{table.axes} is no table") if call.name == "gather" else Decline(f"takes from {table.axes}")
    if call.name == "take":
        return call.by_element(call.tidy(ids), lambda part: call.again(self=table, index=part))
    if len(table.sizes) != 1:
        raise Elsewhere(f"columns of {table.axes} are read apart")
    return call.by_element(call.tidy(ids), lambda part: _embedded(call, table, part))


def few_rows(call: Call) -> Form:
    """`w[ids]` and `embedding(ids, w)`: matrices that candidates choose among few."""
    if call.name == "embedding":
        table, ids = call.forms("weight", "indices")
        if call.value("padding_idx") >= 0 or call.value("scale_grad_by_freq") or call.value("sparse"):
            raise Elsewhere("rows of the table have a gradient of another kind")
        if table.sizes[-1] < LONG:
            raise Elsewhere(f"the rows of {table.axes} are short")
    else:
        table, ids = _table(call)
    if not table.of_weights or table.has_rows or ids.dtype not in NUMBERS:
        raise Elsewhere(f"{table.axes} is no table whose rows are read")
    return call.read(table, _from_the_start(call, ids, table) if call.name == "index" else ids, 0)


def _table(call: Call) -> tuple[Form, Form]:
    """A weight, and what its first axis is read by; of several first ones, `w[i, j] = w.flatten(0, 1)[i J + j]`."""
    table, chosen = call.form(), _chosen(call)
    if not table.of_weights or table.has_rows or [axis for axis, _ in chosen] != list(range(len(chosen))):
        raise Elsewhere(f"{table.axes} is no table whose rows are read")
    (_, own), *others = chosen
    place = call.form(of=own)
    if others:
        place = _inside(call, place, table.sizes[0])
        for axis, index in others:
            before = call.each(aten.mul.Tensor, place, table.sizes[axis])
            place = call.each(aten.add.Tensor, before, _inside(call, call.form(of=index), table.sizes[axis]))
        table = call.run(aten.flatten.using_ints, table, 0, len(others))
    return table, place


def _inside(call: Call, index: Form, size: Any) -> Form:
    """Places of an axis from its start; another one is an error, as it is to the operator."""
    if index.dtype not in NUMBERS:
        raise Decline(f"several axes are indexed, one by {index.dtype}")
    places = grid.counted(call.builder, size)
    return call.by_element(call.tidy(index), lambda part: call.run(aten.index.Tensor, places, [part]))


def _from_the_start(call: Call, index: Form, value: Form) -> Form:
    """Places of the first dim of a value; those below 0 are counted from its end."""
    below = call.each(aten.mul.Tensor, call.each(aten.lt.Scalar, index, 0), value.sizes[0])
    return call.each(aten.add.Tensor, index, below)


# -- constant index


def constant_index(call: Call) -> Form:
    """`x[..., i, j, ...]`: constant indices move positions."""
    value, chosen = call.form(), _chosen(call)
    axes = [axis for axis, _ in chosen]
    constants = [call.constant(i) for _, i in chosen]
    if any(k is None for k in constants):
        for _, index in chosen:
            call.form(of=index)
        problem = f"axis {axes[0]} of {value.axes} is indexed by a tensor that depends on the inputs"
        if len(axes) > 1:
            problem = f"axes {axes} of {value.axes} are indexed by tensors that depend on the inputs"
        raise Elsewhere(problem) if value.of_weights and not axes[0] else Decline(problem)
    return folds.take_points(call.builder, value, axes, [k for k in constants if k is not None])


def _chosen(call: Call) -> list[tuple[int, Value]]:
    """Axes and what indexes them, of `index` and `index_select`."""
    if call.name == "index_select":
        return [(call.form().place(call.value("dim")), call.value("index"))]
    return [(axis, i) for axis, i in enumerate(call.value("indices")) if i is not None]


def masked_select(call: Call) -> Form:
    """A constant mask over the axes after the rows, flattened: points of these axes, folded behind the rows."""
    value, mask = call.forms("self", "mask")
    constant = call.constant(replace(mask, layout=tuple(tuple(d for d in e if d != ROW) for e in mask.layout)))
    if constant is None:
        raise Decline(f"selects from {value.axes} by a mask that depends on the inputs")
    if not value.layout or value.layout[0] != (ROW,):
        raise Decline(f"selects from {value.axes}, whose first axis is not the rows")
    inner = [value.sizes[d] for e in value.layout[1:] for d in e]
    shown = constant.reshape([n for n in constant.shape if n != 0])
    if shown.dim() == len(inner) + 1 and shown.shape[0] == 1:
        shown = shown[0]
    points = torch.broadcast_to(shown, inner).reshape(-1).nonzero().reshape(-1)
    merged = moves.merge_dims(value, 0, len(inner))
    taken = moves.take_dim(call.builder, replace(merged, layout=((ROW,), (0,))), 0, points.numpy())
    return replace(taken, layout=((ROW, 0),))


# -- rows of the request


def gathered(call: Call) -> Form:
    """`x.gather(axis, i)`, x of the request and i of the candidate."""
    value, index = call.forms("self", "index")
    dim = value.dim(call.value("dim"))
    _read_by_other(value, index)
    if not index.rate.per_candidate:
        raise Elsewhere(f"places {index.axes} are the request's")
    if len(index.layout) != len(value.layout):
        raise Elsewhere(f"{value.axes} is gathered by {index.axes}")
    return call.read(value, index, dim)


def own_rows(call: Call) -> Form:
    """The same of `x[arange(rows)[:, None], i]`, x `[rows, T, ...]` and i `[rows, K]`, and of i `[rows]`."""
    value, chosen = call.form(), _chosen(call)
    own = chosen[0][1]
    if [axis for axis, _ in chosen] != [0, 1] or not isinstance(own, orders.RowNumber) or not own.own_row:
        raise Elsewhere("no index is the row number")
    index = call.form(of=chosen[1][1])
    _read_by_other(value, index)
    alone = own.each == 1 and own.behind in ((), (1,), tuple(index.sizes))
    if not alone or len(index.layout) != 1 + len(own.behind) or len(own.behind) > 1 or index.dtype == torch.bool:
        raise Elsewhere(f"axis 1 of {value.axes} is indexed by {index.axes}")
    if not index.rate.per_candidate and (index.dtype != torch.int64 or call.constant(index) is not None):
        raise Elsewhere(f"places {index.axes} are known now, or no int64")
    index = index if own.behind else moves.with_axes(index, [1])
    places, counted = index.sizes[0], _from_the_start(call, index, value)
    index = grid.stretched(call.builder, moves.with_axes(counted, range(2, len(value.layout))), [
        (1, True), (places, False), *value.extents[2:]
    ])  # fmt: skip
    made = call.read(value, index, 0)
    return made if own.behind else moves.drop_dim(call.builder, made, 0)


def _read_by_other(value: Form, index: Form) -> None:
    """What the request has is read by the candidate; or what both have by the request."""
    late, of_both = index.rate.per_candidate, value.mixed and value.rate.per_candidate
    if value.of_weights or (value.rate.per_candidate if late else not of_both):
        raise Elsewhere(f"{value.axes} is not the request's, or {index.axes} not the candidate's")
    if any(f.layout[:1] != ((ROW,),) or any(len(e) != 1 for e in f.layout) for f in (value, index)):
        raise Elsewhere(f"rows of {value.axes} and {index.axes} are not on axis 0")


def own_number(call: Call) -> orders.RowNumber:
    """`arange(rows)[:, None].expand(-1, k)`: row i holds i alone, as often as the axes behind it say."""
    own = call.value("self")
    if not isinstance(own, orders.RowNumber):
        raise Elsewhere("no operand is the row number")
    (each, rows), *others = call.out.extents
    behind = tuple(n for n, _ in others)
    times = call.value("repeats") if call.name in ("repeat", "tile") else [1]
    known = all(isinstance(n, int) for n in (each, *behind)) and call.out.dtype in NUMBERS
    if own.count != 1 or not rows or any(rows for _, rows in others) or times[0] != 1 or not known:
        raise Decline(f"makes {call.out.axes} of the row number")
    return replace(own, dtype=call.out.dtype, each=each, behind=behind)


# -- the own row


def own_row(call: Call) -> Value:
    """`x[arange(rows)[:, None], i]` reads the own row of x: a constant moves positions, ids run at the rate of both."""
    value, chosen = call.form(), _chosen(call)
    axes = [axis for axis, _ in chosen]
    if not any(isinstance(i, orders.RowNumber) for _, i in chosen):
        raise Elsewhere("no index is the row number")
    first = chosen[0][1]
    if not isinstance(first, orders.RowNumber) or not first.own_row or value.layout[axes[0]] != (ROW,):
        raise Decline(f"the row number indexes axes {axes} of {value.axes}, which are not the rows first")
    if len(chosen) == 1 and not first.behind and first.each == 1:
        return value
    others = [call.form(of=i) for _, i in chosen[1:]]
    shown = ", ".join(i.axes for i in others)
    if axes != list(range(axes[0], axes[0] + len(axes))) or any(i.dtype == torch.bool for i in others):
        raise Decline(f"axes {axes} of {value.axes} are indexed by {shown}, not one behind the other by numbers")
    if not all(first.beside(i, len(first.behind)) for i in others):
        raise Decline(f"{value.axes} is indexed by {shown}, with rows in a later axis")
    rows = len(first.behind) + 1
    known = (k[0] if k is not None and k.dim() == rows and len(k) == 1 else k for k in map(call.constant, others))
    constants = [k for k in known if k is not None and k.dim() < rows]
    if not others or len(constants) < len(others) or first.each != 1:
        return call.rowwise(self=value)
    shaped = [k.expand(torch.broadcast_shapes(k.shape, first.behind)) for k in constants]
    return folds.take_points(call.builder, value, axes[1:], shaped)


def row_number(call: Call) -> orders.RowNumber:
    """`arange(rows)` marks "my own row"; `arange(0, T * L * rows, L)` where its T parts of length L begin."""
    start = call.value("start")
    if not any(rows for _, rows in call.out.extents):
        raise Elsewhere("counts no rows")
    ((count, _),) = call.out.extents
    step = call.number("step") if call.value("step") else 1
    if start not in (0, None) or call.value("end") != call.rows * count * step:
        raise Decline(f"counts over the rows: {call.out.axes} numbers from {start or 0} by {step}")
    return orders.RowNumber(call.out.dtype, step, count=count)


LAWS = [
    *law("matrices chosen among few", Level.FULL, {"embedding index index_select": few_rows}),
    *law("lookup of blocks", Level.LOOKUP, {
        "embedding": embedding,
        "one_hot": one_hot,
        "embedding_bag _embedding_bag_forward_only _embedding_bag": embedding_bag,
    }),
    *law("elementwise on blocks", Level.REQUEST, {"bucketize searchsorted": bucketize}, blocks=Level.LINEAR),
    *law("rows of the request", Level.REQUEST, {"gather": gathered, "index": own_rows}, blocks=Level.LINEAR),
    *law("the own row", Level.REQUEST, {
        "unsqueeze view reshape flatten expand repeat tile repeat_interleave _to_copy clone": own_number,
    }, blocks=Level.LINEAR),
    *law("the own row", Level.REQUEST, {"index": own_row, "arange": row_number}, blocks=Level.LINEAR),
    *law("constant index", Level.REQUEST, {
        "index index_select": constant_index,
        "masked_select": masked_select,
    }, blocks=Level.LINEAR),
    *law("lookup of blocks", Level.REQUEST, {
        "index index_select": table_index,
        "take gather": numbers_of_a_table,
    }, blocks=Level.LINEAR),
]  # fmt: skip
