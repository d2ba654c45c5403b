"""Windows: a part of a result reads the places that its windows reach.

Law: window i is of the places `i s` to `i s + w` of what is padded, so windows a to b are of `a s` to `(b - 1) s + w`.
"""

from __future__ import annotations

from torch import fx

from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Box, Part
from rankhoist.compiler.demand.made import Made, Take, arguments, sizes_of
from rankhoist.compiler.graph.node import aten


def unfold(node: fx.Node, box: Box) -> Made | None:
    """`x.unfold(dim, w, s)`: the last axis is the window."""
    x, dim, width, step = arguments(node)
    *axes, last = box
    dim %= len(axes)
    reach = _reach(axes[dim], step, width)
    size = sizes_of(x)[dim]
    if reach is None or not boxes.is_whole(last) or not isinstance(size, int):
        return None
    axes[dim] = boxes.cut(size, *reach)
    return Made(node.target, (Take(x, tuple(axes)), dim, width, step))


def convolution(node: fx.Node, box: Box) -> Made | None:
    """Of one axis: padded by as much as the windows reach beyond both ends."""
    if len(box) != 3:  # one without a batch
        return None
    x, w, bias, (step,), padding, (dilation,), groups = arguments(node)
    batch, channels, places = box
    size, (_, inner, width) = sizes_of(x)[2], sizes_of(w)
    reach = _reach(places, step, (width - 1) * dilation + 1)
    whole = groups == 1 or boxes.is_whole(channels)
    if reach is None or not whole or not isinstance(size, int) or isinstance(padding, str):
        return None
    first, end = (place - padding[0] for place in reach)
    low, high = max(first, 0), min(end, size)
    if low >= high:  # of padding alone
        return None
    read: Take | Made = Take(x, (batch, (Part(sizes_of(x)[1]),), boxes.cut(size, low, high)))
    if (low, high) != (first, end):
        read = Made(aten.constant_pad_nd.default, (read, [low - first, end - high], 0.0))
    weight = Take(w, (channels, (Part(inner),), (Part(width),)))
    biases = Take(bias, (channels,)) if isinstance(bias, fx.Node) else bias
    return Made(node.target, (read, weight, biases, [step], [0], [dilation], groups))


def _reach(axis: boxes.Axis, step: int, width: int) -> tuple[int, int] | None:
    """First and end of the places that windows of an axis are of; None where it is not cut, or depends on lengths."""
    found = boxes.interval(axis)
    if boxes.is_whole(axis) or found is None or not all(isinstance(n, int) for n in found):
        return None
    return found[0] * step, (found[1] - 1) * step + width
