"""Columns of Parquet files as the model's inputs: which column is which input, and Arrow arrays as tensors.

A scalar input is a column of numbers; an input `[rows, T]` is a column of lists of T numbers, `[rows, T, K]` one of
lists of lists. The context columns of a packed input NAME are the lists `NAME.context`, the others `NAME.candidate`, or
`NAME.item` and `NAME.pair` where items stand in files of their own. A column of a jagged input is one of lists of any
length, of which a null is an empty one; where axis 1 of an input varies, of lists within its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rankhoist.capture import InputSpec, Jagged, Varying
from rankhoist.errors import InputError, ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.score.files import Piece

Rows = Tensor | Jagged
MOST = np.iinfo(np.int64).max
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class Feature:
    """One side of one input, or a column of a jagged one: the column that holds it, and what a row of it is.

    `jagged`: a row is a list of as many values as there are, each of this shape; of an input whose axis 1 is `varying`,
    within its bounds. `allow_nan`: NaN and infinities are numbers, too.
    """

    column: str
    input: str
    context: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    jagged: bool = False
    varying: Varying | None = None
    allow_nan: bool = False

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        one = f"lists of {' x '.join(map(str, self.shape))} {kind}" if self.shape else f"numbers ({kind})"
        if self.varying is not None:
            return f"lists, {self.varying.text} long, of {one}"
        return f"lists, of any length, of {one}" if self.jagged else one

    @property
    def depth(self) -> int:
        """How many lists are in each other."""
        return len(self.shape) + self.jagged

    @property
    def purpose(self) -> str:
        """For an error about a missing column."""
        return f"which {'context' if self.context else 'candidate'} input {self.input!r} needs: {self}"


def features(model: HoistedModel, with_items: bool = False, allow_nan: bool = False) -> list[Feature]:
    """The columns that a model needs; `with_items`: where items stand in files of their own."""
    return _of_sides(model, ("context", "pair") if with_items else ("context", "candidate"), with_items, allow_nan)


def item_features(model: HoistedModel, allow_nan: bool = False) -> list[Feature]:
    """The columns of items.

    Raises:
        InputError: no input is marked as the item's.
    """
    return _marked(_of_sides(model, ("item",), True, allow_nan))


def shared_features(model: HoistedModel, allow_nan: bool = False) -> tuple[list[Feature], list[Feature]]:
    """The columns that a model needs of every row, and those of its items, where all of them stand on the rows.

    A packed input of which some columns are the item's and others the pair's is in both.

    Raises:
        InputError: no input is marked as the item's.
    """
    sides = {s.name: {part.side for part in s.parts_with_store} for s in model.interface.inputs.values()}
    every = features(model, allow_nan=allow_nan)
    of_items = [f for f in every if not f.context and "item" in sides[f.input]]
    return [f for f in every if f.context or "pair" in sides[f.input]], _marked(of_items)


def _marked(items: list[Feature]) -> list[Feature]:
    if not items:
        raise InputError("no input is marked as the item's: hoist the model with item=[...]")
    return items


def _of_sides(model: HoistedModel, sides: Sequence[str], with_items: bool, allow_nan: bool) -> list[Feature]:
    made = list[Feature]()
    for spec in model.interface.inputs.values():
        parts = spec.parts_with_store if with_items else spec.parts
        if spec.varying:
            if parts[0].side in sides:
                made.append(_of_any_length(spec, _own(model, spec.dtype)))
            continue
        if spec.bags:
            if parts[0].side in sides:
                own = parts[0].side == "context"
                made += [Feature(c.name, spec.name, own, _own(model, c.dtype), c.shape, True) for c in spec.bags]
            continue
        dtype = _own(model, spec.dtype)
        for side, suffix, columns in parts:
            if side in sides:
                shape = tuple(spec.shape) if columns is None else (len(columns),)
                made.append(Feature(spec.name + suffix, spec.name, side == "context", dtype, shape))
    return [replace(feature, allow_nan=allow_nan) for feature in made]


def _of_any_length(spec: InputSpec, dtype: torch.dtype) -> Feature:
    """The column of an input with an axis that varies."""
    own = spec.varying[-1]
    if own.axis != 1:
        raise ScoringError(f"axis {own.axis} of input {spec.name!r} varies: files have lists of any length for axis 1")
    return Feature(spec.name, spec.name, spec.role == "context", dtype, spec.shape[1:], True, own)


def _own(model: HoistedModel, dtype: torch.dtype) -> torch.dtype:
    """The dtype of an input, which moves with the model where it was the model's."""
    return model.dtype if dtype == model.interface.dtype else dtype


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists."""
    return any(check(kind) for check in LISTS)


def inputs(
    features: Sequence[Feature], piece: Piece, array_of: Callable[[str], pa.Array] | None = None,
    row_of: Callable[[int], int] = int,
) -> dict[str, Rows]:  # fmt: skip
    """Inputs by name, `[rows, *shape]`; the columns of a jagged one together.

    Args:
        array_of: a column by name, with a value per row: by default that of the piece.
        row_of: the piece's row of a position in it, for errors.

    Raises:
        ScoringError: a null, a list of another length, a number that is not finite, or a type that is not the input's;
            or the lists of one jagged input differ in length.
    """
    made: dict[str, Rows] = {}
    for feature in features:
        array = (array_of or piece.column)(feature.column)
        if not feature.jagged:
            made[feature.input] = converted(feature, array, piece, row_of)
            continue
        own, earlier = _bags(feature, array, piece, row_of), made.get(feature.input)
        if isinstance(earlier, Jagged):
            odd = np.flatnonzero((earlier.lengths != own.lengths).numpy())
            if len(odd):
                a, b = (int(x.lengths[odd[0]]) for x in (own, earlier))
                said = f"a list of {a}, where {feature.input!r} has {b}"
                raise piece.wrong(row_of(int(odd[0])), feature.column, said)
            own = Jagged.of([*earlier.values, *own.values], own.lengths)
        made[feature.input] = own
    return made


def _bags(feature: Feature, array: pa.Array, piece: Piece, row_of: Callable[[int], int]) -> Jagged:
    """A column of lists of any length as bags; a null is empty, but not where a length has bounds."""
    if not is_list(array.type):
        raise piece.wrong(row_of(0), feature.column, f"the column is {array.type}; expected {feature}")
    lengths = np.array(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    if (own := feature.varying) is not None:
        none = array.is_null().to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(none | (lengths < own.low) | (lengths > (MOST if own.high is None else own.high)))
        if len(odd):
            found = "a null" if none[odd[0]] else f"a list of {lengths[odd[0]]}"
            raise piece.wrong(row_of(int(odd[0])), feature.column, f"{found}; expected {feature}")
    ends = lengths.cumsum()
    values = converted(
        feature, array.flatten(), piece, lambda place: row_of(int(np.searchsorted(ends, place, side="right")))
    )
    return Jagged.of([values], torch.from_numpy(lengths))


def converted(feature: Feature, array: pa.Array, piece: Piece, row_of: Any) -> Tensor:
    """An array as a tensor `[len(array), *shape]`; `row_of` finds the piece's row of a position, for errors.

    Raises:
        ScoringError: a null, a list of another length, a number that is not finite, or a type that is not the input's.
    """
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
    """Numbers in the dtype of the input, where that changes none of them (in a float input, all are rounded, and truth
    is 1).
    """
    kind, dtype = array.type, feature.dtype
    floating, integer, truth = pa.types.is_floating(kind), pa.types.is_integer(kind), pa.types.is_boolean(kind)
    fits = floating or integer or truth if dtype.is_floating_point else truth if dtype == torch.bool else integer
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
    if floating and not feature.allow_nan and not (finite := np.isfinite(target)).all():
        place = int(np.argmin(finite))
        raise wrong(place, f"{values[place]} is no finite number, which allow_nan (--allow-nan) alone takes")
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


def same_in_runs(rows: Rows, starts: npt.NDArray[np.int64]) -> int | None:
    """The first row whose value is not that of the row before, though no run starts there; None if there is none."""
    if len(rows) < 2:
        return None
    changed = _other_bags(rows) if isinstance(rows, Jagged) else ~alike(rows[:-1], rows[1:]).numpy()
    changed[starts[starts > 0] - 1] = False
    return int(np.argmax(changed)) + 1 if changed.any() else None


def alike(before: Tensor, after: Tensor) -> Tensor:
    """Which rows are the same; NaN is like NaN here."""
    same = (before == after) | (before != before) & (after != after)
    return same.reshape(len(same), math.prod(same.shape[1:])).all(1)


def _other_bags(rows: Jagged) -> npt.NDArray[np.bool_]:
    """Which bags differ from those before them, from the second on."""
    changed = torch.zeros(len(rows), dtype=torch.bool)
    changed[1:] = rows.lengths[1:] != rows.lengths[:-1]
    owner = torch.repeat_interleave(torch.arange(len(rows)), rows.lengths)
    places = torch.nonzero((owner > 0) & ~changed[owner]).flatten()  # of values with one in the same place before
    for column in rows.values:
        other = ~alike(column[places], column[places - rows.lengths[owner[places]]])
        changed[owner[places[other]]] = True
    return changed[1:].numpy()
