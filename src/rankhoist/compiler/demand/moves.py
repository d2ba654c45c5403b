"""Operators that move places along axes: a part of a result is of the places that it came from.

Law: `x[p][a:b] = x[p[a:b]]`, and places that neighbours came from in order are a slice of the operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from rankhoist.capture.operators import named_arguments
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import MOST, Axis, Box, Part
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import Law, Made, Take, arguments, sizes_of
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.joining import COPIES

NOWHERE = -2  # the place of what is put around an operand: no neighbour of any other

# By axis of an operand: per place of the result the one that it came from, or None where the number of rows decides.
Places = Mapping[int, Any]


def moved(places_of: Callable[[fx.Node, list[Any]], Places | None]) -> Law:
    """The law of operators that move places, by what they move; None for what is not told before lengths are."""

    def law(node: fx.Node, box: Box) -> Take | Made | None:
        x, *others = arguments(node)
        places = places_of(node, sizes_of(x)) if len(sizes_of(x)) == len(box) else None
        if places is None:
            return None
        if all(boxes.is_whole(box[dim]) for dim in places):
            own = enumerate(zip(box, sizes_of(x), strict=True))
            axes = [(Part(size),) if dim in places else axis for dim, (axis, size) in own]
            return Made(node.target, (Take(x, tuple(axes)), *others), node.kwargs)
        known = all(own is not None for own in places.values())
        return _read(node, list(box), [*places.items()]) if known else None

    return law


def indexed(node: fx.Node, box: Box, constants: Constants) -> Take | Made | None:
    """`x[:, i]` for an index i that is known now, which has some of the places, none of them twice."""
    x, *others = arguments(node)
    chosen = list(enumerate(others[0])) if node.target is aten.index.Tensor else [others]
    (dim, index), *more = [(dim, i) for dim, i in chosen if i is not None]
    size = sizes_of(x)[dim]
    value = None if more or not isinstance(size, int) else constants.value(index)
    if value is None or value.dim() != 1 or value.dtype not in (torch.int64, torch.int32):
        return None
    places = value.numpy() % size
    if not len(places) == len(set(places.tolist())) < size:
        return None
    constants.decides(index)
    return _read(node, list(box), [(dim % len(box), places)])


def _read(node: fx.Node, axes: list[Axis], moves: list[tuple[int, Any]]) -> Take | Made | None:
    """What is at these places once all axes have moved, the first of them last."""
    x = arguments(node)[0]
    if not moves:
        return Take(x, tuple(axes))
    (dim, places), *others = moves

    def along(axis: Axis) -> list[Axis]:
        return [*axes[:dim], axis, *axes[dim + 1 :]]

    asked = boxes.interval(axes[dim])
    runs = _runs(places[slice(*asked)]) if asked else []
    if not 0 < len(runs) <= MOST:
        return None
    parts: list[Take | Made | None] = []
    for first, step, count in runs:
        if first == NOWHERE:
            parts.append(_filled(node, along((Part(count),))))
            continue
        low, high = sorted((first, first + step * (count - 1)))
        own = _read(node, along(boxes.cut(sizes_of(x)[dim], low, high + 1)), others)
        parts.append(own and _in_order(own, dim, step, count, len(axes)))
    if None in parts:
        return None
    return parts[0] if len(parts) == 1 else Made(aten.cat.default, (parts, dim))


def _in_order(x: Take | Made, dim: int, step: int, count: int, axes: int) -> Take | Made:
    """A run of places as one slice holds them: in order, in reverse, or one of them several times."""
    if step < 0:
        return Made(aten.flip.default, (x, [dim]))
    return Made(aten.expand.default, (x, [count if d == dim else -1 for d in range(axes)])) if step == 0 else x


def _filled(node: fx.Node, axes: Sequence[Axis]) -> Made:
    value, number = node.meta["val"], named_arguments(node).get("value") or 0.0
    kind = dict(dtype=value.dtype, device=value.device)
    return Made(aten.full.default, ([boxes.width(a) for a in axes], number), kind)


def _runs(places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Neighbours that go up, down, or nowhere: first place, step, how many."""
    runs: list[tuple[int, int, int]] = []
    for place in map(int, places):
        first, step, count = runs[-1] if runs else (place, 0, 0)
        by = place - (first + step * (count - 1))
        if count and abs(by) <= 1 and (count == 1 or by == step):
            runs[-1] = first, by, count + 1
        else:
            runs.append((place, 0, 1))
    return runs


# -- which places


def flipped(node: fx.Node, sizes: Sequence[Any]) -> Places | None:
    return _each(sizes, dict.fromkeys(arguments(node)[1]), lambda n, _: np.arange(n)[::-1])


def rolled(node: fx.Node, sizes: Sequence[Any]) -> Places | None:
    """Not over all axes at once, nor twice over one."""
    shifts, dims = arguments(node)[1:]
    if len({dim % len(sizes) for dim in dims}) != len(shifts):
        return None
    return _each(sizes, dict(zip(dims, shifts, strict=True)), lambda n, shift: np.roll(np.arange(n), shift))


def repeated(node: fx.Node, sizes: Sequence[Any]) -> Places | None:
    times = arguments(node)[1]
    last = enumerate(times, len(sizes) - len(times))
    return _each(sizes, {d: n for d, n in last if n != 1}, lambda n, times: np.tile(np.arange(n), times))


def repeated_each(node: fx.Node, sizes: Sequence[Any]) -> Places | None:
    times, *others = arguments(node)[1:]
    dims = others[:1] or ([0] if len(sizes) == 1 else [])  # without a dim, what is repeated is flattened first
    return _each(sizes, {dims[0]: times}, lambda n, times: np.repeat(np.arange(n), times)) if dims else None


def padded(node: fx.Node, sizes: Sequence[Any]) -> Places | None:
    """By a number, or by copies of places that are there."""
    amounts, mode = arguments(node)[1], named_arguments(node).get("mode", "constant")
    pairs = [(len(sizes) - 1 - k // 2, amounts[k : k + 2]) for k in range(0, len(amounts), 2)]
    return _each(sizes, {d: pair for d, pair in pairs if any(pair)}, lambda n, pair: _around(n, pair, mode))


def _around(size: int, amounts: Sequence[int], mode: str) -> np.ndarray:
    around = [max(n, 0) for n in amounts]
    if mode in COPIES:
        places = np.pad(np.arange(size), around, mode=COPIES[mode])
    else:
        places = np.pad(np.arange(size), around, constant_values=NOWHERE)
    return places[max(-amounts[0], 0) : len(places) - max(-amounts[1], 0)]


def _each(sizes: Sequence[Any], said: Mapping[int, Any], places: Callable[[int, Any], np.ndarray]) -> Places | None:
    """By axis, of its size and what is said of it; None where a size is no number."""
    named = {dim % len(sizes): own for dim, own in said.items()}
    if not all(isinstance(sizes[dim], int) for dim in named):
        return None
    return {dim: None if isinstance(own, fx.Node) else places(sizes[dim], own) for dim, own in named.items()}
