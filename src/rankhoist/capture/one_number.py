"""Operands that are one number, written out: `x == full([], n)` is `x == n`, `x[full([1], n)]` is `x[n : n + 1]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
COMPARED = {getattr(aten, name).Tensor: getattr(aten, name).Scalar for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def written_out(graph: fx.Graph) -> None:
    """Comparisons with one whole number, and reads at one place."""
    for node in graph.nodes:
        if node.target in COMPARED and (number := _number(node.args[1])) is not None:
            x, own = node.args[0].meta["val"], node.args[1].meta["val"]
            if x.dtype == own.dtype and x.dim() >= own.dim():
                node.target, node.args = COMPARED[node.target], (node.args[0], number)
        if node.target is aten.index.Tensor:
            (axis, index), *others = [(i, own) for i, own in enumerate(node.args[1]) if own is not None]
            number, x = _number(index), node.args[0]
            size = x.meta["val"].shape[axis]
            if number is None or others or not isinstance(size, int) or not 0 <= number < size:
                continue
            alone = not index.meta["val"].dim()
            node.target = aten.select.int if alone else aten.slice.Tensor
            node.args = (x, axis, number) if alone else (x, axis, number, number + 1)


def _number(node: Any) -> int | None:
    """Of a tensor of one whole number, alone or on one axis."""
    if not isinstance(node, fx.Node) or node.target is not aten.full.default:
        return None
    sizes, number = node.args[0], node.args[1]
    return number if [*sizes] in ([], [1]) and type(number) is int and _whole(node.meta["val"]) else None  # type: ignore


def _whole(x: torch.Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool
