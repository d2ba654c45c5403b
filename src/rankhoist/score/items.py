"""Items in Parquet files: a row of each, with its id and the inputs that are marked as the item's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankhoist.runtime import HoistedModel
from rankhoist.score.columns import Rows, inputs, item_features
from rankhoist.score.files import Cursor, Files, found
from rankhoist.score.item_ids import Ids, check_ids, ids_of, values_of

BLOCK = 16_384  # items that are read at a time


class ItemFiles:
    """Files, folders or globs of items for a model; `id` is the column of their ids, whole numbers or texts.

    `allow_nan`: their inputs may be NaN or infinite.

    Raises:
        ScoringError: a file cannot be read, or lacks a column.
    """

    def __init__(self, paths: Sequence[str], model: HoistedModel, id: str, allow_nan: bool = False) -> None:
        self._files, self._id = Files(found(paths)), id
        self._features = item_features(model, allow_nan)
        for feature in self._features:
            self._files.type_of(feature.column, feature.purpose)
        check_ids(self._files, id)

    @property
    def count(self) -> int:
        """Of the items."""
        return self._files.rows

    def pieces(self) -> Iterator[tuple[Ids, dict[str, Rows]]]:
        """Ids `[K]` and inputs `[K, ...]` of some items after the other.

        Raises:
            ScoringError: a value is not as expected; says in which file, row and column.
        """
        columns = [self._id, *(f.column for f in self._features)]
        for piece in Cursor(self._files, columns, BLOCK).read(0, self.count, BLOCK):
            yield values_of(ids_of(piece, self._id)), inputs(self._features, piece)
