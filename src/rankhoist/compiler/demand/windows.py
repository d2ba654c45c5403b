"""Windows: a part of a result reads the places that its windows reach.

Law: window i is of the places `i s` to `i s + w` of what is padded, so windows a to b are of `a s` to `(b - 1) s + w`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Part
from rankhoist.compiler.demand.made import Made, Take, arguments, is_tensor, sizes_of
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import overloads

LARGEST = {*overloads("max_pool1d max_pool2d max_pool3d")}
PADDED_BY_NAME: dict[Any, Any] = {op.padding: op.default for op in (aten.conv1d, aten.conv2d, aten.conv3d)}


@dataclass(frozen=True)
class Windows:
    """Along one axis: places from the first of a window to its last, steps between windows, what is put around it."""

    span: int
    step: int
    padding: int = 0

    def reach(self, axis: Axis) -> tuple[int, int] | None:
        """First and end of what windows read, from before the operand or beyond it; None where lengths decide that."""
        found = boxes.interval(axis)
        if found is None or not all(isinstance(n, int) for n in found):
            return None
        return found[0] * self.step - self.padding, (found[1] - 1) * self.step - self.padding + self.span


def unfold(node: fx.Node, box: Box) -> Made | None:
    """`x.unfold(dim, w, s)`: the last axis is the window."""
    x, dim, width, step = arguments(node)
    *axes, last = box
    read = _read(x, axes, {dim % len(axes): Windows(width, step)}, None)
    return Made(node.target, (read[0], dim, width, step)) if read and boxes.is_whole(last) else None


def convolution(node: fx.Node, box: Box) -> Made | None:
    """Of the channels that are read, where these are no groups."""
    x, w, bias, step, padding, dilation, groups = arguments(node)
    _, inner, *kernel = sizes_of(w)
    if len(box) != 2 + len(kernel) or (groups > 1 and not boxes.is_whole(box[1])):
        return None  # without a batch; some channels of groups
    windows = _windows(kernel, step, [0] if isinstance(padding, str) else padding, dilation)
    if padding == "same":
        if any(own.span % 2 == 0 for own in windows):
            return None  # more behind than before
        windows = [replace(own, padding=own.span // 2) for own in windows]
    read = _read(x, [box[0], (Part(sizes_of(x)[1]),), *box[2:]], dict(enumerate(windows, 2)), 0.0)
    if read is None:
        return None
    weight = Take(w, (box[1], *boxes.whole([inner, *kernel])))
    biases = Take(bias, (box[1],)) if is_tensor(bias) else bias
    target = PADDED_BY_NAME.get(node.target, node.target)
    return Made(target, (read[0], weight, biases, step, read[1], dilation, groups))


def pooling(node: fx.Node, box: Box) -> Made | None:
    """Each channel by itself. A mean that divides by places that are there alone is taken where all of them are."""
    x, kernel, step, padding, *others = arguments(node)
    largest = node.target in LARGEST
    windows = _windows(kernel, step or kernel, padding, others[0] if largest else [1])
    if largest:
        outside = -math.inf if node.meta["val"].is_floating_point() else None
    else:
        beyond, counted = others[:2]
        outside = 0.0 if counted and not beyond else None
    read = _read(x, box, dict(enumerate(windows, len(box) - len(windows))), outside)
    return Made(node.target, (read[0], kernel, step, read[1], *others)) if read else None


def _windows(kernel: Sequence[int], *others: int | Sequence[int]) -> list[Windows]:
    """One per axis, of its size, step, padding and dilation; one number is that of all axes."""
    lists = [[n] if isinstance(n, int) else list(n) for n in others]
    each = zip(kernel, *(n * (len(kernel) // len(n)) for n in lists), strict=True)
    return [Windows((size - 1) * dilation + 1, step, padding) for size, step, padding, dilation in each]


def _read(
    x: fx.Node, box: Sequence[Axis], windows: Mapping[int, Windows], outside: float | None
) -> tuple[Take | Made, list[int]] | None:
    """What windows are of, and the padding of each axis that is left to the operator.

    Args:
        outside: what is read before and behind an axis; None where the operator has to see where it ends.
    """
    axes, padding, around = list(box), [], []
    for dim, own in windows.items():
        size, low, high = sizes_of(x)[dim], 0, 0
        if boxes.is_whole(box[dim]):
            axes[dim], low, high = (Part(size),), own.padding, own.padding
        else:
            reach = own.reach(box[dim])
            if reach is None or not isinstance(size, int):
                return None
            low, high = max(-reach[0], 0), max(reach[1] - size, 0)
            if reach[1] <= 0 or reach[0] >= size or ((low or high) and outside is None):
                return None
            axes[dim] = boxes.cut(size, reach[0] + low, reach[1] - high)
        padding.append(low if low == high else 0)
        around.append((0, 0) if low == high else (low, high))
    read: Any = Take(x, tuple(axes))
    if any(map(any, around)):
        amounts = [n for pair in reversed(around) for n in pair]
        read = Made(aten.constant_pad_nd.default, (read, amounts, outside))
    return read, padding
