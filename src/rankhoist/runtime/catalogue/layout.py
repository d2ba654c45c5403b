"""How a store lies in memory: what is kept of an item side by side, in one row of a table.

A table holds what the same plans read, in one dtype: a call reads whole rows of the tables of its plan, with one gather
each, and takes them apart by views. Floats in int8 are whole numbers of a scale that each item has for each value: the
127th part of its largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.emit import Catalogue
from rankhoist.errors import ArtifactError, InputError
from rankhoist.runtime.plain import as_dtype, as_kind, counts, dtype_name, entries
from rankhoist.runtime.sent import sent

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8)
SCALE, STEPS = torch.float32, 127  # of int8


def precision(dtype: torch.dtype) -> float:
    """How far apart are numbers near 1 that are stored in a dtype; of int8 the share of the largest."""
    return 1 / STEPS if dtype == torch.int8 else torch.finfo(dtype).eps


@dataclass(frozen=True)
class Column:
    """One kept value: its node, the table that it is in, where it begins there, and what it is in a call.

    `scale` is where its scale is, table and place, if it has one.
    """

    node: int
    table: int
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    scale: tuple[int, int] | None = None

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

        def place(kind: torch.dtype, plans: tuple[int, ...], width: int) -> tuple[int, int]:
            start = widths.setdefault((kind, plans), 0)
            widths[kind, plans] += width
            return list(widths).index((kind, plans)), start

        columns = []
        for node, value in zip(catalogue.kept, kept, strict=True):
            stored = dtype if dtype is not None and value.is_floating_point() else value.dtype
            plans = tuple(i for i, v in enumerate(catalogue.variants) if node in v.candidate.nodes)
            shape = tuple(value.shape[1:])
            at = place(stored, plans, math.prod(shape))
            scale = place(SCALE, plans, 1) if stored == torch.int8 != value.dtype else None
            columns.append(Column(node, *at, shape, value.dtype, scale))
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
            own = value.reshape(len(value), column.width)
            if column.scale is not None:
                table, at = column.scale
                largest = own.abs().amax(1, keepdim=True) if column.width else own.sum(1, keepdim=True)
                scale = (largest / STEPS).to(SCALE)
                rows[table][:, at : at + 1] = scale
                own = (own / scale.where(scale != 0, 1)).round().clamp(-STEPS, STEPS)
            rows[column.table][:, column.start : column.start + column.width].copy_(own)
        return rows

    def read(self, tables: Sequence[Tensor], rows: Tensor, plan: int, device: torch.device) -> dict[int, Tensor]:
        """What a plan reads of items by their rows `[N]`: a tensor `[N, ...]` by node, of the caller's own and on the
        device, also of tables that lie in files.
        """
        wanted, columns = self._of_plans.get(plan, ([], []))
        at = {place: sent(rows, place) for place in {tables[i].device for i in wanted}}
        picked = {i: sent(tables[i].index_select(0, at[tables[i].device]), device) for i in wanted}
        return {c.node: _column(picked[c.table], c, None if c.scale is None else picked[c.scale[0]]) for c in columns}

    @cached_property
    def _of_plans(self) -> dict[int, tuple[list[int], list[Column]]]:
        """By plan, the tables that it reads, and their columns."""
        found: dict[int, tuple[list[int], list[Column]]] = {}
        for plan in sorted({plan for table in self.tables for plan in table.plans}):
            own = [i for i, table in enumerate(self.tables) if plan in table.plans]
            found[plan] = own, [c for c in self.columns if c.table in own]
        return found

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        tables = [[t.width, dtype_name(t.dtype), list(t.plans)] for t in self.tables]
        columns = [
            [c.node, c.table, c.start, list(c.shape), dtype_name(c.dtype), list(c.scale or ())] for c in self.columns
        ]
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
                Column(*_at(node, table, start), counts({"shape": shape}, "shape"), as_dtype(dtype), _scale(scale))
                for node, table, start, shape, dtype, scale in entries(data, "columns", list)
            ]
        except (TypeError, ValueError) as error:
            raise ArtifactError("it has a table or a column of another form") from error
        for c in columns:
            parts = [(c.table, c.start, c.width), *([] if c.scale is None else [(*c.scale, 1)])]
            if any(table >= len(tables) or start + width > tables[table].width for table, start, width in parts):
                raise ArtifactError("it keeps values in tables that there are not")
        return Layout(tuple(columns), tuple(tables))


def _at(node: Any, table: Any, start: Any) -> tuple[int, int, int]:
    first, second, third = counts({"at": [node, table, start]}, "at")
    return first, second, third


def _scale(given: Any) -> tuple[int, int] | None:
    numbers = counts({"scale": given}, "scale")
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _column(rows: Tensor, column: Column, scales: Tensor | None) -> Tensor:
    """One value out of rows of its table, and of that of scales."""
    value = rows if column.width == rows.shape[1] else rows.narrow(1, column.start, column.width)
    if value.dtype != column.dtype:
        value = value.to(column.dtype)
    if column.scale is not None and scales is not None:
        value = value * scales[:, column.scale[1] :][:, :1].to(column.dtype)
    return value if column.shape == (column.width,) else value.view(len(rows), *column.shape)
