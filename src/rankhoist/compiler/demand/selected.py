"""One of several results side by side, read at the request's own place, as a choice among them.

Law: `stack([y_0, y_1, ...], 1)[arange(rows), d]` is `where(d == 0, y_0, where(d == 1, y_1, ...))`, and a gather along
that axis by one place of a row the same, with an axis of one. So is a product with a one-hot row, summed over the axis:
`sum_i [d = i] y_i` is `y_d`, as 0 y is 0 for every finite y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.compiler.demand.made import is_tensor, of_one_kind, sizes_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Read:
    """Of `ways`, the one at a `place` of each row, `[rows]` or `[rows, 1, ...]`.

    `kept`: the result has an axis of one where they are side by side. `signed`: places may be counted from the end.
    """

    ways: list[fx.Node]
    place: fx.Node
    kept: bool = False
    signed: bool = False


def of_own_place(node: fx.Node, rows: sympy.Symbol) -> Read | None:
    """What is side by side on axis 1, stacked or joined of one each, and read at one place of a row."""
    reads = READS.get(node.target)
    found = reads(node, rows) if reads else None
    if found is None:
        return None
    stacked, place, kept, signed = found
    while stacked.target is aten.expand.default and sizes_of(stacked) == sizes_of(stacked.args[0]):
        stacked = stacked.args[0]
    if stacked.target not in (aten.stack.default, aten.cat.default) or sizes_of(stacked)[0] != rows:
        return None
    ways, axis = (*stacked.args, 0)[:2]
    each = stacked.target is aten.stack.default or all(sizes_of(way)[1:2] == [1] for way in ways)
    return Read(list(ways), place, kept, signed) if each and axis % len(sizes_of(stacked)) == 1 else None


Found = tuple[Any, Any, bool, bool] | None  # what is read, the place, `kept`, `signed`


def _indexed(node: Any, rows: sympy.Symbol) -> Found:
    if len(node.args[1]) != 2 or not all(map(is_tensor, node.args[1])):
        return None
    own, place = node.args[1]
    counted = own.target is aten.arange.default and sizes_of(own) == sizes_of(place) == [rows]
    return (node.args[0], place, False, True) if counted and place.meta["val"].dtype == torch.int64 else None


def _gathered(node: Any, rows: sympy.Symbol) -> Found:
    value, dim, place, *_ = node.args
    own, sizes = place.args[0] if place.target is aten.expand.default else place, sizes_of(value)
    once = dim % len(sizes) == 1 and sizes_of(own) == [rows, *[1] * (len(sizes) - 1)]
    return (value, own, True, False) if once and sizes_of(node)[2:] == sizes[2:] else None


# -- by a one-hot row


def _summed(node: Any, rows: sympy.Symbol) -> Found:
    """`(y * e[:, :, None]).sum(1)`."""
    value, axes, *kept = node.args
    if value.target is not aten.mul.Tensor or [a % len(sizes_of(value)) for a in axes] != [1] or node.kwargs:
        return None
    for x, e in (value.args, value.args[::-1]):
        if is_tensor(x) and is_tensor(e) and of_one_kind(x, value) and sizes_of(e)[1:2] == sizes_of(x)[1:2]:
            place = _place(e, len(sizes_of(value)), rows)
            if place is not None:
                return x, place, any(kept), False
    return None


def _multiplied(node: Any, rows: sympy.Symbol) -> Found:
    """`e[:, None] @ y`."""
    e, y = node.args
    unsqueezed = e.target is aten.unsqueeze.default and e.args[1] in (1, -2) and len(sizes_of(y)) == 3
    place = _place(e.args[0], 2, rows) if unsqueezed else None
    return None if place is None else (y, place, True, False)


def _contracted(node: Any, rows: sympy.Symbol) -> Found:
    """`einsum("bd,bdh->bh", e, y)`."""
    equation, operands, *_ = node.args
    given, _, made = equation.replace(" ", "").partition("->")
    names = given.split(",")
    if len(names) != 2 or "." in equation:
        return None
    for (e, own), (y, whole) in (zip(operands, names, strict=True), zip(operands[::-1], names[::-1], strict=True)):
        if len(own) == 2 and whole[:2] == own and made == own[0] + whole[2:] and len({*whole}) == len(whole):
            place = _place(e, 2, rows)
            if place is not None:
                return y, place, False, False
    return None


def _place(e: Any, axes: int, rows: sympy.Symbol) -> fx.Node | None:
    """What a one-hot row, `[rows, D, 1, ...]` with so many axes, is 1 at."""
    if len(sizes_of(e)) != axes:
        return None
    while e.target in (aten._to_copy.default, aten.expand.default, aten.unsqueeze.default):
        before = sizes_of(e.args[0])
        if before[:2] != sizes_of(e)[:2]:
            return None
        e = e.args[0]
    return e.args[0] if e.target is aten.one_hot.default and sizes_of(e.args[0]) == [rows] else None


READS: Any = {
    aten.index.Tensor: _indexed,
    aten.gather.default: _gathered,
    aten.sum.dim_IntList: _summed,
    aten.einsum.default: _contracted,
    aten.bmm.default: _multiplied,
    aten.matmul.default: _multiplied,
}
