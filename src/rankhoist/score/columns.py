"""Columns of Parquet files as the model's inputs: which column is which input, and Arrow arrays as tensors.

A scalar input is a column of numbers; an input `[rows, T]` is a column of lists of T numbers, `[rows, T, K]` one of
lists of lists. The context columns of a packed input NAME are the lists `NAME.context`, the others `NAME.candidate`, or
`NAME.item` and `NAME.pair` where items stand in files of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rankhoist.errors import InputError, ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.score.files import Piece

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class Feature:
    """One side of one input: the column that holds it, and what a row of it is."""

    column: str
    input: str
    context: bool
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"lists of {' x '.join(map(str, self.shape))} {kind}" if self.shape else f"numbers ({kind})"

    @property
    def purpose(self) -> str:
        """For an error about a missing column."""
        return f"which {'context' if self.context else 'candidate'} input {self.input!r} needs: {self}"


def features(model: HoistedModel, with_items: bool = False) -> list[Feature]:
    """The columns that a model needs; `with_items`: where items stand in files of their own."""
    return _of_sides(model, ("context", "pair") if with_items else ("context", "candidate"), with_items)


def item_features(model: HoistedModel) -> list[Feature]:
    """The columns of items.

    Raises:
        InputError: no input is marked as the item's.
    """
    made = _of_sides(model, ("item",), with_items=True)
    if not made:
        raise InputError("no input is marked as the item's: hoist the model with item=[...]")
    return made


def _of_sides(model: HoistedModel, sides: Sequence[str], with_items: bool) -> list[Feature]:
    made = []
    for spec in model.interface.inputs.values():
        if spec.bags:
            raise ScoringError(f"input {spec.name!r} is jagged (bags of values), which no file is scored with yet")
        dtype = model.dtype if spec.dtype == model.interface.dtype else spec.dtype
        for side, suffix, columns in spec.parts_with_store if with_items else spec.parts:
            if side in sides:
                shape = tuple(spec.shape) if columns is None else (len(columns),)
                made.append(Feature(spec.name + suffix, spec.name, side == "context", dtype, shape))
    return made


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists."""
    return any(check(kind) for check in LISTS)


def tensor(feature: Feature, piece: Piece) -> Tensor:
    """A column with a value per row of the piece: `[rows, *shape]`.

    Raises:
        ScoringError: a null, a list of another length, or a type that is not the input's.
    """
    return converted(feature, piece.column(feature.column), piece, lambda position: position)


def converted(feature: Feature, array: pa.Array, piece: Piece, row_of: Any) -> Tensor:
    """An array as a tensor `[len(array), *shape]`; `row_of` finds the piece's row of a position, for errors."""
    size = 1  # numbers per value, of the axes unpacked so far

    def wrong(position: int, what: str) -> ScoringError:
        return piece.wrong(int(row_of(position // size)), feature.column, f"{what}; expected {feature}")

    rows = len(array)
    for length in feature.shape:
        if not is_list(array.type):
            raise wrong(0, f"the column is {array.type}")
        _refuse(array.is_null(), wrong, "a null")
        lengths = _lengths(array)
        odd = np.flatnonzero(lengths != length)
        if len(odd):
            raise wrong(int(odd[0]), f"a list of {lengths[odd[0]]}, expected {length}")
        array, size = array.flatten(), size * length
    _refuse(array.is_null(), wrong, "a null")
    return _numbers(feature, array, wrong).view(rows, *feature.shape)


def _lengths(array: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(array.value_lengths().to_numpy(zero_copy_only=False), np.int64)


def _refuse(found: pa.Array, wrong: Any, what: str) -> None:
    if found.true_count:
        raise wrong(int(np.argmax(found.to_numpy(zero_copy_only=False))), what)


def _numbers(feature: Feature, array: pa.Array, wrong: Any) -> Tensor:
    """Numbers in the dtype of the input, where that changes none of them (in a float input, all are rounded)."""
    kind, dtype = array.type, feature.dtype
    floating, integer, truth = pa.types.is_floating(kind), pa.types.is_integer(kind), pa.types.is_boolean(kind)
    fits = floating or integer if dtype.is_floating_point else truth if dtype == torch.bool else integer
    if not fits:
        raise wrong(0, f"the column holds {kind}")
    values = array.to_numpy(zero_copy_only=False)
    # PyTorch's own memory is aligned: products round alike wherever the rows were in a file or a batch.
    made = torch.empty(len(values), dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    target = made.numpy()
    np.copyto(target, values, casting="unsafe")
    if integer and not dtype.is_floating_point and not np.can_cast(values.dtype, target.dtype):
        changed = np.flatnonzero(target != values)
        if len(changed):
            raise wrong(int(changed[0]), f"{values[changed[0]]} is too large")
    return made.to(dtype)


def offsets_of(piece: Piece, column: str) -> npt.NDArray[np.int64]:
    """Boundaries `[rows + 1]` of a column of lists, which has one list per row of the piece."""
    array = piece.column(column)
    if not is_list(array.type):
        raise piece.wrong(0, column, f"the column is {array.type}; expected a list with a value per candidate")
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise piece.wrong(row, column, "a null; expected a list with a value per candidate, which may be empty")
    return np.concatenate([[0], np.cumsum(_lengths(array))])


def same_in_runs(values: Tensor, starts: npt.NDArray[np.int64]) -> int | None:
    """The first row whose value is not that of the row before, though no run starts there; None if there is none."""
    if len(values) < 2:
        return None
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    before, after = flat[:-1], flat[1:]
    same = (before == after) | (before != before) & (after != after)  # NaN is like NaN here
    changed = ~same.all(1).numpy()
    changed[starts[starts > 0] - 1] = False
    return int(np.argmax(changed)) + 1 if changed.any() else None
