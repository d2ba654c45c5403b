"""One of several results side by side, read at the request's own place, as a choice among them.

Law: `stack([y_0, y_1, ...], 1)[arange(rows), d]` is `where(d == 0, y_0, where(d == 1, y_1, ...))`, and a gather along
that axis by one place of a row the same, with an axis of one.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.compiler.demand.made import is_tensor, sizes_of

aten = torch.ops.aten


def of_own_place(node: fx.Node, rows: sympy.Symbol) -> tuple[list[fx.Node], fx.Node] | None:
    """What is side by side on axis 1, stacked or joined of one each; and the place that is read there.

    It is `[rows]`, or `[rows, 1, ...]` of a gather.
    """
    reads = READS.get(node.target)
    place = reads and reads(node, rows)
    stacked: Any = node.args[0] if place else None
    while stacked is not None and stacked.target is aten.expand.default and _same(stacked, stacked.args[0]):
        stacked = stacked.args[0]
    if not place or stacked.target not in (aten.stack.default, aten.cat.default) or sizes_of(stacked)[0] != rows:
        return None
    ways, axis = stacked.args
    each = stacked.target is aten.stack.default or all(sizes_of(way)[1:2] == [1] for way in ways)
    return (list(ways), place) if each and axis % len(sizes_of(stacked)) == 1 else None


def _same(a: fx.Node, b: Any) -> bool:
    return sizes_of(a) == sizes_of(b)


def _indexed(node: Any, rows: sympy.Symbol) -> fx.Node | None:
    if len(node.args[1]) != 2 or not all(map(is_tensor, node.args[1])):
        return None
    own, place = node.args[1]
    counted = own.target is aten.arange.default and sizes_of(own) == sizes_of(place) == [rows]
    return place if counted and place.meta["val"].dtype == torch.int64 else None


def _gathered(node: Any, rows: sympy.Symbol) -> fx.Node | None:
    value, dim, place, *_ = node.args
    own, sizes = place.args[0] if place.target is aten.expand.default else place, sizes_of(value)
    once = dim % len(sizes) == 1 and sizes_of(own) == [rows, *[1] * (len(sizes) - 1)]
    return own if once and sizes_of(node)[2:] == sizes[2:] else None


READS: Any = {aten.index.Tensor: _indexed, aten.gather.default: _gathered}
