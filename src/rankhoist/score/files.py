"""Parquet files as one long table: where a row is, and rows batch by batch in memory that does not grow."""

from __future__ import annotations

import bisect
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rankhoist.errors import ScoringError

BUFFER = 2**20  # bytes that are read of a column at a time


def found(given: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The Parquet files that paths, folders and globs name: those of a folder or a glob by name."""
    files: list[Path] = []
    for path in map(str, given):
        if os.path.isdir(path):
            matches = sorted(p for p in Path(path).rglob("*.parquet") if not p.name.startswith((".", "_")))
        else:
            matches = [Path(path)] if os.path.exists(path) else sorted(map(Path, glob.glob(path, recursive=True)))
        if not matches:
            raise ScoringError(f"{path}: no Parquet file is there")
        files += matches
    return files


class Files:
    """Parquet files, in order, as one table; rows are numbered from 0 through all of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        footers = [_footer(path) for path in self.paths]
        self.schemas = [footer.schema.to_arrow_schema() for footer in footers]
        self._starts = [0, *itertools.accumulate(footer.num_rows for footer in footers)]
        self._groups = [
            [0, *itertools.accumulate(footer.row_group(g).num_rows for g in range(footer.num_row_groups))]
            for footer in footers
        ]

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return int(self._starts[-1])

    @property
    def names(self) -> list[str]:
        """The columns of the first file."""
        return list(self.schemas[0].names)

    def type_of(self, column: str, what: str) -> pa.DataType:
        """The type of a column, the same in every file.

        Raises:
            ScoringError: a file lacks it, or has it in another type; `what` says what it is needed for.
        """
        for path, schema in zip(self.paths, self.schemas, strict=True):
            if column not in schema.names:
                raise ScoringError(f"{path}: no column {column!r}, {what}; its columns are {', '.join(schema.names)}")
            kind, first = schema.field(column).type, self.schemas[0].field(column).type
            if kind != first:
                raise ScoringError(f"{path}: column {column!r} is {kind}, but {first} in {self.paths[0]}")
        return _plain_type(first)

    def where(self, row: int) -> str:
        """`part-0.parquet, row 17`."""
        file = bisect.bisect_right(self._starts, row) - 1
        return f"{self.paths[file]}, row {row - self._starts[file]}"

    def group_of(self, row: int) -> tuple[int, int, int]:
        """The file and row group that hold a row, and the first row of that group."""
        file = min(bisect.bisect_right(self._starts, row), len(self.paths)) - 1
        within = row - self._starts[file]
        group = bisect.bisect_right(self._groups[file], within) - 1
        return file, group, self._starts[file] + self._groups[file][group]

    def batches(self, columns: Sequence[str], file: int, group: int, size: int) -> Iterator[pa.RecordBatch]:
        """Rows from the beginning of a row group to the end of all files."""
        for i in range(file, len(self.paths)):
            try:
                with pq.ParquetFile(self.paths[i], buffer_size=BUFFER, pre_buffer=False) as parquet:
                    groups = list(range(group if i == file else 0, parquet.num_row_groups))
                    for batch in parquet.iter_batches(size, groups, list(columns), use_threads=False):
                        yield batch.select(list(columns))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self.paths[i], error) from error


class Table(Files):
    """One table in memory in the place of files."""

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self.paths, self.schemas, self._starts, self._groups = [Path("table")], [schema], [0, rows], [[0, rows]]


@dataclass(frozen=True)
class Piece:
    """Rows of the files: consecutive ones from row `first` on, or those with the numbers `taken`, counted from it."""

    files: Files
    first: int
    rows: pa.RecordBatch
    taken: npt.NDArray[np.int64] | None = None

    def column(self, name: str) -> pa.Array:
        """One column; dictionaries are replaced by what they stand for."""
        column = self.rows.column(name)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

    def where(self, row: int) -> str:
        """Where a row of the piece, counted from 0, is."""
        return self.files.where(self.first + (row if self.taken is None else int(self.taken[row])))

    def wrong(self, row: int, column: str, what: str) -> ScoringError:
        """An error in a row of the piece."""
        return ScoringError(f"{self.where(row)}, column {column!r}: {what}")

    def slice(self, start: int, stop: int | None = None) -> Piece:
        """Some of its rows, which are consecutive."""
        length = None if stop is None else stop - start
        return Piece(self.files, self.first + start, self.rows.slice(start, length))


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other as one."""
    if len(pieces) == 1:
        return pieces[0]
    table = pa.Table.from_batches([piece.rows for piece in pieces]).combine_chunks()
    return Piece(pieces[0].files, pieces[0].first, *table.to_batches())


class Cursor:
    """Reads ranges of rows; of ranges that rise, no row is decoded twice. `size`: rows that are decoded at a time."""

    def __init__(self, files: Files, columns: Sequence[str], size: int) -> None:
        self._files, self._columns, self._size = files, list(dict.fromkeys(columns)), size
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first, self._rest = files.rows, None  # the next row that was not given out, and decoded rows from there

    def read(self, start: int, stop: int, size: int) -> Iterator[Piece]:
        """The rows from `start` to before `stop` in pieces of `size`, whatever was read before."""
        if start < stop:
            self._seek(start)
        for first in range(start, stop, size):
            yield joined(list(self._decoded(first, min(first + size, stop))))

    def take(self, rows: npt.NDArray[np.int64]) -> Piece:
        """Some rows, at least one, ascending; what is between them is not copied."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        self._seek(start)
        taken = []
        for piece in self._decoded(start, stop):
            low, high = np.searchsorted(rows, [piece.first, piece.first + piece.rows.num_rows])
            taken.append(Piece(self._files, start, piece.rows.take(pa.array(rows[low:high] - piece.first))))
        return replace(joined(taken), taken=rows - start)

    def _decoded(self, start: int, stop: int) -> Iterator[Piece]:
        """Rows as they come."""
        while start < stop:
            rest = self._rest if self._rest is not None else next(self._batches)
            skip = start - self._first
            if skip >= rest.num_rows:
                self._first, self._rest = self._first + rest.num_rows, None
                continue
            taken = rest.slice(skip, stop - start)
            piece = Piece(self._files, start, taken)
            start += taken.num_rows
            self._first, self._rest = start, rest.slice(skip + taken.num_rows)
            yield piece

    def _seek(self, start: int) -> None:
        """Go on where the last range ended, unless `start` is before or in a later row group."""
        file, group, first = self._files.group_of(start)
        if not first <= self._first <= start:
            self._batches = self._files.batches(self._columns, file, group, self._size)
            self._first, self._rest = first, None


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ScoringError:
    return ScoringError(f"{path} cannot be read as Parquet: {error}")


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
