"""The three layouts of requests and candidates in Parquet files, each read as blocks of whole requests.

    Nested      one row per request; candidate columns are lists with a value per candidate
    Repeated    one row per candidate, with the context of its request on every row
    Joined      one row per candidate; the context stands in files of their own, one row per request, in the same order

In the latter two a column tells which request a row belongs to, and the rows of a request follow each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rankhoist.errors import ScoringError
from rankhoist.score.columns import Feature, Rows, inputs, is_list, offsets_of, same_in_runs
from rankhoist.score.files import Cursor, Files, Piece, joined
from rankhoist.score.item_ids import check_ids, ids_of
from rankhoist.score.parts import BATCH, Part, Run, ids_in_order, starts

BLOCK = 16_384  # candidates that are read at a time, about

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """The columns of a job: the model's features, the column of request ids, and columns to copy to the scores.

    `item_id` is the column that says which item a row is of, where items stand in files of their own or rows of one
    item share its inputs: these are `items` then, and are read of some candidates only.
    """

    features: Sequence[Feature]
    request_id: str
    keep: Sequence[str]
    item_id: str | None = None
    items: Sequence[Feature] = ()

    def side(self, context: bool) -> list[Feature]:
        """The features of one side."""
        return [f for f in self.features if f.context == context]

    @property
    def of_candidates(self) -> list[str]:
        """The columns that have a value per candidate, those with the fewest axes first."""
        own = sorted(self.side(context=False), key=lambda f: f.depth)
        return [*([] if self.item_id is None else [self.item_id]), *(f.column for f in own)]

    @property
    def columns(self) -> list[str]:
        """All but what is copied."""
        return [*(f.column for f in self.side(context=True)), *self.of_candidates]


@dataclass(frozen=True)
class Block:
    """Whole requests.

    Attributes:
        context: `[R, ...]` by input.
        candidate: `[N, ...]` by input.
        offsets: the R + 1 boundaries of the requests' candidates.
        ids: `[N]` of their items, where a column says them.
        kept: `[N]` by column: the request's id and what is copied to the scores.
        where: says in which file and row a candidate is.
        items: reads what `candidate` lacks, where rows of one item share it: the inputs `[K, ...]` of candidates at K
            places, ascending.
    """

    context: dict[str, Rows]
    candidate: dict[str, Rows]
    offsets: Ints
    kept: dict[str, pa.Array]
    where: Callable[[int], str]
    ids: pa.Array | None = None
    items: Callable[[Ints], dict[str, Rows]] | None = None

    def whole(self) -> Block | None:
        """With all inputs of its candidates; None where those of items stand in files of their own."""
        if self.items is None:
            return self if self.ids is None else None
        return replace(self, candidate=self.candidate | self.items(np.arange(self.offsets[-1])), ids=None, items=None)


class Layout(ABC):
    """Requests and candidates in files."""

    wanted: Wanted
    kept: pa.Schema  # of the columns that are copied to the scores, the request's id first

    @abstractmethod
    def runs(self) -> Iterator[Run]:
        """All requests in order, found by reading as few columns as possible."""

    @abstractmethod
    def blocks(self, part: Part) -> Iterator[Block]:
        """The requests of a part."""


def layout_of(requests: Files | None, candidates: Files | None, wanted: Wanted) -> Layout:
    """The layout that these files have."""
    if requests is not None and candidates is not None:
        return Joined(requests, candidates, wanted)
    if candidates is not None:
        return Repeated(candidates, wanted)
    if requests is not None:
        return Nested(requests, wanted)
    raise ScoringError("no files: requests, candidates or both are needed")


class Nested(Layout):
    """One row per request."""

    def __init__(self, files: Files, wanted: Wanted) -> None:
        self.wanted, self._files = wanted, files
        _check(files, wanted, [*wanted.features, *wanted.items])
        kinds = {name: files.type_of(name, "which is to be kept") for name in wanted.keep}
        self._lists = [name for name, kind in kinds.items() if is_list(kind)]
        fields = {name: kind.value_type if is_list(kind) else kind for name, kind in kinds.items()}
        self.kept = pa.schema({wanted.request_id: _id_type(files, wanted)} | fields)
        self._cursor: Cursor | None = None
        self._item_cursor = Cursor(files, [f.column for f in wanted.items], BATCH // 16)

    def runs(self) -> Iterator[Run]:
        shortest = self.wanted.of_candidates[0]
        size = BATCH // 16
        for piece in Cursor(self._files, [shortest], size).read(0, self._files.rows, size):
            for row, rows in enumerate(np.diff(offsets_of(piece, shortest)).tolist()):
                yield Run(piece.first + row, 0, rows)

    def blocks(self, part: Part) -> Iterator[Block]:
        size = max(1, BLOCK * part.count // max(part.rows, 1))
        if self._cursor is None:
            self._cursor = Cursor(self._files, [*self.wanted.columns, *self.kept.names], size)
        yield from map(self.block, self._cursor.read(*part.requests, size))

    def block(self, piece: Piece) -> Block:
        """The requests of some rows."""
        sides = [self.wanted.side(context) for context in (True, False)]
        offsets = self._offsets(piece, [*self.wanted.of_candidates, *self._lists])
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        candidate = inputs(sides[1], piece, lambda name: piece.column(name).flatten(), lambda i: int(owner[i]))

        def kept(name: str) -> pa.Array:
            column = piece.column(name)
            return column.flatten() if name in self._lists else column.take(pa.array(owner))

        def where(i: int) -> str:
            return f"{piece.where(int(owner[i]))}, candidate {i - offsets[owner[i]]}"

        context, own = inputs(sides[0], piece), self.wanted.item_id
        names = None if own is None else ids_of(piece, own, piece.column(own).flatten(), owner.__getitem__)
        items = (lambda places: self._items(piece, offsets, owner, places)) if self.wanted.items else None
        return Block(context, candidate, offsets, {name: kept(name) for name in self.kept.names}, where, names, items)

    def _items(self, piece: Piece, offsets: Ints, owner: Ints, places: Ints) -> dict[str, Rows]:
        """Inputs of the items of some candidates of a piece."""
        rows, of = np.unique(owner[places], return_inverse=True)
        taken = self._item_cursor.take(piece.first + rows)
        begins = self._offsets(taken, [f.column for f in self.wanted.items])
        odd = np.flatnonzero(np.diff(begins) != np.diff(offsets)[rows])
        if len(odd):
            found, expected = np.diff(begins)[odd[0]], np.diff(offsets)[rows[odd[0]]]
            said = f"a list of {found}, where {self.wanted.item_id!r} has {expected}: one value per candidate each"
            raise taken.wrong(int(odd[0]), self.wanted.items[0].column, said)
        own = pa.array(places - offsets[rows][of] + begins[of])
        return inputs(self.wanted.items, taken, lambda name: taken.column(name).flatten().take(own), of.__getitem__)

    def _offsets(self, piece: Piece, columns: Sequence[str]) -> Ints:
        """Boundaries of the requests' candidates, on which all columns agree."""
        first, *others = columns
        offsets = offsets_of(piece, first)
        for name in others:
            own = offsets_of(piece, name)
            odd = np.flatnonzero(np.diff(own) != np.diff(offsets))
            if len(odd):
                row = int(odd[0])
                a, b = (x[row + 1] - x[row] for x in (own, offsets))
                raise piece.wrong(row, name, f"a list of {a}, where {first!r} has {b}: one value per candidate each")
        return offsets


