"""A job in parts: each a range of whole requests that is read, scored and written on its own.

Parts are cut once, before anything is scored, from the request ids alone. So the same rows come out whoever scores a
part, in whatever order, and however often the job was stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankhoist.errors import ScoringError
from rankhoist.score.files import Cursor, Files

RECENT = 100_000  # requests, in which an id that comes again is found
BATCH = 65_536  # rows of ids that are read at a time


@dataclass(frozen=True)
class Run:
    """One request: its row, its first candidate's row, and how many candidates it has."""

    request: int
    candidate: int
    rows: int


@dataclass(frozen=True)
class Part:
    """Rows `[first, end)` of the requests' and of the candidates' files; `rows` candidates of `count` requests."""

    number: int
    requests: tuple[int, int]
    candidates: tuple[int, int]
    count: int
    rows: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.number:06d}.parquet"


def cut(runs: Iterable[Run], size: int) -> list[Part]:
    """Whole requests, put together until a part has at least `size` candidates (or as many requests)."""
    parts: list[Part] = []
    own: tuple[Run, Run] | None = None
    count = rows = 0
    for run in runs:
        own, count, rows = (own[0] if own else run, run), count + 1, rows + run.rows
        if max(rows, run.request + 1 - own[0].request) >= size:
            parts.append(_part(len(parts), *own, count, rows))
            own, count, rows = None, 0, 0
    if own or not parts:
        first, last = own or (Run(0, 0, 0), Run(-1, 0, 0))
        parts.append(_part(len(parts), first, last, count, rows))
    return parts


def _part(number: int, first: Run, last: Run, count: int, rows: int) -> Part:
    candidates = (first.candidate, last.candidate + last.rows)
    return Part(number, (first.request, last.request + 1), candidates, count, rows)


def starts(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Where a run of equal ids begins, the first row included."""
    if not len(ids):
        return np.zeros(0, np.int64)
    changed = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return np.concatenate([[0], np.flatnonzero(changed.to_numpy(zero_copy_only=False)) + 1])


def ids_in_order(files: Files, column: str) -> Iterator[tuple[Any, int, int]]:
    """(id, first row, rows) of every run of equal ids.

    Raises:
        ScoringError: an id is null, or comes again after another request.
    """
    recent = Recent(files, column)
    current, first = None, 0
    for piece in Cursor(files, [column], BATCH).read(0, files.rows, BATCH):
        ids = piece.column(column)
        if ids.null_count:
            raise piece.wrong(int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False))), column, "a null")
        begins = starts(ids)
        for own, row in zip(ids.take(pa.array(begins)).to_pylist(), begins.tolist(), strict=True):
            if own == current:
                continue
            if current is not None:
                yield current, first, piece.first + row - first
            current, first = own, piece.first + row
            recent.add(own, first)
    if current is not None:
        yield current, first, files.rows - first


class Recent:
    """The ids of the last requests; the memory of a job does not grow with its requests."""

    def __init__(self, files: Files, column: str) -> None:
        self._files, self._column = files, column
        self._order: deque[Any] = deque()
        self._rows: dict[Any, int] = {}

    def add(self, own: Any, row: int) -> None:
        """A request that begins in a row."""
        if own in self._rows:
            raise ScoringError(
                f"{self._files.where(row)}, column {self._column!r}: request {own!r} comes again, after other requests "
                f"(first in {self._files.where(self._rows[own])}); the rows of a request must follow each other: sort "
                f"the rows by {self._column!r}"
            )
        self._rows[own] = row
        self._order.append(own)
        if len(self._order) > RECENT:
            del self._rows[self._order.popleft()]
