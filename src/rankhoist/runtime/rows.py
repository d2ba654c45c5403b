"""What one row of an input is: its dtype and shape, or bags; and an input that is checked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.arguments import as_a_tensor
from rankhoist.capture import Varying
from rankhoist.capture.jagged import Jagged
from rankhoist.errors import InputError


class Row(NamedTuple):
    """What one row of an input is; of a jagged one, what one value of each column is. Axes that vary are named."""

    dtype: torch.dtype
    shape: torch.Size
    bags: tuple[Row, ...] = ()
    varying: tuple[Varying, ...] = ()

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a row may have this shape."""
        if not self.varying or len(shape) != len(self.shape):
            return tuple(shape) == self.shape
        free = {v.axis - 1: v for v in self.varying}
        sizes = zip(shape, self.shape, strict=True)
        return all(free[i].holds(n) if i in free else n == own for i, (n, own) in enumerate(sizes))

    @property
    def axes(self) -> list[str]:
        """Sizes to read: `[10, 2..200]`."""
        free = {v.axis - 1: v for v in self.varying}
        return [free[i].text if i in free else str(n) for i, n in enumerate(self.shape)]


def bags_of(name: str, given: Any, side: str, row: Row) -> Jagged:
    """A jagged input that has the columns it should, whole numbers in their own width.

    Raises:
        InputError: it has not.
    """
    if not isinstance(given, Jagged):
        raise InputError(
            f"{side} input {name!r} is {type(given).__name__}, expected bags of values: rankhoist.Jagged(values, "
            "lengths=...)"
        )
    if len(given.values) != len(row.bags):
        raise InputError(f"{side} input {name!r} has {len(given.values)} columns, expected {len(row.bags)}")
    columns = [
        v if v.shape[1:] == own.shape and v.dtype == own.dtype else in_own_width(name, v, side, own, "values")
        for v, own in zip(given.values, row.bags, strict=True)
    ]
    return Jagged.of(columns, given.lengths.to(torch.int64))


def in_own_width(name: str, tensor: Any, side: str, row: Row, first: str = "rows") -> Tensor:
    """An input of whole numbers of another width, in its own width.

    Raises:
        InputError: it is of another kind or shape, or has a number that does not fit.
    """
    if not isinstance(tensor, Tensor):
        raise InputError(f"{side} input {name!r} is {type(tensor).__name__}, expected a tensor{as_a_tensor(tensor)}")
    if tensor.is_meta:
        raise InputError(f"{side} input {name!r} is on the meta device and has no values")
    if tensor.dim() == 0 or not row.fits(tensor.shape[1:]):
        expected = ", ".join([first, *row.axes])
        advice = _of_lists(tensor, row) if side == "candidate" else ""
        raise InputError(f"{side} input {name!r} has shape {list(tensor.shape)}, expected [{expected}]{advice}")
    if not _whole(tensor.dtype, row.dtype):
        raise InputError(f"{side} input {name!r} has dtype {tensor.dtype}, expected {row.dtype}")
    if not _fits(tensor, row.dtype):
        raise InputError(f"{side} input {name!r} has numbers that do not fit {row.dtype}, which the example has")
    return tensor.to(row.dtype)


def _of_lists(tensor: Tensor, row: Row) -> str:
    """Advice, where one request's candidates may be a list on axis 1."""
    listed = row.shape and tensor.dim() > 1 and tensor.shape[0] == 1 and tensor.shape[2:] == row.shape[1:]
    return "; if axis 1 is a list of candidates, hoist with lists of one: a row is a candidate" if listed else ""


def _whole(*dtypes: torch.dtype) -> bool:
    return not any(d.is_floating_point or d.is_complex or d is torch.bool for d in dtypes)


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    given, own = torch.iinfo(tensor.dtype), torch.iinfo(dtype)
    if own.min <= given.min and given.max <= own.max:
        return True
    low, high = torch.aminmax(tensor.to(torch.int64)) if tensor.numel() else (0, 0)  # 2**63 and more is below 0 there
    return max(own.min, given.min) <= int(low) and int(high) <= own.max
