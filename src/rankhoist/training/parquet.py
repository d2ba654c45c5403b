"""Columns of Parquet files in memory: numbers as tensors, lists as tensors or bags."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankhoist.capture import Jagged
from rankhoist.errors import ExtraError, InputError
from rankhoist.mistakes import first_line

Column = Tensor | Jagged  # rows, or a bag of values per row


def read(
    paths: str | Path | Sequence[str | Path], columns: Sequence[str] | None = None, jagged: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Column]:  # fmt: skip
    """Columns by name: numbers and booleans `[rows]`, lists of one length `[rows, length]`, those of `jagged` as bags.

    Args:
        columns: all, where None.
        names: columns whose values, of any type, only tell rows apart: their numbers `[rows]`, 0 for the first one met.

    Raises:
        ExtraError: the extra `score` is not installed.
        InputError: a file or column is not there, or a column is of another kind, has gaps, or lists of several lengths
            and is not named in `jagged`. Rows are counted from 0 through all files.
    """
    wanted = None if columns is None else [*dict.fromkeys([*columns, *jagged, *names])]
    table = _table(paths, wanted)
    missing = [name for name in (*jagged, *names) if name not in table.column_names]
    if missing:
        raise InputError(f"no column {missing[0]!r}; the columns are {', '.join(table.column_names)}")
    made: dict[str, Column] = {}
    for name in table.column_names:
        column = _whole(name, table[name])
        made[name] = _numbered(column) if name in names else _column(name, column, name in jagged)
    return made


def _table(paths: Any, columns: list[str] | None) -> Any:
    try:
        dataset = importlib.import_module("pyarrow.dataset")
    except ImportError as error:
        raise ExtraError("reading Parquet needs an extra: pip install 'rankhoist[score]'") from error
    given = [str(p) for p in paths] if isinstance(paths, Sequence) and not isinstance(paths, str) else str(paths)
    try:
        return dataset.dataset(given, format="parquet").to_table(columns=columns)
    except Exception as error:  # a path, a column or a file; pyarrow says which
        raise InputError(f"{given} cannot be read: {first_line(error)}") from error


def _whole(name: str, column: Any) -> Any:
    """A column as one array without gaps; dictionaries are replaced by what they stand for."""
    array = column.combine_chunks()
    if array.null_count:
        first = int(array.is_null().to_numpy(zero_copy_only=False).argmax())
        raise InputError(f"column {name!r} has {array.null_count} gaps, the first in row {first}; fill them first")
    kind = importlib.import_module("pyarrow").types
    return array.dictionary_decode() if kind.is_dictionary(array.type) else array


def _numbered(array: Any) -> Tensor:
    """A number for every value, in the order in which they first come."""
    return torch.from_numpy(array.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype("int64"))


def _column(name: str, array: Any, jagged: bool) -> Column:
    """As a tensor in its own memory, or as bags."""
    kind = importlib.import_module("pyarrow").types
    if not (kind.is_list(array.type) or kind.is_large_list(array.type) or kind.is_fixed_size_list(array.type)):
        if jagged:
            raise InputError(f"column {name!r} holds {array.type}, expected lists of numbers")
        return _of_numbers(name, array)
    lengths = torch.tensor([], dtype=torch.int64)
    if len(array):
        lengths = torch.from_numpy(array.value_lengths().to_numpy(zero_copy_only=False).astype("int64"))
    inside = array.flatten()
    if inside.null_count:
        place = int(inside.is_null().to_numpy(zero_copy_only=False).argmax())
        row = int(torch.searchsorted(lengths.cumsum(0), place, right=True))
        raise InputError(f"column {name!r} has {inside.null_count} gaps in its lists, the first in row {row}")
    values = _of_numbers(name, inside)
    if jagged:
        return Jagged(values, lengths=lengths)
    if len(lengths.unique()) > 1:
        raise InputError(
            f"column {name!r} holds lists of {int(lengths.min())} to {int(lengths.max())} values: name it in jagged, "
            "or pad them to one length"
        )
    return values.reshape(len(array), -1)


def _of_numbers(name: str, array: Any) -> Tensor:
    kind = importlib.import_module("pyarrow").types
    if not (kind.is_integer(array.type) or kind.is_floating(array.type) or kind.is_boolean(array.type)):
        raise InputError(f"column {name!r} holds {array.type}, expected numbers or lists of numbers")
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:  # torch computes with none of these
        if len(values) and values.max() >= 2**63:
            raise InputError(f"column {name!r} holds {values.max()}, which is over 2^63")
        return torch.from_numpy(values.astype("int64"))
    return torch.from_numpy(values.copy())
