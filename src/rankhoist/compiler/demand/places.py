"""What is known of one place of every row, in a graph that is written in part."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Size
from rankhoist.compiler.demand.made import sizes_of
from rankhoist.compiler.demand.seen import KEYS, PLACE, ROWS, axes_of, mark_of, turned
from rankhoist.compiler.demand.writer import Writer
from rankhoist.compiler.graph.decline import Decline

aten = torch.ops.aten


class PlaceWriter(Writer):
    """Axes are counted from the last.

    Attributes:
        place: its number, `[rows]`.
        at, shown: among the keys of a history and one behind them, `[rows, keys]`: the history's own at the place; what
            is before the place, and the last.
        later: among those of the history, what is not before the place; where that is none, nothing.
    """

    count: Size  # places
    place: fx.Node
    at: fx.Node
    shown: fx.Node
    later: fx.Node
    device: torch.device

    def _number(self, place: fx.Node, strict: bool, signed: bool) -> None:
        """The place, as a number of every row, and where it is among keys.

        What is outside of the axis is an error if `strict`, or counted from its end if `signed`, or else no place.
        """
        self.device = place.meta["val"].device
        place = self._ours(aten.reshape.default, place, [self.program.rows])
        if place.meta["val"].dtype != torch.int64:
            place = self._ours(aten._to_copy.default, place, dtype=torch.int64)
        given = place
        if strict:
            places = self._ours(aten.expand.default, self._arange(self.count), [self.program.rows, -1])
            place = self._ours(aten.gather.default, places, 1, self._ours(aten.unsqueeze.default, place, 1))
            place = self._ours(aten.squeeze.dim, place, 1)
        elif signed:
            place = self._ours(aten.index.Tensor, self._arange(self.count), [place])
        else:
            place = self._ours(aten.clamp.default, place, 0, self.count - 1)
        self.place, keys = place, self._arange(self.count + 1)
        column = self._ours(aten.unsqueeze.default, place, 1)
        self.at = self._ours(aten.eq.Tensor, keys, column)
        self.later = self._ours(aten.ge.Tensor, self._arange(self.count), column)
        if not strict and not signed:
            inside = self._ours(aten.unsqueeze.default, self._ours(aten.eq.Tensor, place, given), 1)
            self.later = self._ours(aten.logical_and.default, self.later, inside)
        own = self._ours(aten.eq.Scalar, keys, self.count)
        self.shown = self._ours(aten.logical_or.default, self._ours(aten.lt.Tensor, keys, column), own)

    def _arange(self, count: Size) -> fx.Node:
        return self._ours(aten.arange.default, count, device=self.device)

    def _gathered(self, x: fx.Node, axis: int, rows: int) -> fx.Node:
        sizes = sizes_of(x)
        sizes[axis] = 1
        index = self._ours(
            aten.reshape.default, self.place, [1 if i != rows % len(sizes) else -1 for i, _ in enumerate(sizes)]
        )
        return self._ours(aten.gather.default, x, axis, self._ours(aten.expand.default, index, sizes))

    def _looked_up(self, x: fx.Node, axis: int, rows: int) -> fx.Node:
        """Of what is the same for all rows."""
        for _ in range(-rows - len(sizes_of(x))):
            x = self._ours(aten.unsqueeze.default, x, 0)
        dims = len(sizes_of(x))
        others = [d for d in range(dims) if d not in (axis % dims, rows % dims)]
        if sizes_of(x)[rows] != 1:
            raise Decline("rows are along another axis")
        x = self._ours(aten.permute.default, x, [axis % dims, rows % dims, *others])
        x = self._ours(aten.index.Tensor, x, [self.place])  # [rows, 1, ...]
        order = [rows % dims, axis % dims, *others]
        return self._ours(aten.permute.default, x, [order.index(d) for d in range(dims)])

    def _folded(self, x: fx.Node, axis: int, parts: Axis) -> fx.Node:
        """Rows that are folded with other axes."""
        if len(parts) == 1:
            return x
        sizes = sizes_of(x)
        dim = axis % len(sizes)
        before, behind = sizes[:dim], sizes[dim + 1 :]
        inner = [p.size if mark_of(p) is ROWS else 1 for p in parts]
        x = self._ours(aten.reshape.default, x, [*before, *inner, *behind])
        x = self._ours(aten.expand.default, x, [*before, *(p.size for p in parts), *behind])
        return self._ours(aten.reshape.default, x, [*before, boxes.width(parts), *behind])

    def _placed(self, x: fx.Node, box: Box) -> fx.Node:
        """`[rows, keys]`, as what broadcasts to a box."""
        axes = axes_of(box)
        sizes: list[Size] = [1] * len(box)
        sizes[axes[ROWS]], sizes[axes[KEYS]] = sizes_of(x)
        if axes[KEYS] < axes[ROWS]:
            x = self._ours(aten.transpose.int, x, 0, 1)
        return self._folded(self._ours(aten.reshape.default, x, sizes), axes[ROWS], box[axes[ROWS]])

    def _highest(self, x: fx.Node, box: Box, before: bool) -> fx.Node:
        """The highest score of each query; `before`: of a history's, of which those from the place on do not count."""
        made = self._ours(aten.amax.default, x, [axes_of(box)[KEYS]], True)
        if not before:
            return made
        queries = turned(turned(box, KEYS, None), PLACE, KEYS)
        return self._ours(aten.masked_fill.Scalar, made, self._placed(self.later, queries), math.inf)

    def _ours(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operator that stands for no captured one."""
        given = [self._made(a) if isinstance(a, list | tuple) else a for a in args]
        return self._call(target, given, kwargs, name=f"{self.source.name}_of")