class PerCandidate(Layout):
    """One row per candidate."""

    def __init__(self, files: Files, wanted: Wanted, columns: Sequence[str]) -> None:
        self.wanted, self._files = wanted, files
        self._cursor = Cursor(files, columns, BLOCK)
        self._item_cursor = Cursor(files, [f.column for f in wanted.items], BLOCK)

    def blocks(self, part: Part) -> Iterator[Block]:
        pending: list[Piece] = []  # of a request that may go on
        for piece in self._cursor.read(*part.candidates, BLOCK):
            begins = starts(piece.column(self.wanted.request_id))
            if pending and _last(pending[-1], self.wanted.request_id) == piece.column(self.wanted.request_id)[0]:
                begins = begins[1:]
            if len(begins):
                cut = int(begins[-1])
                if pending or cut:
                    yield self._block(joined([*pending, piece.slice(0, cut)]))
                pending = []
                piece = piece.slice(cut)
            pending.append(piece)
        if pending:
            yield self._block(joined(pending))

    def _block(self, piece: Piece) -> Block:
        begins = starts(piece.column(self.wanted.request_id))
        offsets = np.append(begins, piece.rows.num_rows)
        candidate = inputs(self.wanted.side(context=False), piece)
        context, kept = self._context(piece, offsets)
        own = self.wanted.item_id
        names = None if own is None else ids_of(piece, own)
        items = partial(self._items, piece.first) if self.wanted.items else None
        columns = {name: kept[name] for name in self.kept.names}
        return Block(context, candidate, offsets, columns, piece.where, names, items)

    def _items(self, first: int, places: Ints) -> dict[str, Rows]:
        """Inputs of the items of some candidates, counted from a row."""
        return inputs(self.wanted.items, self._item_cursor.take(first + places))

    @abstractmethod
    def _context(self, piece: Piece, offsets: Ints) -> tuple[dict[str, Rows], dict[str, pa.Array]]:
        """Context `[R, ...]`, and all columns to keep `[N]`."""


