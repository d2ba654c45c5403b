"""Places where a mask is true, counted: `x[m.nonzero(as_tuple=True)]` and `x[torch.where(m)]` are `x[m]`.

So is a `z` that is written there. Of `m` with several axes, all of its columns are read in their order. What the first
of two columns reads is a row for every place of it, `x[r] = x[:, None].expand(-1, K, -1)[m]`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Column:
    """Along one axis of `mask`, the places where it is true."""

    mask: fx.Node
    axis: int


def by_masks(graph: fx.Graph) -> None:
    """Reads and writes at the places where a mask is true are those by the mask."""
    masks: dict[fx.Node, fx.Node] = {}
    for node in [n for n in graph.nodes if n.target in INDEXED]:
        indices, others = INDEXED[node.target](*node.args)
        if not others:
            _beside(graph, node, indices)
        found = _mask(indices)
        if found is None or node.kwargs:  # of a sum, by how much it is multiplied
            continue
        at, mask = found
        if mask.meta["val"].dtype != torch.bool and mask not in masks:
            masks[mask] = _not_zero(graph, mask)
        node.target = aten.index_put.default if others else aten.index.Tensor
        node.args = (node.args[0], [*[None] * at, masks.get(mask, mask)], *others)


def _mask(indices: Sequence[fx.Node | None]) -> tuple[int, fx.Node] | None:
    """The axis that a mask begins at, and the mask, of which these are all columns."""
    counted = [(i, _column(index)) for i, index in enumerate(indices) if index is not None]
    at, first = counted[0] if counted else (0, None)
    if first is None or len(counted) != first.mask.meta["val"].dim():
        return None
    own = all(c == Column(first.mask, k) and i == at + k for k, (i, c) in enumerate(counted))
    return (at, first.mask) if own else None


def _beside(graph: fx.Graph, node: fx.Node, indices: Indices) -> None:
    """A read of rows by the first of two columns, as one of rows beside each other."""
    first = _column(indices[0]) if len(indices) == 1 and indices[0] is not None else None
    if first is None or first.axis or first.mask.meta["val"].dim() != 2 or first.mask.meta["val"].dtype != torch.bool:
        return
    x: Any = node.args[0]
    sizes = [-1, first.mask.meta["val"].shape[1], *[-1] * (x.meta["val"].dim() - 1)]
    if isinstance(sizes[1], int):
        with graph.inserting_before(node):
            apart = graph.call_function(aten.unsqueeze.default, (x, 1))
            beside = graph.call_function(aten.expand.default, (apart, sizes))
        apart.meta["val"] = x.meta["val"].unsqueeze(1)
        beside.meta["val"] = apart.meta["val"].expand(sizes)
        node.target, node.args = aten.index.Tensor, (beside, [first.mask])


def _column(node: fx.Node) -> Column | None:
    if node.op != "call_function":
        return None
    source, *given = node.args
    if node.target is operator.getitem and isinstance(source, fx.Node):
        axis: Any = given[0]
        if source.target in (aten.where.default, aten.nonzero_numpy.default):
            return Column(source.all_input_nodes[0], axis)
        counted = source.all_input_nodes[0] if source.target is aten.unbind.int else source
        return _of_all(counted, axis) if source.args[1:] in ((1,), (-1,)) else None
    if node.target is aten.select.int and given[0] in (1, -1):
        return _of_all(source, given[1])
    alone = node.target in MOVES and node.meta["val"].dim() == 1
    return _of_all(source, 0, only=True) if alone else None


def _of_all(counted: Any, axis: Any, only: bool = False) -> Column | None:
    """The column at an axis of a mask, of all that are counted, or of the only one."""
    if not isinstance(counted, fx.Node) or counted.target is not aten.nonzero.default:
        return None
    (mask,) = counted.all_input_nodes
    axes = mask.meta["val"].dim()
    return Column(mask, axis % axes) if axes == 1 or not only else None


def _not_zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        made = graph.call_function(aten.ne.Scalar, (node, 0))
    made.meta["val"] = node.meta["val"].ne(0)
    return made


MOVES = {aten.squeeze.dim, aten.view.default, aten.reshape.default, aten.flatten.using_ints}
Indices = Sequence[fx.Node | None]
INDEXED: dict[Any, Callable[..., tuple[Indices, Sequence[Any]]]] = {  # what it reads by, and what it puts there
    aten.index.Tensor: lambda x, indices: (indices, ()),
    aten.index_select.default: lambda x, dim, index: (_along(x, dim, index), ()),
    aten.index_put.default: lambda x, indices, values, accumulate=False: (indices, (values, accumulate)),
    aten.index_add.default: lambda x, dim, index, source, alpha=1: (_along(x, dim, index), (source, True)),
    aten.index_copy.default: lambda x, dim, index, source: (_along(x, dim, index), (source, False)),
}


def _along(x: fx.Node, dim: int, index: fx.Node) -> Indices:
    return [*[None] * (dim % x.meta["val"].dim()), index]
