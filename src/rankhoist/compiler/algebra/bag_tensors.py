"""Bags of values as tensors: those of an input, and what they are over all candidates.

A request's bags are there once per candidate then, and so are its values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import sympy
import torch
from torch import fx

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.bags import Bounds, Key, Ragged, Totals, Values
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import ROW, Elsewhere, Form, plain, row_layout
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import OWNER, ROWS, Node, Rate, aten


@contextmanager
def of_values(builder: Builder) -> Iterator[None]:
    """Nodes that are made meanwhile have values of bags on axis 0, and no rows."""
    builder.of_values = True
    try:
        yield
    finally:
        builder.of_values = False


# -- an input


def of_input(evaluator: Evaluator, node: fx.Node, rate: Rate) -> Form | Ragged:
    """The lengths of an input's bags, or one of its columns, which has these lengths."""
    name = evaluator.program.bags[node.name]
    key, _, what = name.rpartition(".")
    lengths = evaluator.b.leaf("input", f"{key}.lengths", rate, (), torch.int64)
    if what == "lengths":
        return plain(lengths, torch.int64, row_layout(0))
    column = evaluator.program.inputs[key].bags[int(what.removeprefix("values_"))]
    with of_values(evaluator.b):
        values = evaluator.b.leaf("input", name, rate, column.shape, column.dtype)
    total = node.meta["val"].shape[0].node.expr
    form = plain(values, values.dtype, row_layout(len(values.shape)))
    made = Ragged((Values(form, lengths, total),), values.dtype)
    _measured(evaluator, made, total)
    evaluator.memo.totals[lengths.index] = total
    return made


def _measured(evaluator: Evaluator, made: Ragged, total: sympy.Expr) -> None:
    """The sum of lengths over all candidates is the size of axis 0 of the values over all candidates."""
    size = (values(evaluator, made, Rate.PAIR), 0)
    evaluator.memo.measured[total] = evaluator.b.call(aten.sym_size.int, size, Rate.PAIR, (), torch.int64, free=True)


# -- over as many rows as a rate has


def values(evaluator: Evaluator, ragged: Ragged, rate: Rate) -> Node:
    """`[total, *shape]`, those of several inputs under each other."""
    nodes = [_of_part(evaluator, part, rate) for part in ragged.parts]
    if len(nodes) == 1:
        return nodes[0]
    return evaluator.b.call(aten.cat.default, (nodes, 0), rate, (), ragged.dtype, rows_first=False)


def _of_part(evaluator: Evaluator, part: Values, rate: Rate) -> Node:
    with of_values(evaluator.b):
        node = evaluator.node(part.form)
    if not rate.per_candidate or part.rate is not Rate.REQUEST:
        return node
    args = (node, part.lengths, OWNER, ROWS)
    return evaluator.b.call(kernels.repeat_bags, args, Rate.PAIR, node.shape, node.dtype, rows_first=False)


def sums(builder: Builder, lengths: Node, value: Bounds | Totals) -> Node:
    """Where bags lie, or how many values there are, from the lengths with their original axes."""
    if isinstance(value, Totals):
        return builder.call(aten.sum.dim_IntList, (lengths, [-1]), lengths.rate, (), value.dtype, rows_first=False)
    args = (lengths, value.first, value.last)
    made = builder.call(kernels.bounds, args, lengths.rate, (), torch.int64, rows_first=False)
    if value.dtype == torch.int64:
        return made
    kwargs = {"dtype": value.dtype}
    return builder.call(aten._to_copy.default, (made,), made.rate, (), value.dtype, kwargs=kwargs, rows_first=False)


# -- by key


def keys(evaluator: Evaluator, lengths: Form) -> list[Key]:
    """The lengths `[rows]` of every key, of `[keys, rows]`, `[keys * rows]` or `[rows]`.

    Rows that are not the last are for other laws.
    """
    return [_key(evaluator, one) for one in _apart(evaluator.b, lengths)]


def _apart(builder: Builder, lengths: Form) -> list[Form]:
    value = moves.ordered(lengths)
    entry = value.layout[-1]
    while entry[-1:] not in ((), (ROW,)) and value.sizes[entry[-1]] == 1:
        value = moves.ordered(moves.drop_dim(builder, value, entry[-1]))
        entry = value.layout[-1]
    if entry[-1:] != (ROW,) or sum(ROW in e for e in value.layout) != 1:
        raise Elsewhere(f"adds up lengths {value.axes}, whose last axis is not the rows")
    dims = [d for e in value.layout for d in e if d != ROW]
    if not dims:
        return [value]
    merged = replace(moves.merge_dims(value, 0, len(dims)), layout=((0,), (ROW,)))
    taken = (moves.take_dim(builder, merged, 0, np.asarray([i])) for i in range(merged.sizes[0]))
    return [moves.drop_dim(builder, one, 0) for one in taken]


def _key(evaluator: Evaluator, lengths: Form) -> Key:
    node = evaluator.node(lengths)
    known = evaluator.memo.totals.get(node.index)
    if known is None and node.op is aten.full.default and type(node.args[1]) is int:
        known = evaluator.program.rows * node.args[1]
    return Key(lengths, node, known)
