"""How models write one element of a row into a sequence, at a place that the row says, and how they read that place.

x = h.clone(); x[arange(rows), p] = y      x = h.scatter(1, p, y)      x = where(arange(T) == p[:, None], y, h)
x[arange(rows), p]                         x.gather(1, p)              (x * (arange(T) == p[:, None])).sum(1)

Law: `(1 - m) h + m y = where(m, y, h)` for flags m, which are 1 or 0, however they are made: `one_hot(p, T)` as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.operators import draws
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import is_tensor, sizes_of
from rankhoist.compiler.demand.summed import MOVED, NOT, SPELLED

aten = torch.ops.aten
Call = Callable[..., fx.Node]


@dataclass(frozen=True)
class Flags:
    """Numbers that are 1 at a `place` of every row, and 0 elsewhere; if not `true`, 0 there and 1 elsewhere."""

    node: fx.Node
    place: fx.Node
    true: bool
    spelled: str


@dataclass(frozen=True)
class Put:
    """`value`, `[rows, ...]` or `[rows, 1, ...]`, at a `place` of axis 1 of `history`.

    A place outside of the axis is, as it is `spelled`, counted from the end by an index, is an error of a
    scatter, and nowhere for a choice, by `flags` that are not 0 there.
    """

    node: fx.Node
    history: fx.Node
    place: fx.Node
    value: fx.Node
    spelled: str
    flags: Flags | None = None

    def of_one(self, call: Call) -> fx.Node:
        """What is put, `[rows, 1, ...]`."""
        own, sizes = self.value, sizes_of(self.node)
        return call(aten.unsqueeze.default, own, 1) if len(sizes_of(own)) < len(sizes) else own

    def of_its_neighbour(self, call: Call) -> fx.Node:
        """The history with what is at the next place put there instead: whatever is computed of that is so anyway."""
        moved, args = call(aten.roll.default, self.history, [-1], [1]), list(self.node.args)
        if self.flags is not None:
            ways = (moved, self.history) if self.flags.true else (self.history, moved)
            return call(aten.where.self, call(aten.ne.Scalar, self.flags.node, 0), *ways)
        if self.spelled == "index":
            args[2] = call(aten.index.Tensor, moved, args[1])
        else:
            args[3] = call(aten.gather.default, moved, 1, args[2])
        return call(self.node.target, *args, **self.node.kwargs)


@dataclass(frozen=True)
class Read:
    """What is read at a `place` of axis 1 of `value`: `[rows, ...]`, or `kept` with an axis of one; 0 by `flags` where
    that is nowhere.
    """

    value: fx.Node
    place: fx.Node
    spelled: str
    kept: bool = False
    flags: fx.Node | None = None


class Spelled:
    """Looks for both in a graph."""

    def __init__(self, rows: sympy.Symbol, constants: Constants) -> None:
        self.rows, self.constants = rows, constants

    def put(self, node: Any) -> Put | None:
        """What an operator puts in."""
        if not is_tensor(node) or node.op != "call_function" or len(sizes_of(node)) < 2:
            return None
        sizes = sizes_of(node)
        if sizes[0] != self.rows or not isinstance(sizes[1], int) or sizes[1] < 2:
            return None
        found = PUTS[node.target](self, node) if node.target in PUTS else None
        if found is None:
            return None
        history, place, value, spelled, *flags = found
        once = [sizes[0], *([] if spelled == "index" else [1]), *sizes[2:]]
        fits = sizes_of(value) == once and sizes_of(history) == sizes
        same_kind = value.meta["val"].dtype == history.meta["val"].dtype == node.meta["val"].dtype
        return (
            Put(node, history, place, value, spelled, *flags) if fits and same_kind and _of_rows(place, node) else None
        )

    def _by_index(self, node: Any) -> Any:
        history, indices, value, *added = node.args
        place = self._own_place(indices)
        return None if place is None or any(added) or not is_tensor(value) else (history, place, value, "index")

    def _by_scatter(self, node: Any) -> Any:
        history, dim, index, value = node.args
        sizes = sizes_of(node)
        once = sizes_of(index) == sizes_of(value) == [sizes[0], 1, *sizes[2:]]
        return (history, base(index), value, "scatter") if dim % len(sizes) == 1 and once else None

    def _by_choice(self, node: Any) -> Any:
        flags, x, y = node.args
        at = self._flagged(flags, len(sizes_of(node)))
        if at is None or not (is_tensor(x) and is_tensor(y)):
            return None
        value, history = (x, y) if at.true else (y, x)
        return history, at.place, value, at.spelled, at

    def _by_sum(self, node: Any) -> Any:
        """Of a history that is 0 at the place, and a value that is 0 elsewhere."""
        if node.kwargs or not all(map(is_tensor, node.args)):
            return None
        x, y = (list(self._weighed(term, len(sizes_of(node)))) for term in node.args)
        for (history, other, kept), (value, at, put) in (*itertools.product(x, y), *itertools.product(y, x)):
            if put and not kept and alike(other.place, at.place):
                value = value.args[0] if value.target is aten.expand.default else value
                return history, at.place, value, at.spelled, at
        return None

    def _weighed(self, term: fx.Node, dims: int) -> Iterator[tuple[Any, Flags, bool]]:
        """What is 0 but at a place, if true, or else 0 there."""
        for way, flags, true in SPELLED[term.target](*term.args) if term.target in SPELLED else ():
            at = self._flagged(flags, dims)
            if at is not None:
                yield way, at, at.true is true

    def read(self, node: Any) -> Read | None:
        """What an operator reads."""
        found = READS[node.target](self, node) if node.target in READS else None
        return found if found and sizes_of(found.value)[:1] == [self.rows] and _of_rows(found.place, node) else None

    def _index(self, node: Any) -> Read | None:
        place = self._own_place(node.args[1])
        return None if place is None else Read(node.args[0], place, "index")

    def _gather(self, node: Any) -> Read | None:
        value, dim, index, *_ = node.args
        sizes = sizes_of(value)
        once = len(sizes) > 1 and dim % len(sizes) == 1 and sizes_of(index) == [sizes[0], 1, *sizes[2:]]
        return Read(value, base(index), "scatter", True) if once else None

    def _sum(self, node: Any) -> Read | None:
        product, axes, *kept = node.args
        dims = len(sizes_of(product)) if is_tensor(product) else 0
        if dims < 2 or product.target is not aten.mul.Tensor or [a % dims for a in axes or ()] != [1] or node.kwargs:
            return None
        for x, flags in (product.args, product.args[::-1]):
            at = self._flagged(flags, dims) if is_tensor(x) and sizes_of(x) == sizes_of(product) else None
            if at is not None and at.true:
                return Read(x, at.place, at.spelled, any(kept), flags)
        return None

    def _own_place(self, indices: Any) -> fx.Node | None:
        """`[arange(rows), p]`."""
        if len(indices) != 2 or not all(map(is_tensor, indices)):
            return None
        own, place = indices
        counted = own.target is aten.arange.default and sizes_of(own) == sizes_of(place) == [self.rows]
        return base(place) if counted and place.meta["val"].dtype == torch.int64 else None

    def _flagged(self, given: Any, dims: int) -> Flags | None:
        """What flags say, of `[rows, T]`, or `[rows, T, 1, ...]`, with so many axes."""
        if not is_tensor(given) or len(sizes_of(given)) != dims or sizes_of(given)[:1] != [self.rows]:
            return None
        own, flag, true = sizes_of(given)[:2], given, True
        while _is_not(flag) or (flag.target in (*MOVED, aten.clone.default) and sizes_of(flag.args[0])[:2] == own):
            true ^= _is_not(flag)
            flag = flag.args[0]
        if sizes_of(flag) != own:
            return None
        if flag.target is aten.one_hot.default:
            (place, _) = flag.args
            return Flags(given, base(place), true, "scatter") if sizes_of(place) == [self.rows] else None
        if flag.target not in (aten.eq.Tensor, aten.ne.Tensor):
            return None
        for places, place in (flag.args, flag.args[::-1]):
            value = self.constants.value(places)
            counted = value is not None and not value.is_floating_point() and sizes_of(place) == [self.rows, 1]
            if counted and value.flatten().tolist() == [*range(own[1])] and value.shape[-1] == own[1]:  # type: ignore[union-attr]
                return Flags(given, base(place), true ^ (flag.target is aten.ne.Tensor), "choice")
        return None


def _is_not(flag: fx.Node) -> bool:
    """Whether it is `1 - m`, or true where m is false."""
    if flag.target is aten.rsub.Scalar:
        return flag.args[1:] in ((1,), (1, 1)) and not flag.kwargs
    return flag.target in NOT and flag.meta["val"].dtype == torch.bool


PUTS: Any = {
    aten.index_put.default: Spelled._by_index,
    aten.scatter.src: Spelled._by_scatter,
    aten.where.self: Spelled._by_choice,
    aten.add.Tensor: Spelled._by_sum,
}
READS: Any = {
    aten.index.Tensor: Spelled._index,
    aten.gather.default: Spelled._gather,
    aten.sum.dim_IntList: Spelled._sum,
}


def base(place: fx.Node) -> fx.Node:
    """A number of every row, before it is seen as a column, or along other axes."""
    while place.target in MOVED and _whole(place) and _whole(place.args[0]) and _of_rows(place.args[0], place):
        place = place.args[0]  # type: ignore[assignment]
    return place


def _whole(node: Any) -> bool:
    return node.meta["val"].dtype in (torch.int64, torch.int32)


def _of_rows(node: Any, seen: fx.Node) -> bool:
    return sizes_of(node)[:1] == sizes_of(seen)[:1] and {*sizes_of(node)[1:]} <= {1}


def alike(x: Any, y: Any) -> bool:
    """Whether two places are the same numbers: perhaps computed twice, in the same way."""
    if not is_tensor(x) or not is_tensor(y):
        return x is y or (not isinstance(x, fx.Node) and not isinstance(y, fx.Node) and bool(x == y))
    x, y = base(x), base(y)
    again = x.target is y.target and isinstance(x.target, torch._ops.OpOverload) and not draws(x)
    computed = again and len(x.args) == len(y.args) and x.kwargs == y.kwargs
    return x is y or (computed and all(map(alike, x.args, y.args)))
