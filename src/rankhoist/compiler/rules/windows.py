"""Windows along an axis: convolutions, pooling, unfold. Law: a result is known as early as what its window reads.

With zeros put before and behind it, position t of the result reads `x[t * stride + j * dilation]` for `j < size` and
nothing else. Windows that do not touch the candidate are the request's. Those that read both sides are, of a
convolution, a linear map of a concatenation: `sum_j W_j x_(t + j)`, of which the history's part is the request's, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from rankhoist.capture.program import operator_name, overload
from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Rate, aten
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, named, positional, tidy
from rankhoist.compiler.rules.joining import joined, padded
from rankhoist.compiler.rules.linear import contract, pointwise_convolution
from rankhoist.compiler.rules.rowwise import batch_first
from rankhoist.compiler.rules.sequences import per_candidate, runs
from rankhoist.compiler.rules.table import table

CONTEXT, BOTH_SIDES, CANDIDATE = range(3)  # what a window reads


@dataclass(frozen=True)
class Windows:
    """Windows along one axis: positions in each, steps between and within them, and what is put around the axis."""

    axis: int
    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    behind: int = 0

    @property
    def span(self) -> int:
        """Positions from the first that a window reads to the last."""
        return self.dilation * (self.size - 1) + 1

    def count(self, length: int) -> int:
        """Windows on an axis of that length, nothing put around it."""
        return (length - self.span) // self.stride + 1

    def reads(self, start: int, end: int) -> np.ndarray:
        """All that windows from `start` to `end` read, and what lies between."""
        return np.arange(start * self.stride, (end - 1) * self.stride + self.span)

    @property
    def bare(self) -> Windows:
        """The same on an axis around which nothing need be put."""
        return replace(self, before=0, behind=0)


Apply = Callable[[Form, Windows, int], Form]  # x, windows that are all of one kind, the kind


def by_windows(interpreter: Interpreter, x: Form, windows: Windows, number: float, apply: Apply) -> Form | None:
    """Runs of windows that read the same sides, each at its own rate; `None` where all are one run.

    Args:
        number: what lies before the axis and behind it.
    """
    dim = dim_of(x, windows.axis)
    late = per_candidate(x, dim)
    if late.all() or not late.any():
        return None
    own = windows.bare
    if windows.before or windows.behind:
        x = padded(interpreter, x, windows.axis, windows.before, windows.behind, number)
        late = np.concatenate([np.zeros(windows.before, bool), late, np.zeros(windows.behind, bool)])
    read = [late[t * own.stride : t * own.stride + own.span : own.dilation] for t in range(own.count(len(late)))]
    found = runs(interpreter, [int(r.any()) + int(r.all()) for r in read])
    if found is None:
        return None
    dim = dim_of(x, windows.axis)
    parts = [apply(moves.take_dim(interpreter.b, x, dim, own.reads(a, b)), own, kind) for a, b, kind in found]
    return joined(interpreter, parts, windows.axis)


# -- convolution


def convolution(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Of size 1, a linear map of the channels; else by windows, along the first axis that is cut."""
    arguments = named(node, args, kwargs)
    x, weight = form(arguments["input"]), form(arguments["weight"])
    made = pointwise_convolution(interpreter, arguments)
    if made is not None:
        return made
    space = range(2, len(x.layout))
    plain = len(x.layout) == len(weight.layout) and not arguments.get("transposed") and weight.rate is Rate.WEIGHT
    cut = [a for a in space if plain and len(x.layout[a]) == 1 and ROW not in x.layout[a] and _is_cut(x, a)]
    if len(cut) != 1 or x.layout[0] != (ROW,):
        return batch_first(interpreter, node, args, kwargs)
    each = _each_axis(arguments, weight.sizes[2:], len(space))
    windows = each[cut[0] - 2]

    def apply(part: Form, own: Windows, kind: int) -> Form:
        if kind == BOTH_SIDES and arguments["groups"] == 1 and _whole_elsewhere(part, each, own):
            return _by_products(interpreter, part, weight, own, len(space))
        around = [own if w.axis == own.axis else w for w in each]
        return _convolved(interpreter, part, weight, around, arguments["groups"])

    made = by_windows(interpreter, x, windows, 0.0, apply)
    if made is None:
        return batch_first(interpreter, node, args, kwargs)
    return _with_bias(interpreter, made, arguments["bias"])


def _is_cut(x: Form, axis: int) -> bool:
    late = per_candidate(x, dim_of(x, axis))
    return bool(late.any() and not late.all())


