"""Pooling that is another operator: of all of an axis, the mean or the largest of it; into parts of one size, windows.

`max_pool1d(x, T)` and `adaptive_max_pool1d(x, 1)` of T places are `amax`, `adaptive_avg_pool1d(x, n)` is
`avg_pool1d(x, T / n)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    return x.mean(axes, keepdim=True)


def _largest(x: Tensor, axes: list[int]) -> Tensor:
    return x.amax(axes, keepdim=True)


def _average(
    x: Tensor, size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:  # fmt: skip
    return NotImplemented if divisor_override is not None else _of_all(x, size, stride, padding, _mean)


def _maximum(
    x: Tensor, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    return _of_all(x, size, stride, padding, _largest)


def _of_all(x: Tensor, size: Any, stride: Any, padding: Any, by: Callable[[Tensor, list[int]], Tensor]) -> Any:
    """Where every window is all of an axis, or one place of it after the other."""
    sizes = [size] if not isinstance(size, Sequence) else size
    steps, around = (list(n) if isinstance(n, Sequence) else [n] for n in (stride or sizes, padding))
    count = len(sizes)
    whole = [axis for axis, n in zip(range(-count, 0), sizes, strict=True) if _same(n, x.shape[axis])]
    others = [i for i in range(count) if i - count not in whole]
    steps = steps * (count // len(steps))
    if any(around) or not whole or any(sizes[i] != 1 or steps[i] != 1 for i in others):
        return NotImplemented
    return by(x, whole)


def _same(x: Any, y: Any) -> bool:
    """Whether two sizes are one in all calls."""
    known = isinstance(x, int), isinstance(y, int)
    return bool(x == y) if all(known) else not any(known) and x.node.expr == y.node.expr


def _adaptive_average(x: Tensor, sizes: Sequence[int]) -> Any:
    parts = _parts(x, sizes)
    if parts is None:
        return NotImplemented
    if set(sizes) == {1}:
        return _mean(x, [*range(-len(sizes), 0)])
    return torch.avg_pool1d(x, parts) if len(parts) == 1 else torch.nn.functional.avg_pool2d(x, parts)


def _adaptive_maximum(x: Tensor, sizes: Sequence[int]) -> Any:
    """And where it is."""
    if list(sizes) != [1]:
        return NotImplemented
    return _largest(x, [-1]), x.argmax(-1, keepdim=True)


def _parts(x: Tensor, sizes: Sequence[int]) -> list[Any] | None:
    """How long the parts of every axis are; None where some are longer than others."""
    lengths = x.shape[-len(sizes) :]
    even = all(count == 1 or (isinstance(n, int) and n % count == 0) for n, count in zip(lengths, sizes, strict=True))
    return [n // count for n, count in zip(lengths, sizes, strict=True)] if even else None


MEANS: dict[Any, Callable[..., Any]] = {
    aten.avg_pool1d.default: _average,
    aten.avg_pool2d.default: _average,
    aten.adaptive_avg_pool1d.default: _adaptive_average,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
}
LARGEST: dict[
    Any, Callable[..., Any]
] = {  # of which one of several equal ones has all of the gradient: not in training
    aten.max_pool1d.default: _maximum,
    aten.max_pool2d.default: _maximum,
    aten.adaptive_max_pool1d.default: _adaptive_maximum,
}
