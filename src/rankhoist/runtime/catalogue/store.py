"""The store that callers hold: rows of items, read by their number or id, updated while others read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.compiler.emit import Catalogue
from rankhoist.errors import InputError
from rankhoist.runtime.catalogue import files
from rankhoist.runtime.catalogue.index import Ids, Index, as_ids, listed
from rankhoist.runtime.catalogue.layout import Layout
from rankhoist.runtime.catalogue.lock import SharedLock
from rankhoist.runtime.catalogue.stage import ItemStage, blocks
from rankhoist.runtime.weights import Weights

Given = Tensor | np.ndarray[Any, Any] | Sequence[Any]
Progress = Callable[[list[Any]], Iterable[Any]]
GROWTH = 1.25  # times the rows that are needed: room for items that come later


class Store:
    """What a hoisted model computes of each item alone, of one version of its weights: see `HoistedModel.catalogue`.

    Items are known by row numbers from 0 on, in the order in which they were given, and by ids. Calls from several
    threads at once are safe: each sees all of an update or nothing of it.

    `index` has the ids of its items, and their rows.
    """

    def __init__(
        self, stage: ItemStage, layout: Layout, tables: list[Tensor], index: Index, folder: Path | None = None
    ) -> None:
        self._stage, self._layout, self._tables, self._folder = stage, layout, tables, folder
        self.index = index
        self._used = int(index.rows.max()) + 1 if len(index) else 0  # rows that have been given to an item
        self._live = self._with_items()
        self._lock = SharedLock()

    @staticmethod
    def build(
        stage: ItemStage, items: Mapping[str, Any] | Sequence[Any], ids: Given | None,
        path: str | os.PathLike[str] | None, dtype: torch.dtype | None, progress: Progress,
    ) -> Store:  # fmt: skip
        """See `HoistedModel.catalogue`."""
        given, count = stage.checked(items)
        rows = np.arange(count)
        index = Index.of(rows if ids is None else _ids_of(ids, count), rows)
        layout = Layout.of(stage.catalogue, stage({n: _one_row(x) for n, x in given.items()}, 0, 1), dtype)
        folder = None if path is None else Path(path)
        tables = layout.empty(count, stage.inputs.device) if folder is None else files.created(folder, layout, count)
        for start, end in progress(blocks(count)):
            for table, made in zip(tables, layout.rows_of(stage(given, start, end)), strict=True):
                table[start:end] = made.to(table.device)
        store = Store(stage, layout, tables, index, folder)
        store._write()
        return store

    # -- what it holds

    def __len__(self) -> int:
        """Items."""
        return len(self.index)

    @property
    def ids(self) -> Ids:
        """The ids of its items, ascending: those that were given, or row numbers."""
        return self.index.ids

    @property
    def bytes_per_item(self) -> int:
        """What it keeps of an item."""
        return self._layout.bytes_per_item

    @property
    def bytes(self) -> int:
        """Of its tables, room for later items included."""
        return sum(t.numel() * t.element_size() for t in self._tables)

    @property
    def dtype(self) -> torch.dtype | None:
        """What floats are kept in, where that is not what the model computes in."""
        stored = {self._layout.tables[c.table].dtype for c in self._layout.columns if c.dtype.is_floating_point}
        computed = {c.dtype for c in self._layout.columns if c.dtype.is_floating_point}
        return None if stored <= computed else next(iter(stored - computed))

    @property
    def weights(self) -> Weights:
        """The version that its rows were computed with."""
        return self._stage.weights

    def __repr__(self) -> str:
        where = "" if self._folder is None else f", in {self._folder}"
        return f"Store({len(self):,} items, {self.bytes_per_item:,} bytes each{where})"

    def check(self, catalogue: Catalogue) -> None:
        """That it was made by this item stage, and for where this one runs.

        Raises:
            InputError: it is of another model, or of this one before it moved.
        """
        if self._stage.catalogue is not catalogue:
            raise InputError(
                "the store is of another model, or of this one in another dtype or on another device; make it again"
            )

    # -- reading

    def rows_of(self, ids: Given) -> Tensor:
        """The row numbers of items, `[N]`; an item keeps its row until it is dropped.

        Raises:
            InputError: some ids are unknown.
        """
        return self.index.find(as_ids(ids))

    def read(self, plan: int, rows: Given | None = None, ids: Given | None = None) -> tuple[dict[int, Tensor], int]:
        """What a plan reads of N items, by row number or by id: a tensor `[N, ...]` by node of the plan; and N.

        Raises:
            InputError: both or neither are given, or there is no such item.
        """
        if (rows is None) == (ids is None):
            raise InputError("name the candidates' items by rows= or by ids=, one of them")
        with self._lock.reading():
            found = self.rows_of(ids) if ids is not None else self._checked(torch.as_tensor(rows))
            at = found.to(self._stage.inputs.device, torch.int64)
            return self._layout.read(self._tables, at, plan), len(found)

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise InputError(f"rows are whole numbers [N], got {rows.dtype} of shape {list(rows.shape)}")
        if len(rows):
            low, high = torch.aminmax(rows)
            if int(low) < 0 or int(high) >= self._used:
                raise InputError(f"rows of this store are 0 to {self._used - 1}, got {int(low)} to {int(high)}")
        if self._live is not None:
            gone = rows.cpu()[~self._live[rows.cpu()]]
            if len(gone):
                raise InputError(f"items with these rows were dropped: {listed(gone.unique().numpy())}")
        return rows

    def _with_items(self) -> Tensor | None:
        """Which rows have an item, `[rows in use]`; None where all have."""
        if len(self.index) == self._used:
            return None
        live = torch.zeros(self._used, dtype=torch.bool)
        live[torch.from_numpy(self.index.rows)] = True
        return live

    # -- writing

    def update(self, items: Mapping[str, Any] | Sequence[Any], ids: Given) -> None:
        """New inputs `[K, ...]` of K items: those that are there change, others are added. Computed with the weights
        that the store was made with.

        Raises:
            InputError: see `HoistedModel.catalogue`.
        """
        given, count = self._stage.checked(items)
        names = _ids_of(ids, count)
        _check_kind(names, self.index)
        Index.of(names, np.arange(count))  # no two the same
        made = [self._layout.rows_of(self._stage(given, start, end)) for start, end in blocks(count)]
        new = [torch.cat(parts) for parts in zip(*made, strict=True)] if made else []
        with self._lock.writing():
            places, known = self.index.places(names)
            rows = np.empty(count, np.int64)
            rows[known] = self.index.rows[places[known]]
            rows[~known] = self._free_rows(count - int(known.sum()))
            at = torch.from_numpy(rows).to(self._stage.inputs.device)
            for table, own in zip(self._tables, new, strict=False):
                table.index_copy_(0, at.to(table.device), own.to(table.device))
            if not known.all():
                self._changed(self.index.with_ids(names[~known], rows[~known]))

    def drop(self, ids: Given) -> None:
        """Without these items; their rows are those of items that come later.

        Raises:
            InputError: some are unknown.
        """
        names = as_ids(ids)
        with self._lock.writing():
            self.index.find(names)
            self._changed(self.index.without(self.index.places(names)[0]))

    def _changed(self, index: Index) -> None:
        """Other items than before."""
        self.index = index
        self._live = self._with_items()
        self._write()

    def _free_rows(self, count: int) -> np.ndarray[Any, Any]:
        """Rows for new items: of dropped ones, then new ones."""
        free = np.arange(0) if self._live is None else np.flatnonzero(~self._live.numpy())
        rows = np.concatenate([free[:count], np.arange(self._used, self._used + max(count - len(free), 0))])
        needed = int(rows.max()) + 1 if count else 0
        if needed > len(self._tables[0] if self._tables else ()):
            self._grow(int(needed * GROWTH))
        self._used = max(self._used, needed)
        return rows

    def _grow(self, rows: int) -> None:
        if self._folder is not None:
            self._tables = files.created(self._folder, self._layout, rows)
            return
        for i, (table, larger) in enumerate(
            zip(self._tables, self._layout.empty(rows, self._stage.inputs.device), strict=True)
        ):
            larger[: len(table)] = table
            self._tables[i] = larger

    def _write(self) -> None:
        if self._folder is not None:
            rows = len(self._tables[0]) if self._tables else 0
            files.described(self._folder, self._layout, self._stage.version, rows, self.index)


def opened(stage: ItemStage, path: str | os.PathLike[str]) -> Store:
    """See `HoistedModel.open_catalogue`. What this process writes is its own: nothing of it comes into the folder."""
    return Store(stage, *files.opened(Path(path), stage))


def _one_row(x: Tensor) -> Tensor:
    """A row to find out what the item stage makes, where there may be none."""
    return x[:1] if len(x) else x.new_zeros(1, *x.shape[1:])


def _ids_of(ids: Given, count: int) -> Ids:
    found = as_ids(ids)
    if len(found) != count:
        raise InputError(f"there are {len(found)} ids for {count} items")
    return found


def _check_kind(ids: Ids, index: Index) -> None:
    if len(index) and len(ids) and ids.dtype.kind != index.ids.dtype.kind:
        kinds = {"i": "whole numbers", "U": "strings"}
        raise InputError(f"the store's ids are {kinds[index.ids.dtype.kind]}, got {kinds[ids.dtype.kind]}")
