"""How a store lies in memory: what is kept of an item side by side, in one row of a table.

A table holds what the same plans read, in one dtype: a call reads whole rows of the tables of its plan, with one gather
each, and takes them apart by views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.emit import Catalogue
from rankhoist.errors import ArtifactError, InputError
from rankhoist.runtime.plain import as_dtype, as_kind, counts, dtype_name, entries

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Column:
    """One kept value: its node, the table that it is in, where it begins there, and what it is in a call."""

    node: int
    table: int
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Elements of an item."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Table:
    """Its width in elements, their dtype, and the numbers of the plans that read it."""

    width: int
    dtype: torch.dtype
    plans: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Columns in tables."""

    columns: tuple[Column, ...]
    tables: tuple[Table, ...]

    @staticmethod
    def of(catalogue: Catalogue, kept: Sequence[Tensor], dtype: torch.dtype | None) -> Layout:
        """For values such as `kept`, one tensor `[rows, ...]` each; floats are stored in `dtype` if it is given.

        Raises:
            InputError: `dtype` is none that floats are stored in.
        """
        if dtype is not None and dtype not in FLOATS:
            raise InputError(f"a store keeps floats in {', '.join(str(d) for d in FLOATS)}, not in {dtype}")
        widths: dict[tuple[torch.dtype, tuple[int, ...]], int] = {}
        columns = []
        for node, value in zip(catalogue.kept, kept, strict=True):
            stored = dtype if dtype is not None and value.is_floating_point() else value.dtype
            plans = tuple(i for i, v in enumerate(catalogue.variants) if node in v.candidate.nodes)
            start, shape = widths.setdefault((stored, plans), 0), tuple(value.shape[1:])
            columns.append(Column(node, list(widths).index((stored, plans)), start, shape, value.dtype))
            widths[stored, plans] = start + math.prod(shape)
        return Layout(tuple(columns), tuple(Table(width, *kind) for kind, width in widths.items()))

    @property
    def bytes_per_item(self) -> int:
        """Of all tables."""
        return sum(table.width * table.dtype.itemsize for table in self.tables)

    def empty(self, rows: int, device: torch.device) -> list[Tensor]:
        """Tables of so many rows, `[rows, width]`."""
        return [torch.empty(rows, table.width, dtype=table.dtype, device=device) for table in self.tables]

    def rows_of(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """Rows for every table, of what the item stage made."""
        rows = self.empty(len(kept[0]) if kept else 0, kept[0].device if kept else torch.device("cpu"))
        for column, value in zip(self.columns, kept, strict=True):
            place = rows[column.table][:, column.start : column.start + column.width]
            place.copy_(value.reshape(len(value), column.width))
        return rows

    def read(self, tables: Sequence[Tensor], rows: Tensor, plan: int) -> dict[int, Tensor]:
        """What a plan reads of items by their rows `[N]`: a tensor `[N, ...]` by node, of the caller's own."""
        own = [plan in table.plans for table in self.tables]
        picked = [x.index_select(0, rows) if mine else None for x, mine in zip(tables, own, strict=True)]
        made = {}
        for column in self.columns:
            whole = picked[column.table]
            if whole is not None:
                made[column.node] = _column(whole, column)
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        tables = [[t.width, dtype_name(t.dtype), list(t.plans)] for t in self.tables]
        columns = [[c.node, c.table, c.start, list(c.shape), dtype_name(c.dtype)] for c in self.columns]
        return {"tables": tables, "columns": columns}

    @staticmethod
    def from_data(data: Any) -> Layout:
        """The inverse of `to_data`.

        Raises:
            ArtifactError: the data is none that `to_data` makes.
        """
        try:
            tables = [
                Table(as_kind(width, int), as_dtype(dtype), counts({"plans": plans}, "plans"))
                for width, dtype, plans in entries(data, "tables", list)
            ]
            columns = [
                Column(*_at(node, table, start), counts({"shape": shape}, "shape"), as_dtype(dtype))
                for node, table, start, shape, dtype in entries(data, "columns", list)
            ]
        except (TypeError, ValueError) as error:
            raise ArtifactError("it has a table or a column of another form") from error
        for c in columns:
            if c.table >= len(tables) or c.start + c.width > tables[c.table].width:
                raise ArtifactError("it keeps values in tables that there are not")
        return Layout(tuple(columns), tuple(tables))


def _at(node: Any, table: Any, start: Any) -> tuple[int, int, int]:
    first, second, third = counts({"at": [node, table, start]}, "at")
    return first, second, third


def _column(rows: Tensor, column: Column) -> Tensor:
    """One value out of rows of its table."""
    value = rows if column.width == rows.shape[1] else rows.narrow(1, column.start, column.width)
    if value.dtype != column.dtype:
        value = value.to(column.dtype)
    return value if column.shape == (column.width,) else value.view(len(rows), *column.shape)
