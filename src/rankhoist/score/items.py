"""Items in Parquet files: a row of each, with its id and the inputs that are marked as the item's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.score.columns import item_features, tensor
from rankhoist.score.files import Cursor, Files, Piece, found

BLOCK = 16_384  # items that are read at a time
Ids = npt.NDArray[Any]


class ItemFiles:
    """Files, folders or globs of items for a model; `id` is the column of their ids, whole numbers or texts.

    Raises:
        ScoringError: a file cannot be read, or lacks a column.
    """

    def __init__(self, paths: Sequence[str], model: HoistedModel, id: str) -> None:
        self._files, self._id = Files(found(paths)), id
        self._features = item_features(model)
        for feature in self._features:
            self._files.type_of(feature.column, feature.purpose)
        id_type(self._files, id)

    @property
    def count(self) -> int:
        """Of the items."""
        return self._files.rows

    def pieces(self) -> Iterator[tuple[Ids, dict[str, Tensor]]]:
        """Ids `[K]` and inputs `[K, ...]` of some items after the other.

        Raises:
            ScoringError: a value is not as expected; says in which file, row and column.
        """
        columns = [self._id, *(f.column for f in self._features)]
        for piece in Cursor(self._files, columns, BLOCK).read(0, self.count, BLOCK):
            yield ids(piece, self._id), {f.input: tensor(f, piece) for f in self._features}


def id_type(files: Files, column: str) -> pa.DataType:
    """The type of a column of ids.

    Raises:
        ScoringError: there is none, or it has neither whole numbers nor texts.
    """
    kind = files.type_of(column, "which has the ids of items (--item-id names another)")
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return kind
    raise ScoringError(f"{files.paths[0]}: column {column!r} is {kind}; an item's id is a number or a text")


def ids(piece: Piece, column: str) -> Ids:
    """The ids of items, `[K]`.

    Raises:
        ScoringError: one is null.
    """
    array = piece.column(column)
    if array.null_count:
        raise piece.wrong(int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))), column, "a null")
    values = array.to_numpy(zero_copy_only=False)
    made: Ids = values.astype(np.int64 if pa.types.is_integer(array.type) else np.str_)
    return made
