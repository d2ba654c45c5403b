"""The column that says which item a row is of: whole numbers or texts, one per row or one list per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rankhoist.errors import ScoringError
from rankhoist.score.columns import is_list
from rankhoist.score.files import Files, Piece

Ids = npt.NDArray[Any]


def check_ids(files: Files, column: str) -> None:
    """Refuse files that have no ids in a column.

    Raises:
        ScoringError: a file lacks it, or it has neither whole numbers nor texts.
    """
    kind = files.type_of(column, "which has the ids of items (--item-id names another)")
    one = kind.value_type if is_list(kind) else kind
    if not (pa.types.is_integer(one) or pa.types.is_string(one) or pa.types.is_large_string(one)):
        raise ScoringError(f"{files.paths[0]}: column {column!r} is {kind}; an item's id is a number or a text")


def ids_of(
    piece: Piece, column: str, array: pa.Array = None, row_of: Callable[[int], Any] = lambda position: position
) -> pa.Array:
    """The ids of items, `[N]`: a column, or an array made of it, whose rows are found for errors.

    Raises:
        ScoringError: one is null.
    """
    array = piece.column(column) if array is None else array
    if array.null_count:
        null = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise piece.wrong(int(row_of(null)), column, "a null; expected the id of an item")
    return array


def values_of(ids: pa.Array) -> Ids:
    """Ids `[N]` as a store takes them."""
    values = ids.to_numpy(zero_copy_only=False)
    made: Ids = values.astype(np.int64 if pa.types.is_integer(ids.type) else np.str_)
    return made
