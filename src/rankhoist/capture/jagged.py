"""Jagged inputs: a bag of values per row, of any size, the bags under each other in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankhoist.errors import InputError


class Jagged:
    """Bags of values, one a row: `[total, *shape]` and how many of them each row has, 0 or more.

    Rows are chosen as those of a tensor are: `bags[:8]`, `bags[index]`.

    Args:
        values: `[total, *shape]`; several tensors are columns of the same bags: ids, and a weight for each.
        lengths: `[rows]`, the number of values of each row. Or
        offsets: where each row begins, `[rows]`, or `[rows + 1]` with where the last one ends.

    Raises:
        InputError: lengths or offsets do not cut the values into bags.
    """

    def __init__(self, *values: Tensor, lengths: Tensor | None = None, offsets: Tensor | None = None) -> None:
        if not values or (lengths is None) == (offsets is None):
            raise InputError("jagged values need lengths [rows] or offsets [rows], one of both")
        for given in (*values, lengths if offsets is None else offsets):
            if not isinstance(given, Tensor) or not given.dim():
                raise InputError(f"jagged values, lengths and offsets are tensors of one axis and more, got {given!r}")
        total = len(values[0])
        if offsets is not None:
            lengths = _lengths(offsets, total)
        assert lengths is not None
        if lengths.dim() != 1 or lengths.is_floating_point() or any(len(v) != total for v in values):
            sizes = ", ".join(str(list(v.shape)) for v in values)
            raise InputError(f"jagged values {sizes} do not fit lengths {list(lengths.shape)} of {lengths.dtype}")
        if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.sum()) != total):
            raise InputError(f"lengths add up to {int(lengths.sum())} (the least is {int(lengths.min())}), not {total}")
        self.values, self.lengths = values, lengths.to(torch.int64)

    @classmethod
    def of(cls, values: Sequence[Tensor], lengths: Tensor) -> Jagged:
        """Of parts that fit."""
        made = cls.__new__(cls)
        made.values, made.lengths = tuple(values), lengths
        return made

    @staticmethod
    def joined(parts: Sequence[Jagged]) -> Jagged:
        """Rows under rows."""
        columns = zip(*(p.values for p in parts), strict=True)
        return Jagged.of([torch.cat(column) for column in columns], torch.cat([p.lengths for p in parts]))

    # -- as a tensor of rows

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        sizes = ", ".join(str(list(v.shape)) for v in self.values)
        return f"Jagged({sizes}, rows={len(self)})"

    def __getitem__(self, index: Any) -> Jagged:
        ends = self.lengths.cumsum(0)
        chosen = torch.arange(len(self), device=self.device)[index]
        lengths = self.lengths[chosen]
        own = lengths.cumsum(0) - lengths
        move = torch.repeat_interleave((ends - self.lengths)[chosen] - own, lengths)
        places = move + torch.arange(len(move), device=self.device)
        return Jagged.of([v[places] for v in self.values], lengths)

    @property
    def shape(self) -> torch.Size:
        return self.lengths.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.values[0].dtype

    @property
    def device(self) -> torch.device:
        return self.lengths.device

    def dim(self) -> int:
        return 1

    def is_floating_point(self) -> bool:
        """Whether any column has floating numbers."""
        return any(v.is_floating_point() for v in self.values)

    def to(self, device: Any, dtype: torch.dtype | None = None) -> Jagged:
        """On a device, or the columns of floating numbers in a dtype, or both."""
        if isinstance(device, torch.dtype):
            device, dtype = self.device, device
        moved = (v.to(device, dtype if v.is_floating_point() else None) for v in self.values)
        return Jagged.of(list(moved), self.lengths.to(device))

    def cpu(self) -> Jagged:
        return self.to("cpu")

    def detach(self) -> Jagged:
        return Jagged.of([v.detach() for v in self.values], self.lengths)

    def clone(self) -> Jagged:
        return Jagged.of([v.clone() for v in self.values], self.lengths.clone())

    def flip(self, dim: int) -> Jagged:
        """Rows in reverse; a bag stays as it is."""
        return self[torch.arange(len(self) - 1, -1, -1, device=self.device)]

    def repeat_interleave(self, repeats: int | Tensor, dim: int = 0) -> Jagged:
        """Every row so many times, all of them or each."""
        return self[torch.arange(len(self), device=self.device).repeat_interleave(repeats)]


def flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by the names that stages read: of a jagged input its lengths, and each of its columns."""
    made: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Jagged):
            made[f"{name}.lengths"] = value.lengths
            made |= {f"{name}.values_{i}": column for i, column in enumerate(value.values)}
        else:
            made[name] = value
    return made


def _lengths(offsets: Tensor, total: int) -> Tensor:
    """The lengths between offsets `[rows]`; `[rows + 1]` where the last one is the end."""
    if offsets.dim() == 1 and not len(offsets) and not total:
        return offsets.to(torch.int64)  # no rows
    if offsets.dim() != 1 or offsets.is_floating_point() or not len(offsets) or int(offsets[0]) != 0:
        raise InputError(f"offsets {list(offsets.shape)} of {offsets.dtype} must be whole numbers that begin with 0")
    ends = torch.cat([offsets[1:], offsets.new_full((1,), total)])
    return ends - offsets
