"""The store that callers hold: rows of items, read by their number or id, updated while others read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.arguments import path_of
from rankhoist.compiler.emit import Catalogue
from rankhoist.compiler.targets.cuda_graphs import wait_for
from rankhoist.errors import InputError
from rankhoist.runtime.catalogue import files
from rankhoist.runtime.catalogue.index import Edition, Ids, Index, as_ids, listed
from rankhoist.runtime.catalogue.layout import Layout
from rankhoist.runtime.catalogue.lock import SharedLock
from rankhoist.runtime.catalogue.stage import ItemStage, blocks
from rankhoist.runtime.weights import Weights

Given = Tensor | np.ndarray[Any, Any] | Sequence[Any]
GROWTH = 1.25  # times the rows that are needed: room for items that come later


class Store:
    """What a hoisted model computes of each item alone, of one version of its weights: see `HoistedModel.catalogue`.

    Items are known by row numbers from 0 on, in the order in which they were given, and by ids. Calls from several
    threads at once are safe: each sees all of an update or nothing of it.

    `edition` has the ids of its items and their rows; its number is 1 at first, and one more with every change.
    `folder` is where its tables lie, if they do; `writes` says whether what is written to them is for others, too.
    """

    def __init__(
        self, stage: ItemStage, layout: Layout, tables: list[Tensor], edition: Edition, folder: Path | None = None,
        writes: bool = False,
    ) -> None:  # fmt: skip
        self._stage, self._layout, self.folder, self._writes = stage, layout, folder, writes
        self._lock = SharedLock()
        self._set(tables, edition)

    def _set(self, tables: list[Tensor], edition: Edition) -> None:
        self._tables, self.edition = tables, edition
        self._used = edition.index.used  # rows from 0 to the last that has an item
        self._live = self._with_items()

    # -- what it holds

    @property
    def index(self) -> Index:
        """The ids of its items, and their rows."""
        return self.edition.index

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
        where = "" if self.folder is None else f", in {self.folder}"
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
        """The row numbers of items, `[N]`; an item keeps its row until it is dropped, in a folder until it changes.

        Raises:
            InputError: some ids are unknown.
        """
        return self.index.find(as_ids(ids))

    def known(self, ids: Given) -> np.ndarray[Any, Any]:
        """Which of the items it has now, `[N]`."""
        return self.index.places(as_ids(ids))[1]

    def read(self, plan: int, rows: Given | None = None, ids: Given | None = None) -> tuple[dict[int, Tensor], int]:
        """What a plan reads of N items, by row number or by id: a tensor `[N, ...]` by node of the plan; and N.

        Raises:
            InputError: both or neither are given, or there is no such item.
        """
        if (rows is None) == (ids is None):
            raise InputError("name the candidates' items by rows= or by ids=, one of them")
        with self._lock.reading():
            found = self.rows_of(ids) if ids is not None else self._checked(_numbers(rows))
            device = self._stage.inputs.device
            return self._layout.read(self._tables, found, plan, device), len(found)

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise InputError(f"rows are whole numbers [N], got {rows.dtype} of shape {list(rows.shape)}")
        rows = rows.to(torch.int64)  # of 8 bits, they would be a mask
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
        names = ids_of(ids, count)
        _check_kind(names, self.index)
        Index.of(names, np.arange(count))  # no two the same
        made = [self._layout.rows_of(self._stage(given, start, end)) for start, end in blocks(count)]
        new = [torch.cat(parts) for parts in zip(*made, strict=True)] if made else []
        with self._lock.writing():
            places, known = self.index.places(names)
            kept = known & (not self._writes)  # where others read, what they read stays as it is
            rows = np.empty(count, np.int64)
            rows[kept] = self.index.rows[places[kept]]
            rows[~kept] = self._free_rows(count - int(kept.sum()))
            device = self._stage.inputs.device
            wait_for(device)  # calls that read on other streams
            at = torch.from_numpy(rows).to(device)
            for table, own in zip(self._tables, new, strict=False):
                table.index_copy_(0, at.to(table.device), own.to(table.device))
            wait_for(device)
            index = self.index if kept.all() else self.index.moved(places[known], rows[known])
            self._change(index if known.all() else index.with_ids(names[~known], rows[~known]))

    def drop(self, ids: Given) -> None:
        """Without these items; their rows are those of items that come later.

        Raises:
            InputError: some are unknown.
        """
        names = as_ids(ids)
        with self._lock.writing():
            self.index.find(names)
            self._change(self.index.without(self.index.places(names)[0]))

    def refresh(self) -> None:
        """See what the process that writes to its folder has written since: all of it from the next call on.

        To be called between two changes of the folder: the second may use the rows that the first has freed.

        Raises:
            ArtifactError: the folder has none any more; the store is as it was.
        """
        if self.folder is None or self._writes:
            return
        _, tables, edition = files.opened(self.folder, self._stage)
        with self._lock.writing():
            self._set(tables, edition)

    def _change(self, index: Index) -> None:
        """The next edition."""
        edition = self.edition.after(index)
        if self._writes and self.folder is not None:
            files.indexed(self.folder, edition)
        if index is self.index:
            self.edition = edition
        else:
            self._set(self._tables, edition)

    def _free_rows(self, count: int) -> np.ndarray[Any, Any]:
        """Rows for new items: of dropped ones, then new ones."""
        free = np.arange(0) if self._live is None else np.flatnonzero(~self._live.numpy())
        rows = np.concatenate([free[:count], np.arange(self._used, self._used + max(count - len(free), 0))])
        needed = int(rows.max()) + 1 if count else 0
        if needed > len(self._tables[0] if self._tables else ()):
            self._grow(int(needed * GROWTH))
        return rows

    def _grow(self, rows: int) -> None:
        if self._writes and self.folder is not None:
            self._tables = files.created(self.folder, self._layout, rows)
            return
        larger = self._layout.empty(rows, self._stage.inputs.device)
        for new, table in zip(larger, self._tables, strict=True):
            new[: len(table)] = table
        self._tables = larger


def opened(stage: ItemStage, path: str | os.PathLike[str], write: bool = False) -> Store:
    """See `HoistedModel.open_catalogue`."""
    folder = path_of(path)
    return Store(stage, *files.opened(folder, stage, write=write), folder, write)


def ids_of(ids: Given, count: int) -> Ids:
    """Ids of so many items.

    Raises:
        InputError: there are more or fewer.
    """
    found = as_ids(ids)
    if len(found) != count:
        raise InputError(f"there are {len(found)} ids for {count} items")
    return found


def _numbers(rows: Any) -> Tensor:
    try:
        given = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"rows are whole numbers [N]: {error}") from None
    return given if given.numel() else given.to(torch.int64)  # of none, torch makes floating numbers


def _check_kind(ids: Ids, index: Index) -> None:
    if len(index) and len(ids) and ids.dtype.kind != index.ids.dtype.kind:
        kinds = {"i": "whole numbers", "U": "strings"}
        raise InputError(f"the store's ids are {kinds[index.ids.dtype.kind]}, got {kinds[ids.dtype.kind]}")
