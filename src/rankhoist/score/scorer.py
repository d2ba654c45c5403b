"""Scores parts of a job, or tables of a pipeline, with one copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rankhoist.arguments import of_kind
from rankhoist.runtime import HoistedModel, load
from rankhoist.score.calls import Calls, Output, budget_of, outputs_of
from rankhoist.score.columns import features
from rankhoist.score.culprit import explained
from rankhoist.score.files import Piece, Table
from rankhoist.score.job import MARK, NAN, Job, layout, wanted, written
from rankhoist.score.layouts import Block, Nested, Wanted
from rankhoist.score.named import Named
from rankhoist.score.parts import Part
from rankhoist.score.stocked import Repeats, Stocked, of_catalogue


@dataclass(frozen=True)
class _Columns:
    """Scores as columns: what is kept of a block, then the model's outputs."""

    calls: Calls
    outputs: Sequence[Output]

    def schema(self, kept: pa.Schema) -> pa.Schema:
        """Of all columns."""
        return pa.schema([*kept, *(pa.field(o.name, o.type) for o in self.outputs)])

    def batch(self, block: Block, schema: pa.Schema, stocked: Stocked | None = None) -> pa.RecordBatch:
        """The candidates of a block, a row each."""
        made = self.calls.scores(block, stocked)
        columns = [output.column(values) for output, values in zip(self.outputs, made, strict=True)]
        return pa.RecordBatch.from_arrays([*block.kept.values(), *columns], schema=schema)

    def nan(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows have a score that is NaN."""
        found = np.zeros(table.num_rows, np.bool_)
        for output in self.outputs:
            if pa.types.is_floating(pa.type_for_alias(output.dtype)):
                flat = table[output.name].combine_chunks()
                flat = flat if output.width is None else flat.flatten()
                found |= np.isnan(flat.to_numpy()).reshape(table.num_rows, output.width or 1).any(1)
        return found


class Scorer:
    """A job's files, open, and its model, which is loaded unless it is given."""

    def __init__(self, job: Job, model: HoistedModel | None = None) -> None:
        self._job = job
        self._model = model or load(job.options.artifact)
        self._store = None if job.catalogue is None else self._model.open_catalogue(job.catalogue)
        self._wanted = wanted(self._model, job.options, shared=job.repeats)
        self._layout = layout(job, self._wanted)
        self._columns = _Columns(Calls(self._model, job.budget), job.outputs)
        self._schema = self._columns.schema(self._layout.kept).with_metadata({MARK: job.number})

    def score(self, part: Part) -> Iterator[int]:
        """Score a part; gives the rows scored, block by block. Its file is there at the end."""
        blocks = []
        repeats = self._repeats() if self._job.repeats else None
        for block in self._layout.blocks(part):
            if block.offsets[-1]:
                blocks.append(self._columns.batch(block, self._schema, self._stocked(block, repeats)))
                yield int(block.offsets[-1])
        table = pa.Table.from_batches(blocks, self._schema)
        without = np.flatnonzero(self._columns.nan(table))
        if len(without):
            own = self._schema.metadata | {NAN: f"{len(without)} {without[0]}".encode()}
            table = table.replace_schema_metadata(own)
        with written(self._job.path(part)) as file:
            pq.write_table(table, file)

    def _repeats(self) -> Repeats:
        """The items of a part, none of which is known yet."""
        if self._wanted.items:
            return Named(self._model, self._wanted, self._job.options.check_items)
        return Repeats(self._model)

    def _stocked(self, block: Block, repeats: Repeats | None) -> Stocked | None:
        """The candidates of a block as items of a store, where they are."""
        if self._store is not None:
            return of_catalogue(self._store, block, self._job.options.catalogue_id)
        if repeats is None:
            return None
        try:
            return repeats.of(block)
        except IndexError as error:
            whole = block.whole() or block
            raise explained(self._model, whole, range(len(block.offsets) - 1), error) from error


class TableScorer:
    """Scores tables that have one row per request, as an actor of `ray.data.Dataset.map_batches` does.

    Such a table may be cut anywhere between its rows, so that no request is ever in two of them.

    Args:
        artifact: a file that `HoistedModel.save` wrote.
        request_id: the column that is copied to each of the request's candidates.
        keep: other columns to copy: a list gives a value per candidate.
        budget: candidates per call, about; by default what the model was planned for.
        threads: of torch.
        allow_nan: take inputs that are NaN or infinite.
    """

    def __init__(
        self, artifact: str, request_id: str = "request_id", keep: Sequence[str] = (), budget: int | None = None,
        threads: int = 1, allow_nan: bool = False,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self._model = load(artifact)
        self._wanted = Wanted(features(self._model, allow_nan=allow_nan), request_id, keep)
        self._columns = _Columns(Calls(self._model, budget_of(self._model, budget)), outputs_of(self._model))

    def __call__(self, requests: pa.Table) -> pa.Table:
        """One row per request -> one row per candidate: the request's id, kept columns, scores.

        Raises:
            ScoringError: a column is missing or not as the model's input; says in which row.
        """
        of_kind(requests, pa.Table, "requests", "a pyarrow.Table with a row per request")
        source = Table(requests.schema, requests.num_rows)
        nested = Nested(source, self._wanted)
        schema = self._columns.schema(nested.kept)
        pieces = (Piece(source, 0, batch) for batch in requests.combine_chunks().to_batches())
        blocks = (nested.block(piece) for piece in pieces)
        made = [self._columns.batch(block, schema) for block in blocks if block.offsets[-1]]
        return pa.Table.from_batches(made, schema)
