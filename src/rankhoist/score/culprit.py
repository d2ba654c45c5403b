"""Which value a model refuses: an id outside of its vocabulary, found by scoring ever fewer rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rankhoist.capture import Jagged
from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.score.columns import Rows
from rankhoist.score.layouts import Block


def explained(model: HoistedModel, block: Block, requests: range, error: IndexError) -> ScoringError:
    """The error of a call with these requests, with the file, row, column and value that it comes from."""

    def fails(request: int, rows: range, zeroed: str = "") -> bool:
        """Whether candidates of a request are refused, one input's values being 0 instead."""
        context = {n: t[request : request + 1] for n, t in block.context.items()}
        candidate = {n: t[rows.start : rows.stop] for n, t in block.candidate.items()}
        for side in (context, candidate):
            if zeroed in side:
                side[zeroed] = _zeros(side[zeroed])
        try:
            model.score(model.prepare(context), candidate)
        except IndexError:
            return True
        return False

    def rows_of(request: int) -> range:
        return range(int(block.offsets[request]), int(block.offsets[request + 1]))

    bad = next((r for r in requests if rows_of(r) and fails(r, rows_of(r))), None)
    if bad is None:
        return ScoringError(f"{block.where(int(block.offsets[requests[0]]))} and after: {error}")
    row = _first(rows_of(bad), lambda rows: fails(bad, rows))
    names = [*block.context, *block.candidate]
    column = next((n for n in names if not fails(bad, range(row, row + 1), zeroed=n)), None)
    if column is None:
        return ScoringError(f"{block.where(row)}: {error}; is every id of the row in the model's vocabulary?")
    place, side = (row, block.candidate) if column in block.candidate else (bad, block.context)
    value = _values(side[column][place : place + 1])
    return ScoringError(f"{block.where(row)}, column {column!r}: {value} is not in the model's vocabulary ({error})")


def _zeros(rows: Rows) -> Rows:
    """The same rows with 0 for every value."""
    if isinstance(rows, Jagged):
        return Jagged.of([torch.zeros_like(column) for column in rows.values], rows.lengths)
    return torch.zeros_like(rows)


def _values(row: Rows) -> Any:
    """What a row holds; of a jagged input its ids, which come first."""
    return row.values[0].tolist() if isinstance(row, Jagged) else row[0].tolist()


def _first(rows: range, fails: Callable[[range], bool]) -> int:
    """A row that fails alone, by halves; where none does, the first."""
    while len(rows) > 1:
        half = len(rows) // 2
        rows = rows[:half] if fails(rows[:half]) else rows[half:]
    return rows.start
