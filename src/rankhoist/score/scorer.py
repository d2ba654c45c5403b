"""Scores parts of a job, or tables of a pipeline, with one copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rankhoist.runtime import HoistedModel, load
from rankhoist.score.calls import Output, budget_of, outputs_of, scores
from rankhoist.score.columns import features
from rankhoist.score.files import Piece, Table
from rankhoist.score.job import MARK, Job, layout, written
from rankhoist.score.layouts import Block, Nested, Wanted
from rankhoist.score.parts import Part


class Scorer:
    """A job's model and files, open."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = load(job.options.artifact)
        self._layout = layout(job, Wanted(features(self._model), job.options.request_id, job.options.keep))
        self._schema = _schema(self._layout.kept, job.outputs).with_metadata({MARK: job.number})

    def score(self, part: Part) -> Iterator[int]:
        """Score a part; gives the rows scored, block by block. Its file is there at the end."""
        blocks = []
        for block in self._layout.blocks(part):
            if block.offsets[-1]:
                blocks.append(_scored(self._model, block, self._job.budget, self._job.outputs, self._schema))
                yield int(block.offsets[-1])
        table = pa.Table.from_batches(blocks, self._schema)
        with written(self._job.path(part)) as file:
            pq.write_table(table, file)


class TableScorer:
    """Scores tables that have one row per request, as an actor of `ray.data.Dataset.map_batches` does.

    Such a table may be cut anywhere between its rows, so that no request is ever in two of them.

    Args:
        artifact: a file that `HoistedModel.save` wrote.
        request_id: the column that is copied to each of the request's candidates.
        keep: other columns to copy: a list gives a value per candidate.
        budget: candidates per call, about; by default what the model was planned for.
        threads: of torch.
    """

    def __init__(
        self, artifact: str, request_id: str = "request_id", keep: Sequence[str] = (), budget: int | None = None,
        threads: int = 1,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self._model = load(artifact)
        self._wanted = Wanted(features(self._model), request_id, keep)
        self._outputs, self._budget = outputs_of(self._model), budget_of(self._model, budget)

    def __call__(self, requests: pa.Table) -> pa.Table:
        """One row per request -> one row per candidate: the request's id, kept columns, scores.

        Raises:
            ScoringError: a column is missing or not as the model's input; says in which row.
        """
        source = Table(requests.schema, requests.num_rows)
        nested = Nested(source, self._wanted)
        schema = _schema(nested.kept, self._outputs)
        pieces = (Piece(source, 0, batch) for batch in requests.combine_chunks().to_batches())
        blocks = (nested.block(piece) for piece in pieces)
        made = [
            _scored(self._model, block, self._budget, self._outputs, schema) for block in blocks if block.offsets[-1]
        ]
        return pa.Table.from_batches(made, schema)


def _schema(kept: pa.Schema, outputs: Sequence[Output]) -> pa.Schema:
    """Of the scores: what is kept, then the model's outputs."""
    return pa.schema([*kept, *(pa.field(o.name, o.type) for o in outputs)])


def _scored(
    model: HoistedModel, block: Block, budget: int, outputs: Sequence[Output], schema: pa.Schema
) -> pa.RecordBatch:
    made = scores(model, block, budget)
    columns = [output.column(values) for output, values in zip(outputs, made, strict=True)]
    return pa.RecordBatch.from_arrays([*block.kept.values(), *columns], schema=schema)
