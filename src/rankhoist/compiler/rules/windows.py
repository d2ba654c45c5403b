"""Windows along an axis: convolutions, pooling, unfold. Law: a result is known as early as what its window reads.

With zeros put before and behind it, position t of the result reads `x[t * stride + j * dilation]` for `j < size` and
nothing else. Windows that do not touch the candidate are the request's. Those that read both sides are, of a
convolution, a linear map of a concatenation: `sum_j W_j x_(t + j)`, of which the history's part is the request's, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.algebra import folds, grid, joins, moves, sequences
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

# -- convolution


def convolution(call: Call) -> Form:
    """By windows, along the one axis that is cut."""
    x, weight = call.forms("input", "weight")
    if len(x.layout) != len(weight.layout) or call.value("transposed") or not weight.of_weights:
        raise Elsewhere(f"no windows of {x.axes} meet a kernel of weights")
    if x.layout[0] != (ROW,):
        raise Elsewhere(f"the first axis of {x.axes} is not the rows")
    space = range(2, len(x.layout))
    cut = sequences.only_cut(x, space)
    each = _each_axis(call, weight.sizes[2:], len(space))

    def apply(part: Form, own: sequences.Windows, kind: int) -> Form:
        if kind == sequences.BOTH_SIDES and _whole_elsewhere(part, each, own):
            return _by_products(call, part, weight, own, len(space))
        around = [own if w.axis == own.axis else w for w in each]
        return _convolved(call, part, weight, around)

    return _with_bias(call, sequences.by_windows(call.builder, x, each[cut - 2], 0.0, apply))


def _each_axis(call: Call, sizes: Sequence[int], count: int) -> list[sequences.Windows]:
    stride, dilation = (_for_each(call.value(k), count) for k in ("stride", "dilation"))
    padding = call.value("padding")
    result = []
    for i, size in enumerate(sizes):
        own = sequences.Windows(i + 2, size, stride[i], dilation[i])
        if isinstance(padding, str):
            total = own.span - 1 if padding == "same" else 0
            result.append(replace(own, before=total // 2, behind=total - total // 2))
        else:
            amount = _for_each(padding, count)[i]
            result.append(replace(own, before=amount, behind=amount))
    return result


def _for_each(value: Any, count: int) -> list[int]:
    return list(value) * (count // len(value)) if isinstance(value, list | tuple) else [value] * count


def _convolved(call: Call, x: Form, weight: Form, each: Sequence[sequences.Windows]) -> Form:
    """Without a bias, at the rate of x."""
    for w in each:
        if w.before != w.behind:
            x = joins.padded(call.builder, x, w.axis, w.before, w.behind, 0.0)
    padding = [w.before if w.before == w.behind else 0 for w in each]
    op = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[len(each)]
    steps = [w.stride for w in each], padding, [w.dilation for w in each]
    made: Form = call.run(op, x, weight, None, *steps, call.value("groups"))
    return made


def _whole_elsewhere(x: Form, each: Sequence[sequences.Windows], own: sequences.Windows) -> bool:
    """Whether there is one window along every other axis, and it is the axis."""
    others = [w for w in each if w.axis != own.axis]
    return all(w.size == x.sizes[x.dim(w.axis)] and not w.before and not w.behind for w in others)


def _by_products(call: Call, x: Form, weight: Form, own: sequences.Windows, count: int) -> Form:
    """Every window by itself: a linear map of all that it reads."""
    space = [f"s{i}" for i in range(count)]
    axes, dim = (["b", "g", "i", *space], ["g", "o", "i", *space]), x.dim(own.axis)
    b, groups, parts = call.builder, call.value("groups"), []
    weight = folds.in_groups(b, call.tidy(weight), 0, groups)
    for t in range(own.count(x.sizes[dim])):
        read = moves.take_dim(call.builder, x, dim, t * own.stride + own.dilation * np.arange(own.size))
        made = call.contract([folds.in_groups(b, call.tidy(read), 1, groups), weight], axes, ["b", "g", "o"])
        parts.append(moves.with_axes(folds.out_of_groups(b, made), range(2, 2 + count)))
    return joins.along_axis(call.builder, parts, own.axis)


def _with_bias(call: Call, x: Form) -> Form:
    if call.value("bias") is None:
        return x
    own = call.form("bias")
    own = replace(own, layout=((), own.layout[0], *(() for _ in x.layout[2:])))
    return grid.total(call.builder, [x, own], x.dtype, (1.0, 1.0))


# -- pooling


def pooling(call: Call) -> Form:
    """`max_pool`, `avg_pool` by windows, along the last axes only."""
    value, axes = _pooled(call)
    windows = _pools(call, value, axes)
    sizes = [w.count(value.sizes[value.dim(w.axis)] + w.before + w.behind) for w in windows]
    if [size for size, _ in call.out.extents[axes[0] :]] != sizes:
        raise Elsewhere("a window reaches further than what is put behind the axis")
    at = sequences.only_cut(value, axes) - axes[0]

    def apply(part: Form, own: sequences.Windows, kind: int) -> Form:
        padding = [0 if i == at else w.before for i, w in enumerate(windows)]
        made: Form = call.again(self=part, padding=padding, ceil_mode=False)
        return made

    return sequences.by_windows(call.builder, value, windows[at], -math.inf if "max" in call.name else 0.0, apply)


def _pooled(call: Call) -> tuple[Form, range]:
    """What is pooled, and along which last axes; none of them are the rows."""
    value, count = call.form(), 2 if "2d" in call.name else 1
    axes = range(len(value.layout) - count, len(value.layout))
    if any(ROW in value.layout[a] for a in axes):
        raise Decline(f"pools over the rows of {value.axes}")
    return value, axes


def _pools(call: Call, x: Form, axes: Sequence[int]) -> list[sequences.Windows]:
    """Windows along every axis; declines where what is put around counts for nothing in a mean."""
    count = len(axes)
    if len(call.outs) > 1:
        raise Elsewhere("the places of the largest")
    size, padding = (_for_each(call.value(k), count) for k in ("kernel_size", "padding"))
    stride = _for_each(call.value("stride") or size, count)
    dilation = _for_each(call.value("dilation") or 1, count)
    if any(padding) and (call.value("count_include_pad") is False or not x.dtype.is_floating_point):
        raise Elsewhere("what is put around the axis does not count")
    return [sequences.Windows(a, size[i], stride[i], dilation[i], padding[i], padding[i]) for i, a in enumerate(axes)]


def pooling_of_rows(call: Call) -> Value:
    """As a whole, every row for itself."""
    _pooled(call)
    return call.rowwise()


def means_of_parts(call: Call) -> Form:
    """`adaptive_avg_pool`: along one axis after the other, as a mean of means of as many places is that of all."""
    x, axes, counts = _parts_of(call)

    def mean(own: Form, _: np.ndarray) -> Form:
        dim = own.dim(-1)
        return grid.sum_dims(call.builder, own, [dim], 1.0 / own.sizes[dim])

    for axis, count in zip(axes, counts, strict=True):
        x = _of_parts(call, x, axis, count, mean)
    return x


def largest_of_parts(call: Call) -> list[Form]:
    """`adaptive_max_pool1d`: the largest of parts of every part, and where it is."""
    x, (axis,), (count,) = _parts_of(call)

    def largest(own: Form, _: np.ndarray) -> Form:
        own = call.tidy(own)
        dim = own.dim(-1)
        sides = (joins.segment(own, dim, k) for k in range(len(own.dims[dim])))
        found: list[Form] = [
            call.along(side, [dim], lambda x, axes: call.run(aten.amax.default, x, axes)) for side in sides
        ]
        return reduce(lambda x, y: call.each(aten.maximum.default, x, y), found)

    def where(own: Form, begin: np.ndarray) -> Form:
        found: Form = call.along(own, [own.dim(-1)], lambda x, axes: call.run(aten.argmax.default, x, axes[0]))
        return call.each(aten.add.Tensor, found, grid.tensor_form(call.builder, torch.from_numpy(begin)))

    return [_of_parts(call, x, axis, count, largest), _of_parts(call, x, axis, count, where)]


def _parts_of(call: Call) -> tuple[Form, range, list[int]]:
    """What is pooled, along which axes, and into how many parts each; one axis is cut."""
    x, axes = _pooled(call)
    sequences.only_cut(x, axes)
    if not x.arithmetic or any(x.varies(x.dim(a)) for a in axes):
        raise Elsewhere(f"parts of {x.axes} are as long as a call says")
    return call.tidy(x), axes, call.number("output_size")


def _of_parts(call: Call, x: Form, axis: int, count: int, pool: Callable[[Form, np.ndarray], Form]) -> Form:
    """Part t of n parts of T places is `t T // n` to `-(-(t + 1) T // n)`; those of one length are pooled at once.

    Args:
        pool: gets these, along a last axis of their own, and where each begins.
    """
    length = x.sizes[x.dim(axis)]
    begin = np.arange(count) * length // count
    sizes = -(-np.arange(1, count + 1) * length // count) - begin
    made = []
    for size in np.unique(sizes):
        own = begin[sizes == size]
        made.append(pool(moves.windows(call.builder, x, axis, own[:, None] + np.arange(size)), own))
    joined = joins.along_axis(call.builder, made, axis)
    return moves.take_dim(call.builder, joined, joined.dim(axis), np.argsort(np.argsort(sizes, kind="stable")))


# -- unfold


def unfold(call: Call) -> Form:
    """`x.unfold(axis, size, step)`: place by place, since no window is computed; where that cuts `x` into many pieces,
    windows that read the same sides stay together.
    """
    x, axis, size, step = _unfolded(call)
    if x.mixed and not x.varies(x.dim(axis)):
        with contextlib.suppress(Decline):
            return moves.unfolded(call.builder, call.tidy(x), axis, size, step)

    def apply(part: Form, own: sequences.Windows, kind: int) -> Form:
        made: Form = call.run(aten.unfold.default, part, axis, own.size, own.stride)
        return made

    return sequences.by_windows(call.builder, call.tidy(x), sequences.Windows(axis, size, step), 0.0, apply)


def patches(call: Call) -> Form:
    """`F.unfold` of images, `[rows, C, H, W]` to `[rows, C * size, windows]`: as `unfold`, along two axes."""
    x, each = call.form(), _each_axis(call, call.number("kernel_size"), 2)
    if x.layout[0] != (ROW,) or len(x.layout) != 4 or not x.mixed or any(x.varies(x.dim(w.axis)) for w in each):
        raise Elsewhere(f"{x.axes} is no image of both sides")
    x = call.tidy(x)
    with contextlib.suppress(Decline):
        return _place_by_place(call, x, each)
    cut = sequences.only_cut(x, [w.axis for w in each])

    def apply(part: Form, own: sequences.Windows, kind: int) -> Form:
        around = [own if w.axis == cut else w for w in each]
        found: Form = call.again(self=part, padding=[w.before for w in around])
        counts = [w.count(part.sizes[part.dim(w.axis)] + w.before + w.behind) for w in around]
        return folds.to_shape(call.builder, found, [*found.extents[:2], *((n, False) for n in counts)])

    made = sequences.by_windows(call.builder, x, each[cut - 2], 0.0, apply)
    return folds.to_shape(call.builder, made, call.out.extents)


def _place_by_place(call: Call, x: Form, each: Sequence[sequences.Windows]) -> Form:
    """All that windows read, the places in one before the windows."""
    for w in each:
        x = joins.padded(call.builder, x, w.axis, w.before, w.behind, 0.0)
        begin = w.stride * np.arange(w.count(x.sizes[x.dim(w.axis)]))
        x = moves.windows(call.builder, x, w.axis, begin[:, None] + w.dilation * np.arange(w.size))
    rows, channels, high, wide, *places = x.layout
    x = moves.ordered(replace(x, layout=(rows, channels, *places, high, wide)))
    return folds.to_shape(call.builder, x, call.out.extents)


def _unfolded(call: Call) -> tuple[Form, int, int, int]:
    x = call.form()
    axis = x.place(call.value("dimension"))
    x.dim(axis)
    return x, axis, call.value("size"), call.value("step")


def unfold_rows(call: Call) -> Value:
    """As a whole, every row for itself."""
    _unfolded(call)
    return call.rowwise()


POOLS = "max_pool1d max_pool2d max_pool1d_with_indices max_pool2d_with_indices avg_pool1d avg_pool2d"
MEANS_OF_PARTS, LARGEST_OF_PARTS = "adaptive_avg_pool1d adaptive_avg_pool2d", "adaptive_max_pool1d"

LAWS = [
    *law("windows", Level.LINEAR, {
        "conv1d conv2d conv3d convolution": convolution,
        POOLS: pooling,
        "unfold": unfold,
        "im2col": patches,
        MEANS_OF_PARTS: means_of_parts,
    }),
    *law("windows", Level.LINEAR, {LARGEST_OF_PARTS: largest_of_parts}, ties=True),
    *law("one side alone", Level.REQUEST, {
        f"{POOLS} {MEANS_OF_PARTS} {LARGEST_OF_PARTS}": pooling_of_rows,
        "unfold": unfold_rows,
    }, blocks=Level.LINEAR),
]  # fmt: skip