class Repeated(PerCandidate):
    """The context stands on every row."""

    def __init__(self, files: Files, wanted: Wanted) -> None:
        _check(files, wanted, [*wanted.features, *wanted.items])
        fields = {name: files.type_of(name, "which is to be kept") for name in wanted.keep}
        self.kept = pa.schema({wanted.request_id: _id_type(files, wanted)} | fields)
        super().__init__(files, wanted, [*wanted.columns, *self.kept.names])

    def runs(self) -> Iterator[Run]:
        for number, (_, first, rows) in enumerate(ids_in_order(self._files, self.wanted.request_id)):
            yield Run(number, first, rows)

    def _context(self, piece: Piece, offsets: Ints) -> tuple[dict[str, Rows], dict[str, pa.Array]]:
        context, features = {}, self.wanted.side(context=True)
        for name, values in inputs(features, piece).items():
            row = same_in_runs(values, offsets[:-1])
            if row is not None:
                own = piece.column(self.wanted.request_id)[row].as_py()
                column = next(f.column for f in features if f.input == name)
                raise piece.wrong(row, column, f"request {own!r} has another value here than in the row before")
            context[name] = values[offsets[:-1]]
        return context, {name: piece.column(name) for name in self.kept.names}


class Joined(PerCandidate):
    """The context stands in files of their own."""

    def __init__(self, requests: Files, candidates: Files, wanted: Wanted) -> None:
        self._requests = requests
        _check(requests, None, wanted.side(context=True))
        _check(candidates, wanted, [*wanted.side(context=False), *wanted.items])
        own = {name for name in wanted.keep if name not in candidates.names}
        sides = {name: requests if name in own else candidates for name in wanted.keep}
        kinds = [_id_type(files, wanted) for files in (candidates, requests)]
        if pa.types.is_integer(kinds[0]) != pa.types.is_integer(kinds[1]):
            raise ScoringError(
                f"column {wanted.request_id!r} is {kinds[0]} in {candidates.paths[0]}, {kinds[1]} in "
                f"{requests.paths[0]}: the ids of both must be alike"
            )
        fields = {name: files.type_of(name, "which is to be kept") for name, files in sides.items()}
        self.kept = pa.schema({wanted.request_id: kinds[0]} | fields)
        self._own = sorted(own)
        self._ahead: Piece | None = None  # requests that were read and not yet met among the candidates
        self._source: Iterator[Piece] = iter(())
        self._request_cursor = Cursor(
            requests, [wanted.request_id, *(f.column for f in wanted.side(context=True)), *self._own], BLOCK // 16
        )
        of_candidates = [wanted.request_id, *wanted.of_candidates]
        super().__init__(candidates, wanted, [*of_candidates, *(name for name in wanted.keep if name not in own)])

    def runs(self) -> Iterator[Run]:
        column = self.wanted.request_id
        requests = ids_in_order(self._requests, column)
        for own, first, rows in ids_in_order(self._files, column):
            for wanted, request, repeated in requests:
                if repeated > 1:
                    where = self._requests.where(request + 1)
                    raise ScoringError(f"{where}, column {column!r}: a second row for request {wanted!r}")
                if wanted == own:
                    break
            else:
                raise ScoringError(
                    f"{self._files.where(first)}, column {column!r}: no request {own!r} in the requests' files, after "
                    f"those of the rows before; requests must stand in the same order in both"
                )
            yield Run(request, first, rows)

    def blocks(self, part: Part) -> Iterator[Block]:
        self._ahead, self._source = None, self._request_cursor.read(*part.requests, BLOCK // 16)
        yield from super().blocks(part)

    def _context(self, piece: Piece, offsets: Ints) -> tuple[dict[str, Rows], dict[str, pa.Array]]:
        column = self.wanted.request_id
        requests = self._take(piece.column(column).take(pa.array(offsets[:-1])))
        owner = pa.array(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)))
        kept = {name: piece.column(name) for name in self.kept.names if name not in self._own}
        kept |= {name: requests.column(name).take(owner) for name in self._own}
        return inputs(self.wanted.side(context=True), requests), kept

    def _take(self, ids: pa.Array) -> Piece:
        """The rows of these requests, which come in this order."""
        while True:
            ahead = self._ahead = self._ahead or next(self._source)
            rows = pc.index_in(ids, ahead.column(self.wanted.request_id).cast(ids.type))
            if not rows.null_count:
                break
            self._ahead = joined([ahead, next(self._source)])
        self._ahead = ahead.slice(rows[-1].as_py() + 1)
        return Piece(ahead.files, ahead.first, ahead.rows.take(rows), rows.to_numpy())


def _last(piece: Piece, column: str) -> pa.Scalar:
    return piece.column(column)[piece.rows.num_rows - 1]


def _check(files: Files, wanted: Wanted | None, features: Sequence[Feature]) -> None:
    for feature in features:
        files.type_of(feature.column, feature.purpose)
    if wanted is not None and wanted.item_id is not None:
        check_ids(files, wanted.item_id)


def _id_type(files: Files, wanted: Wanted) -> pa.DataType:
    kind = files.type_of(wanted.request_id, "which says what request a row belongs to (--request-id names another)")
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return kind
    raise ScoringError(
        f"{files.paths[0]}: column {wanted.request_id!r} is {kind}; a request's id is a number or a text"
    )
