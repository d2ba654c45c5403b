"""An impression log by request, for `torch.utils.data`: one row of context per request, and its impressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rankhoist.arguments import mapping_of, of_kind, texts, whole_number
from rankhoist.capture import Jagged
from rankhoist.errors import InputError
from rankhoist.training import parquet
from rankhoist.training.parquet import Column


class Request(NamedTuple):
    """One request of a log: context `[1, ...]`, and what differs among its impressions `[n, ...]`, by name."""

    context: dict[str, Column]
    candidate: dict[str, Column]
    impressions: int


class Batch(NamedTuple):
    """R requests with N impressions: `[R, ...]`, `[N, ...]`, the `[R + 1]` boundaries of the requests' impressions, and
    what scores are held against, `[N, ...]`; columns by name.
    """

    context: dict[str, Column]
    candidate: dict[str, Column]
    request_offsets: Tensor
    targets: dict[str, Column]

    @property
    def inputs(self) -> dict[str, Column]:
        """What a grouped module takes, beside the offsets."""
        return self.context | self.candidate

    def rows(self) -> dict[str, Column]:
        """The same as rows `[N, ...]`, the context repeated for every impression: what the model itself takes, and if
        it takes bags, what `interface.call` of the grouped module makes its arguments of.
        """
        counts = self.request_offsets.diff()
        return {name: x.repeat_interleave(counts, 0) for name, x in self.context.items()} | self.candidate


class ImpressionLog(Dataset[Request]):
    """A log whose item r is request r, in the order in which they first come; within one, rows keep their own order.

    Args:
        columns: all columns by name, `[rows, ...]`, or bags of values per row.
        request: `[rows]`, the number of the request that a row belongs to, or the name of the column that holds it,
            which then is no input.
        context: names of the columns that are the request's.
        targets: names of the columns that are no inputs, but labels, weights and the like.

    Raises:
        InputError: a name or a column is none, there are no rows, columns have different numbers of rows, or a context
            column is not the same in all rows of a request.
    """

    def __init__(
        self, columns: Mapping[str, Column], *, request: Tensor | str, context: Sequence[str],
        targets: Sequence[str] = (),
    ) -> None:  # fmt: skip
        columns = dict(mapping_of(columns, "columns", "{name: tensor}"))
        context, targets = texts(context, "context"), texts(targets, "targets")
        _check_names(columns, [*context, *targets, *([request] if isinstance(request, str) else [])])
        _check_kinds(columns if isinstance(request, str) else columns | {"request": request})
        of = columns.pop(request) if isinstance(request, str) else request
        if isinstance(of, Jagged):
            raise InputError(f"column {request!r} holds bags, and not the number of a request")
        sizes = {name: len(x) for name, x in columns.items()}
        if set(sizes.values()) != {len(of)}:
            raise InputError(f"{len(of)} rows belong to requests; the columns have {sizes}")
        if not len(of):
            raise InputError("the log has no rows")
        owner, counts = _numbered(of)
        order = torch.argsort(owner, stable=True)
        self.offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.targets = targets
        self.candidate = {name: x[order] for name, x in columns.items() if name not in context}
        self.context = {name: _one_per_request(name, columns[name][order], self.offsets, order) for name in context}

    @classmethod
    def from_parquet(
        cls, paths: str | Path | Sequence[str | Path], *, request: str, context: Sequence[str],
        targets: Sequence[str] = (), columns: Sequence[str] | None = None, jagged: Sequence[str] = (),
    ) -> ImpressionLog:  # fmt: skip
        """The log in Parquet files: numbers and booleans `[rows]`, lists of one length `[rows, length]`, and lists of
        any length, which `jagged` names, as bags.

        Requests may be told apart by anything, text too.

        Raises:
            ExtraError: the extra `score` is not installed.
            InputError: a column is of another kind, has gaps, or lists of several lengths and is not named in `jagged`;
                otherwise as the class.
        """
        wanted = None if columns is None else [*columns, *context, *targets]
        made = parquet.read(paths, wanted, jagged, [request])
        return cls(made, request=request, context=context, targets=targets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, request: int) -> Request:
        if not -len(self) <= request < len(self):
            raise IndexError(f"the log has {len(self)} requests, there is no {request}")  # by which a loop ends
        request %= len(self)
        first, end = self.offsets[request : request + 2].tolist()
        context = {name: x[request : request + 1] for name, x in self.context.items()}
        return Request(context, {name: x[first:end] for name, x in self.candidate.items()}, end - first)

    def collate(self, requests: Sequence[Request]) -> Batch:
        """Requests as one batch: `DataLoader(log, batch_sampler=RequestBatches(log, 3200), collate_fn=log.collate)`."""
        if not requests:
            raise InputError("a batch holds at least 1 request, got none")
        context = {name: _joined([r.context[name] for r in requests]) for name in self.context}
        joined = {name: _joined([r.candidate[name] for r in requests]) for name in self.candidate}
        offsets = torch.tensor([0, *(r.impressions for r in requests)]).cumsum(0)
        targets = {name: joined.pop(name) for name in self.targets}
        return Batch(context, joined, offsets, targets)


class RequestBatches(Sampler[list[int]]):
    """Batches of whole requests with at most `rows` impressions; a larger request is a batch of its own.

    Requests are shuffled anew in every epoch (`set_epoch`), by the seed and the epoch alone.
    """

    def __init__(self, log: ImpressionLog, rows: int, *, seed: int = 0) -> None:
        of_kind(log, ImpressionLog, "log", "an ImpressionLog")
        if whole_number(rows, "rows") < 1:
            raise InputError(f"a batch holds at least 1 row, not {rows}")
        self.log, self.rows, self.seed, self.epoch = log, rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which shuffle comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return batches_of(torch.randperm(len(self.log), generator=generator), self.log.offsets.diff(), self.rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def batches_of(order: Tensor, counts: Tensor, rows: int) -> Iterator[list[int]]:
    """Requests in this order, filled up to `rows` impressions; `counts` are those of every request."""
    batch: list[int] = []
    held = 0
    for request, count in zip(order.tolist(), counts[order].tolist(), strict=True):
        if batch and held + count > rows:
            yield batch
            batch, held = [], 0
        batch.append(request)
        held += count
    if batch:
        yield batch


def _joined(parts: Sequence[Any]) -> Column:
    """Rows under rows."""
    return Jagged.joined(parts) if isinstance(parts[0], Jagged) else torch.cat([*parts])


def _check_names(columns: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise InputError(f"no column {missing[0]!r}; the columns are {', '.join(columns)}")


def _check_kinds(columns: Mapping[str, Any]) -> None:
    for name, x in columns.items():
        if not isinstance(x, Jagged) and not (isinstance(x, Tensor) and x.dim()):
            kind = "a scalar" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"column {name!r} is {kind}, expected a tensor [rows, ...]: torch.as_tensor")


def _numbered(of: Tensor) -> tuple[Tensor, Tensor]:
    """The request of every row `[rows]`, counted as they first come, and how many rows each has `[R]`."""
    _, owner, counts = torch.unique(of, return_inverse=True, return_counts=True)
    first = owner.new_zeros(len(counts)).scatter_reduce_(0, owner, torch.arange(len(of)), "amin", include_self=False)
    order = first.argsort()
    return order.argsort()[owner], counts[order]


def _one_per_request(name: str, rows: Any, offsets: Tensor, order: Tensor) -> Column:
    """The first row of every request, where all are the same; `order` is where the rows stood."""
    first: Column = rows[offsets[:-1]]
    owner = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    apart = _apart(rows, first[owner])
    if bool(apart.any()):
        row = int(apart.nonzero()[0])
        one, other = int(order[offsets[owner[row]]]), int(order[row])
        raise InputError(
            f"context column {name!r} is not the same in all rows of a request: rows {one} and {other} are of one. "
            "Such a column is the candidate's, or the requests are not what the rows were logged for"
        )
    return first


def _apart(rows: Any, others: Any) -> Tensor:
    """Which rows differ, `[rows]`."""
    if not isinstance(rows, Jagged):
        alike: Tensor = torch.isclose(rows, others, rtol=0, atol=0, equal_nan=True).reshape(len(rows), -1).all(1)
        return ~alike
    apart: Tensor = rows.lengths != others.lengths
    if not bool(apart.any()):
        owner = torch.arange(len(rows)).repeat_interleave(rows.lengths)
        for values, other in zip(rows.values, others.values, strict=True):
            apart[owner[_apart(values, other)]] = True
    return apart
