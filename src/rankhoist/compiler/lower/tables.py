"""Several embedding tables read by one gather.

Law: `[T_1[i_1]; ...; T_F[i_F]] = T[i + o]`, where T holds the tables one below the other and o where each begins. One
gather of F rows replaces F gathers and a concatenation; the price is a copy of the tables, so large ones stay apart.
An id that its own table does not have is an error, as before: it would be a row of another table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.lower.rewriter import Rewriter


def one_gather(rewriter: Rewriter, node: Node) -> Node | None:
    """A concatenation of looked-up rows, of which nobody reads the parts."""
    if node.op is not aten.cat.default or node.rate is Rate.WEIGHT or node.args[1] != 1 or not node.rows_first:
        return None
    builder, limits, parts = rewriter.builder, rewriter.limits, list[Node]()
    for _, run in itertools.groupby(node.args[0], key=lambda p: _kind(rewriter, p)):
        group = list(run)
        lookups = [_lookup(p) for p in group]
        tables = [x.args[0] for x in lookups if x is not None]
        if len(tables) == len(group) >= limits.tables and sum(_bytes(t) for t in tables) <= limits.copied:
            parts.append(_gather(rewriter, group, [x for x in lookups if x is not None]))
        else:
            parts += [rewriter.value(p) for p in group]
    if len(parts) == len(node.args[0]):
        return None
    return builder.reshape(parts[0], node.shape) if len(parts) == 1 else builder.cat(parts, 0)


def _lookup(part: Node) -> Node | None:
    """The lookup of one id per row that a part of the concatenation shows."""
    source = part.args[0] if part.op is aten.reshape.default else part
    plain = isinstance(source, Node) and source.op is aten.embedding.default and len(source.shape) == 1
    if not plain or source.args[0].rate is not Rate.WEIGHT:  # or rows of a table that each request makes for itself
        return None
    return source if math.prod(part.shape) == math.prod(source.shape) else None


def _kind(rewriter: Rewriter, part: Node) -> object:
    """Lookups that can be one: rows of the same width and dtype, by ids of the same dtype and rate."""
    source = _lookup(part)
    if source is None or not all(map(rewriter.once, (part, source))):
        return object()
    if source.rate.per_candidate != part.rate.per_candidate:
        return object()
    table, ids = source.args[:2]
    return part.shape, source.shape, table.dtype, ids.dtype, ids.rate


def _bytes(table: Node) -> int:
    return math.prod(table.sizes) * table.dtype.itemsize


def _gather(rewriter: Rewriter, group: Sequence[Node], lookups: Sequence[Node]) -> Node:
    builder, value = rewriter.builder, rewriter.value
    tables = [value(x.args[0]) for x in lookups]
    ids = [value(x.args[1]) for x in lookups]
    starts = torch.tensor([0, *itertools.accumulate(t.shape[0] for t in tables[:-1])], dtype=ids[0].dtype)
    sizes = torch.tensor([t.shape[0] for t in tables], dtype=ids[0].dtype)
    table, width, rate = builder.cat(tables, 0), lookups[0].shape[-1], ids[0].rate
    joined = builder.call(aten.stack.default, (ids, 1), rate, [len(ids)], ids[0].dtype)
    args = (table, joined, builder.constant(starts), builder.constant(sizes))
    made = builder.call(kernels.read_tables, args, rate, [len(ids), width], table.dtype)
    return builder.reshape(made, [len(ids) * group[0].shape[0], *group[0].shape[1:]])
