"""Rows that a request's mask chooses, computed and put back, as a choice among all rows.

Law: `z[m] = f(x[m])` is `where(m, f(x), z)`, for f that computes every row by itself. A model of several domains that
gives each tower its own rows, `out[m] = tower(x[m])`, chooses so. f of all rows is more than f of some: what is written
here is to be chosen among then (`ways`), or not to be taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import draws
from rankhoist.compiler.demand.made import is_tensor, sizes_of

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


def put_back(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """`z`, `m` and `y` of `z[m] = y`, for a mask of rows."""
    if node.target is not aten.index_put.default:
        return None
    z, indices, y, *accumulate = node.args
    mask: Any = indices[0]  # type: ignore[index]
    if any(accumulate) or len(indices) != 1 or mask.meta["val"].dtype != torch.bool:  # type: ignore[arg-type]
        return None
    same = is_tensor(y) and len(sizes_of(mask)) == 1 and sizes_of(y)[1:] == sizes_of(z)[1:]  # type: ignore[arg-type]
    return (z, mask, y) if same else None  # type: ignore[return-value]


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
        (mask,) = node.args[1]
        return mask is self.mask or (
            mask.target is self.mask.target
            and computes_rows(mask)
            and (mask.args, mask.kwargs) == (self.mask.args, self.mask.kwargs)
        )

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
