"""Assignments to a part of a tensor: `y[:, 1:3] = x`, `y[:, [0, 4]] = x`, `y[mask] = 0`, `y.diagonal().zero_()`.

Of every axis but the rows: the result is what was there and what is assigned, one behind the other, from which each
position takes one or the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
PAIRS = 2**20  # positions times indices that are compared, where both are constants


def _slice_scatter(
    x: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """`x` with `src` in place of the slice: what is before it, `src`, what is after it."""
    dim = dim % x.dim()
    if dim == 0 or (step != 1 and not isinstance(x.shape[dim], int)):  # a slice of rows is no law of one row
        return NotImplemented
    size = x.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    if step != 1:
        place = torch.arange(size, device=x.device)
        own = (place >= first) & (place < last) & ((place - first) % step == 0)
        return _one_or_the_other(x, src, dim, torch.where(own, size + (place - first) // step, place))
    parts = [x.narrow(dim, 0, first), src, x.narrow(dim, last, size - last)]
    return torch.cat([p for p in parts if p.shape[dim]] or [src], dim)


def _select_scatter(x: Tensor, src: Tensor, dim: int, index: int) -> Any:
    """`x` with `src` in place of one entry of an axis."""
    return _slice_scatter(x, src.unsqueeze(dim), dim, index, index + 1 or None)  # the slice of -1 has no end


def _diagonal_scatter(x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """`x` with `src`, its places last, where the place of one axis is `offset` behind that of another."""
    dim1, dim2 = dim1 % x.dim(), dim2 % x.dim()
    if not isinstance(x.shape[dim1], int) or not isinstance(x.shape[dim2], int):
        return NotImplemented

    def place(dim: int) -> Tensor:
        return torch.arange(x.shape[dim], device=x.device).reshape([-1 if d == dim else 1 for d in range(x.dim())])

    first = max(-offset, 0)
    along = torch.nn.functional.pad(src, (first, x.shape[dim1] - first - src.shape[-1]))
    own = along.movedim(-1, dim1 - (dim1 > dim2)).unsqueeze(dim2)
    return torch.where(place(dim2) - place(dim1) == offset, own, x)


def _index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """`x` with `values` where one index is true, or at the places of an axis that it counts."""
    (dim, index), *others = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if others or accumulate:
        return NotImplemented
    if index.dtype == torch.bool:
        behind = x.dim() - dim - index.dim()
        before, own = values.shape[: max(values.dim() - behind, 0)], values.shape[max(values.dim() - behind, 0) :]
        if before and not (isinstance(before[-1], int) and before[-1] == 1):  # as many as are true
            return NotImplemented
        values = values.reshape(*before[:-1], *[1] * index.dim(), *own) if before else values
        return torch.where(index.reshape(*index.shape, *[1] * behind), values, x)
    size = x.shape[dim]
    known = index.dim() == 1 and isinstance(size, int) and isinstance(index.shape[0], int)
    if dim == 0 or not known or size * index.shape[0] > PAIRS:
        return NotImplemented
    place, turn = torch.arange(size, device=x.device), torch.arange(index.shape[0], device=x.device)
    last = torch.where(torch.where(index < 0, index + size, index) == place[:, None], turn, -1).amax(1)
    src = values.expand(*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :])
    return _one_or_the_other(x, src, dim, torch.where(last < 0, place, size + last))


def _one_or_the_other(x: Tensor, src: Tensor, dim: int, place: Tensor) -> Tensor:
    """Each position of `x`, or of `src` behind it."""
    return torch.cat([x, src], dim).index_select(dim, place)


def _copy(x: Tensor, src: Tensor, non_blocking: bool = False) -> Any:
    """`src` in the shape and dtype of `x`."""
    return src.to(x.dtype).expand(x.shape).clone()


def _fill(x: Tensor, value: Any) -> Any:
    """One number everywhere."""
    return _copy(x, value) if isinstance(value, Tensor) else torch.full_like(x, value)


def _zero(x: Tensor) -> Any:
    """0 everywhere."""
    return torch.zeros_like(x)


ASSIGNMENTS: dict[Any, Callable[..., Any]] = {
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.index_put.default: _index_put,
    aten.copy.default: _copy,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.zero.default: _zero,
}
