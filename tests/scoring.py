"""What the tests of scoring share: a small ranker, requests for it, and its inputs in the three layouts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from torch import Tensor, nn

import rankhoist
from rankhoist import HoistedModel
from rankhoist.score import Options, run

CONTEXT, CANDIDATE = ("user", "taste", "history"), ("item", "stats")


class Ranker(nn.Module):
    """Scalars, vectors and a sequence; a number and a vector per candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 4), nn.Embedding(40, 4)
        self.hidden, self.click, self.kinds = nn.Linear(17, 8), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, user: Tensor, taste: Tensor, history: Tensor, item: Tensor, stats: Tensor) -> dict[str, Tensor]:
        seen = self.items(history).mean(1)
        x = torch.cat([self.users(user), taste, seen, self.items(item), stats], 1)
        h = torch.relu(self.hidden(x))
        return {"click": self.click(h).squeeze(1), "kinds": self.kinds(h)}


@dataclass(frozen=True)
class Log:
    """Requests with ragged, also empty, blocks of candidates."""

    context: dict[str, Tensor]
    candidate: dict[str, Tensor]
    offsets: list[int]

    @property
    def requests(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(self.requests), np.diff(self.offsets))

    def ids(self) -> pa.Array:
        return pa.array([f"page {r}" for r in range(self.requests)])

    def requests_table(self) -> pa.Table:
        """One row per request."""
        columns = {name: arrow(rows) for name, rows in self.context.items()}
        return pa.table({"request_id": self.ids(), "country": pa.array(np.arange(self.requests) % 7)} | columns)

    def candidates_table(self) -> pa.Table:
        """One row per candidate, without the context."""
        columns = {name: arrow(rows) for name, rows in self.candidate.items()}
        ids = self.ids().take(pa.array(self.owner))
        return pa.table({"request_id": ids, "ad": pa.array(np.arange(self.offsets[-1]))} | columns)

    def repeated(self) -> pa.Table:
        """One row per candidate, with the context on each."""
        table = self.candidates_table()
        context = self.requests_table().take(pa.array(self.owner))
        for name in ("country", *self.context):
            table = table.append_column(name, context[name])
        return table

    def nested(self) -> pa.Table:
        """One row per request, candidates in lists."""
        table, candidates = self.requests_table(), self.candidates_table().combine_chunks()
        for name in ("ad", *self.candidate):
            values = candidates[name].combine_chunks()
            table = table.append_column(name, pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), values))
        return table


def arrow(rows: Tensor) -> pa.Array:
    """`[N]` or `[N, T]` as a column."""
    flat = pa.array(rows.reshape(-1).numpy())
    return flat if rows.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the ranker."""
    g = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(0, 50, (count,), generator=g), "taste": torch.randn(count, 3, generator=g),
        "history": torch.randint(0, 40, (count, 5), generator=g), "item": torch.randint(0, 40, (count,), generator=g),
        "stats": torch.randn(count, 2, generator=g),
    }  # fmt: skip


def a_log(counts: Sequence[int], seed: int = 1) -> Log:
    """Requests with so many candidates each."""
    offsets = [0, *np.cumsum(counts).tolist()]
    context, candidate = rows(len(counts), seed), rows(offsets[-1], seed + 1)
    return Log({n: context[n] for n in CONTEXT}, {n: candidate[n] for n in CANDIDATE}, offsets)


def hoisted() -> HoistedModel:
    """The ranker, hoisted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Ranker().eval()
    return rankhoist.hoist(model, tuple(rows(8).values()), context=list(CONTEXT))


def truth(model: HoistedModel, log: Log) -> dict[str, Tensor]:
    """Scores in this process, a request at a time."""
    made = []
    for r in range(log.requests):
        low, high = log.offsets[r : r + 2]
        if low < high:
            state = model.prepare({n: t[r : r + 1] for n, t in log.context.items()})
            made.append(model.score(state, {n: t[low:high] for n, t in log.candidate.items()}))
    return {name: torch.cat([m[name] for m in made]) for name in made[0]}


def write(table: pa.Table, path: Path, files: int = 1, group: int = 50) -> str:
    """A folder of Parquet files with small row groups."""
    path.mkdir(parents=True)
    size = -(-table.num_rows // files)
    for i in range(files):
        pq.write_table(table.slice(i * size, size), path / f"{i}.parquet", row_group_size=group)
    return str(path)


# -- tables, and scores by files


def changed(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    """The table with another value in one place."""
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


def numbered(table: pa.Table, column: str) -> pa.Table:
    """The table with a number per row in one column."""
    return table.set_column(table.schema.get_field_index(column), column, pa.array(range(len(table))))


def scored(
    artifact: str, folder: Path, budget: int | None = None, item_id: str | None = None, **tables: pa.Table
) -> Tensor:
    """One output in float64, by a job, from files with groups of four rows."""
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=4)
    sides = {name: [str(folder / f"{name}.parquet")] for name in tables}
    run(
        Options(artifact, str(folder / "scores"), budget=budget, item_id=item_id, **sides),
        console=Console(file=io.StringIO()),
    )
    return torch.tensor(pq.read_table(folder / "scores")["scores"].to_pylist(), dtype=torch.float64)
