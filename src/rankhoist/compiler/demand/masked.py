"""Rows that a request's mask chooses, computed and put back, as a choice among all rows.

Law: `z[m] = f(x[m])` is `where(m, f(x), z)`, for f that computes every row by itself. A model of several domains that
gives each tower its own rows, `out[m] = tower(x[m])`, chooses so. f of all rows is more than f of some: what is written
here is to be chosen among then (`ways`), or not to be taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import draws
from rankhoist.compiler.demand.made import is_tensor, sizes_of
from rankhoist.compiler.demand.summed import MOVED, same

aten = torch.ops.aten
NORM = aten._native_batch_norm_legit_no_training.default
ALONG = (aten.squeeze.dim, aten.select.int, aten.slice.Tensor)  # a part of every row, where not of axis 0
Call = Callable[..., fx.Node]


def computes_rows(node: Any) -> bool:
    """Whether it is an operator of `[rows, ...]` with other rows in none of its rows."""
    if not is_tensor(node) or node.op != "call_function":
        return False
    sizes = sizes_of(node)
    if node.target is operator.getitem:
        return node.args[0].target is NORM and node.args[1] == 0 and len(sizes) == 2
    if node.target in (aten.linear.default, aten.prelu.default):
        return len(sizes) == 2
    if node.target is aten.layer_norm.default:
        return len(sizes) == 2 and len(node.args[1]) == 1
    if node.target in ALONG:
        dims = len(sizes_of(node.args[0]))
        return dims > 1 and node.args[1] % dims != 0
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return (
        pointwise
        and not draws(node)
        and all(len(sizes_of(x)) <= len(sizes) for x in node.all_input_nodes if is_tensor(x))
    )


@dataclass(frozen=True)
class Put:
    """`target[mask] = rows`, or `+= rows`, for a mask of rows; `read` is `target[mask]`, where that is an operator."""

    target: fx.Node
    mask: fx.Node
    rows: fx.Node
    added: bool = False
    read: fx.Node | None = None


def put_back(node: fx.Node) -> Put | None:
    """What an operator puts where a mask of rows is true."""
    spelled = PUTS.get(node.target)
    found = spelled(*node.args) if spelled else None
    if found is None or not is_tensor(found.rows) or {*sizes_of(found.mask)[1:]} - {1}:
        return None
    return found if sizes_of(found.rows)[1:] == sizes_of(found.target)[1:] else None


def _by_index(z: fx.Node, indices: Any, y: Any, accumulate: bool = False) -> Put | None:
    """`z[m] = z[m] + y` adds."""
    (mask, *others) = indices
    if others or mask is None or mask.meta["val"].dtype != torch.bool or len(sizes_of(mask)) != 1:
        return None
    if not accumulate and is_tensor(y) and y.target is aten.add.Tensor and not y.kwargs:
        for own, other in (y.args, y.args[::-1]):
            if is_tensor(own) and own.target is aten.index.Tensor and own.args == (z, [mask]):
                return Put(z, mask, other, True, own)
    return Put(z, mask, y, accumulate)


def _by_scatter(z: fx.Node, mask: fx.Node, y: fx.Node) -> Put | None:
    """One row after the other, where all of a row is chosen or nothing."""
    return Put(z, _own(mask), y) if len(sizes_of(mask)) == len(sizes_of(z)) else None


def _own(mask: fx.Node) -> fx.Node:
    """The flag of a row that a mask is, along whatever axes behind."""
    while mask.target in MOVED and sizes_of(mask.args[0])[:1] == sizes_of(mask)[:1]:  # type: ignore[arg-type]
        mask = mask.args[0]  # type: ignore[assignment]
    return mask


PUTS: dict[Any, Callable[..., Put | None]] = {
    aten.index_put.default: _by_index,
    aten.masked_scatter.default: _by_scatter,
}


class AllRows:
    """`f(x)` for `f(x[m])`."""

    def __init__(self, mask: fx.Node, weights: Callable[[fx.Node], bool]) -> None:
        self.mask, self.weights = mask, weights
        self.counted: list[fx.Node] = []  # what is `x[m]`
        self.made: dict[fx.Node, fx.Node] = {}
        self.held: dict[fx.Node, bool] = {}

    def holds(self, node: Any) -> bool:
        """Whether all rows can be computed as the chosen ones are, and none raises."""
        if node not in self.held:
            self.held[node] = self._holds(node)
        return self.held[node]

    def _holds(self, node: Any) -> bool:
        if self._chosen(node):
            return True
        if not computes_rows(node) or not node.meta["val"].is_floating_point():
            return False
        operands = (node.args[0] if node.target is operator.getitem else node).all_input_nodes
        own = [x for x in operands if not self.weights(x)]
        return bool(own) and all(is_tensor(x) and self._as_long(x, node) and self.holds(x) for x in own)

    def _chosen(self, node: Any) -> bool:
        """Whether it is `x[m]`, m perhaps written anew."""
        if node.target is not aten.index.Tensor or len(node.args[1]) != 1 or node.args[1][0] is None:
            return False
        mask, own = _own(node.args[1][0]), _own(self.mask)
        again = mask.target is own.target and computes_rows(mask) and mask.kwargs == own.kwargs
        return mask is own or (again and all(map(same, mask.args, own.args)))

    def _as_long(self, x: fx.Node, node: fx.Node) -> bool:
        return (len(sizes_of(x)) == len(sizes_of(node)) or node.target in ALONG) and sizes_of(x)[0] == sizes_of(node)[0]

    def write(self, node: fx.Node, call: Call) -> fx.Node:
        """Where `holds`; `call` writes an operator in the place of one."""
        if self._chosen(node):
            self.counted.append(node)
            return node.args[0]  # type: ignore[return-value]
        if self.weights(node):
            return node
        if node not in self.made:
            args = pytree.tree_map_only(fx.Node, lambda x: self.write(x, call), node.args)
            self.made[node] = call(node, node.target, *args, **node.kwargs)
        return self.made[node]


def uncount(graph: fx.Graph, chosen: fx.Node) -> None:
    """Without what is asserted of the number of chosen rows alone: it is one by its nature."""
    for size in [n for n in chosen.users if n.target is aten.sym_size.int]:
        for bound in [n for n in size.users if n.target in (operator.ge, operator.le)]:
            for told in [n for n in bound.users if n.target is aten._assert_scalar.default]:
                graph.erase_node(told)
