"""Places where a mask is true, counted: `x[m.nonzero(as_tuple=True)]` and `x[torch.where(m)]` are `x[m]`.

So is a `z` that is written there, by all of its columns in their order. What is read by some of them, or in another
order, is the same along the others: `r, k = torch.where(m)` gives `x[r] = x[:, None].expand(-1, K, -1)[m]`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
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
    for node in [n for n in graph.nodes if n.target in INDEXED and not n.kwargs]:  # a sum may multiply by one
        indices, others = INDEXED[node.target](*node.args)
        found = _columns(indices)
        if found is None:
            continue
        at, mask, axes = found
        own, sizes = _sizes(node.args[0]), _sizes(mask)
        if own[at : at + len(axes)] != [sizes[axis] for axis in axes]:  # of a longer axis some places are not asked for
            continue
        whole = axes == [*range(len(sizes))]
        if not whole and (others or not _spread(graph, node, at, mask, axes)):
            continue
        if mask.meta["val"].dtype != torch.bool and mask not in masks:
            masks[mask] = _not_zero(graph, mask)
        read = [*[None] * at, masks.get(mask, mask)] if whole else [masks.get(mask, mask)]
        node.target = aten.index_put.default if others else aten.index.Tensor
        node.args = (node.args[0], read, *others)


def _columns(indices: Indices) -> tuple[int, fx.Node, list[int]] | None:
    """The axis that reads by columns of one mask begin at, one behind the other, the mask, and its axes."""
    given = [(i, column_of(index)) for i, index in enumerate(indices) if index is not None]
    at = given[0][0] if given else 0
    columns = [c for k, (i, c) in enumerate(given) if c is not None and i == at + k]
    if not columns or len(columns) < len(given) or len({c.mask for c in columns}) > 1:
        return None
    return at, columns[0].mask, [c.axis for c in columns]


def _spread(graph: fx.Graph, node: fx.Node, at: int, mask: fx.Node, axes: list[int]) -> bool:
    """Give a read a tensor with all of the mask's axes first, in their order: it is the same along those that it has
    no columns of. Of `x[None, r]` the axis that was put before goes behind the read.
    """
    x: Any = node.args[0]
    sizes = {j: size for j, size in enumerate(mask.meta["val"].shape) if j not in axes}
    before = at == 1 and x.target is aten.unsqueeze.default and x.args[1] == 0
    if at > before or len({*axes}) < len(axes) or any(not isinstance(s, int) for s in sizes.values()):
        return False
    x = x.args[0] if before else x
    order = [*sorted(range(len(axes)), key=axes.__getitem__), *range(len(axes), x.meta["val"].dim())]
    with graph.inserting_before(node):
        x = _called(graph, aten.permute.default, (x, order), x.meta["val"].permute(order))
        for j, size in sizes.items():
            x = _called(graph, aten.unsqueeze.default, (x, j), x.meta["val"].unsqueeze(j))
            shape = [size if i == j else -1 for i in range(x.meta["val"].dim())]
            x = _called(graph, aten.expand.default, (x, shape), x.meta["val"].expand(shape))
    if before:
        with graph.inserting_after(node):
            behind = _called(graph, aten.unsqueeze.default, (node, 0), node.meta["val"])
        node.meta["val"] = node.meta["val"].squeeze(0)
        for user in [user for user in node.users if user is not behind]:
            if user.target in MOVES and _sizes(user) == _sizes(node):  # the author takes it away again
                user.replace_all_uses_with(node)
                graph.erase_node(user)
            else:
                user.replace_input_with(node, behind)
    node.args = (x,)
    return True


def _sizes(node: Any) -> list[Any]:
    """Of what a node makes, to be compared: of those that data decides torch does not say whether they are equal."""
    return [size.node.expr if isinstance(size, torch.SymInt) else size for size in node.meta["val"].shape]


def _called(graph: fx.Graph, target: Any, args: Any, value: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = value
    return node


def column_of(node: fx.Node) -> Column | None:
    """The column of a mask that a node is, if it is one."""
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


def counted(graph: fx.Graph) -> dict[sympy.Symbol, sympy.Expr]:
    """How many places a mask chooses, which data decides, by its symbol -> how many it has, which is the most."""
    most: dict[sympy.Symbol, sympy.Expr] = {}
    for symbol, mask in counted_by(graph).items():
        sizes = (s.node.expr if isinstance(s, torch.SymInt) else sympy.Integer(s) for s in mask.meta["val"].shape)
        most[symbol] = math.prod(sizes, start=sympy.Integer(1)).xreplace(most)
    return most


def counted_by(graph: fx.Graph) -> dict[sympy.Symbol, fx.Node]:
    """Symbols of how many places a mask chooses -> the mask."""
    found: dict[sympy.Symbol, fx.Node] = {}
    for node in graph.nodes:
        mask, axis = _chooses(node) or (None, 0)
        made = node.meta.get("val")
        first = made[0] if isinstance(made, list | tuple) and made else made
        size = first.shape[axis] if mask is not None and isinstance(first, torch.Tensor) else 0
        if mask is not None and isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
            found.setdefault(size.node.expr, mask)
    return found


def _chooses(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The mask by which a node chooses, and the axis of its result that is as long as there are places."""
    if node.target in COUNTS:
        return node.all_input_nodes[COUNTS[node.target]], 0
    if node.target is not aten.index.Tensor:
        return None
    masks: list[Any] = [(i, own) for i, own in enumerate(node.args[1]) if own is not None]  # type: ignore[arg-type]
    (at, mask), *others = masks
    return None if others or mask.meta["val"].dtype != torch.bool else (mask, at)


def _not_zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        return _called(graph, aten.ne.Scalar, (node, 0), node.meta["val"].ne(0))


COUNTS = {  # which of its inputs is the mask
    aten.nonzero.default: 0, aten.nonzero_numpy.default: 0, aten.where.default: 0, aten.masked_select.default: 1,
}  # fmt: skip
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