def _each_axis(arguments: dict[str, Value], sizes: Sequence[int], count: int) -> list[Windows]:
    stride, dilation = (_for_each(arguments[k], count) for k in ("stride", "dilation"))
    result = []
    for i, size in enumerate(sizes):
        own = Windows(i + 2, size, stride[i], dilation[i])
        if isinstance(arguments["padding"], str):
            total = own.span - 1 if arguments["padding"] == "same" else 0
            result.append(replace(own, before=total // 2, behind=total - total // 2))
        else:
            amount = _for_each(arguments["padding"], count)[i]
            result.append(replace(own, before=amount, behind=amount))
    return result


def _for_each(value: Any, count: int) -> list[int]:
    return list(value) * (count // len(value)) if isinstance(value, list | tuple) else [value] * count


def _convolved(interpreter: Interpreter, x: Form, weight: Form, each: Sequence[Windows], groups: int) -> Form:
    """Without a bias, at the rate of x."""
    for w in each:
        if w.before != w.behind:
            x = padded(interpreter, x, w.axis, w.before, w.behind, 0.0)
    padding = [w.before if w.before == w.behind else 0 for w in each]
    op = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[len(each)]
    steps = [w.stride for w in each], padding, [w.dilation for w in each]
    made: Form = interpreter.run_unwritten(op, [x, weight, None, *steps, groups])
    return made


def _whole_elsewhere(x: Form, each: Sequence[Windows], own: Windows) -> bool:
    """Whether there is one window along every other axis, and it is the axis."""
    others = [w for w in each if w.axis != own.axis]
    return all(w.size == x.sizes[dim_of(x, w.axis)] and not w.before and not w.behind for w in others)


def _by_products(interpreter: Interpreter, x: Form, weight: Form, own: Windows, count: int) -> Form:
    """Every window by itself: a linear map of all that it reads."""
    space = [f"s{i}" for i in range(count)]
    dim = dim_of(x, own.axis)
    parts = []
    for t in range(own.count(x.sizes[dim])):
        read = moves.take_dim(interpreter.b, x, dim, t * own.stride + own.dilation * np.arange(own.size))
        made = contract(interpreter, (read, weight), (["b", "i", *space], ["o", "i", *space]), ["b", "o"])
        parts.append(moves.with_axes(made, range(2, 2 + count)))
    return joined(interpreter, parts, own.axis)


def _with_bias(interpreter: Interpreter, x: Form, bias: Value) -> Form:
    if bias is None:
        return x
    own = form(bias)
    own = replace(own, layout=((), own.layout[0], *(() for _ in x.layout[2:])))
    return grid.total(interpreter.b, [x, own], x.dtype, (1.0, 1.0))


# -- pooling


def pooling(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`max_pool`, `avg_pool` by windows, along the last axes only."""
    value = form(args[0])
    count = 2 if "2d" in operator_name(node) else 1
    axes = range(len(value.layout) - count, len(value.layout))
    if any(ROW in value.layout[a] for a in axes):
        raise Decline(f"pools over the rows of {value.axes}")
    arguments = named(node, args, kwargs)
    cut = [a for a in axes if len(value.layout[a]) == 1 and _is_cut(value, a)]
    windows = _pools(arguments, value, axes) if "kernel_size" in arguments else None
    if windows is None or len(cut) != 1 or not _same_count(node, value, windows):
        return interpreter.run_rowwise(node, args, kwargs)
    at = cut[0] - axes[0]

    def apply(part: Form, own: Windows, kind: int) -> Form:
        padding = [0 if i == at else w.before for i, w in enumerate(windows)]
        given, by_name = positional(node, arguments | {"self": part, "padding": padding, "ceil_mode": False})
        made: Form = interpreter.run_unwritten(overload(node), given, by_name)
        return made

    number = -math.inf if "max" in operator_name(node) else 0.0
    made = by_windows(interpreter, value, windows[at], number, apply)
    return interpreter.run_rowwise(node, args, kwargs) if made is None else made


def _pools(arguments: dict[str, Value], x: Form, axes: Sequence[int]) -> list[Windows] | None:
    """Windows along every axis; `None` where what is put around counts for nothing in a mean."""
    count = len(axes)
    size, padding = (_for_each(arguments[k], count) for k in ("kernel_size", "padding"))
    stride = _for_each(arguments["stride"] or size, count)
    dilation = _for_each(arguments.get("dilation") or 1, count)
    if any(padding) and (not arguments.get("count_include_pad", True) or not x.dtype.is_floating_point):
        return None
    return [Windows(a, size[i], stride[i], dilation[i], padding[i], padding[i]) for i, a in enumerate(axes)]


def _same_count(node: fx.Node, x: Form, each: Sequence[Windows]) -> bool:
    """Whether no window reaches further than what is put behind (`ceil_mode`); and only values are asked for."""
    fake = node.meta["val"]
    if isinstance(fake, list | tuple):
        return False
    sizes = [w.count(x.sizes[dim_of(x, w.axis)] + w.before + w.behind) for w in each]
    return list(fake.shape[each[0].axis :]) == sizes


# -- unfold


def unfold(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x.unfold(axis, size, step)`: windows as they are, on a new last axis."""
    x = form(args[0])
    axis = axis_of(x, args[1])
    dim_of(x, axis)

    def apply(part: Form, own: Windows, kind: int) -> Form:
        made: Form = interpreter.run_unwritten(aten.unfold.default, [part, axis, own.size, own.stride])
        return made

    made = by_windows(interpreter, tidy(interpreter, x), Windows(axis, args[2], args[3]), 0.0, apply)
    return interpreter.run_rowwise(node, args, kwargs) if made is None else made


RULES = table([
    ("conv1d conv2d conv3d convolution", convolution),
    ("max_pool1d max_pool2d max_pool1d_with_indices max_pool2d_with_indices avg_pool1d avg_pool2d adaptive_avg_pool1d "
     "adaptive_avg_pool2d adaptive_max_pool1d", pooling),
    ("unfold", unfold),
])  # fmt: skip
