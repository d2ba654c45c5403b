"""A store as a folder: tables as they lie in memory, and which item is in which row.

    store.json       layout, and version of the weights
    table_0.bin      [rows, width], mapped by every process that has it open: there is one copy in memory
    index.npz        ids and their rows, written anew with every change

It holds data alone. One process writes to it: rows that no item has, and then the index, which is replaced at once. So
others read what they have opened, whole, until they open it again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankhoist.errors import ArtifactError
from rankhoist.runtime.catalogue.index import Edition, Index
from rankhoist.runtime.catalogue.layout import Layout, Table
from rankhoist.runtime.catalogue.stage import ItemStage
from rankhoist.runtime.plain import entry
from rankhoist.runtime.whole import written

FORMAT = 1
NAME, INDEX = "store.json", "index.npz"


def created(folder: Path, layout: Layout, rows: int) -> list[Tensor]:
    """Tables of so many rows in a folder, to be written; those that are there keep their rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_mapped(folder, i, rows, table, shared=True) for i, table in enumerate(layout.tables)]
    except OSError as error:
        raise ArtifactError(f"no store can be written to {folder}: {error.strerror or error}") from error


def described(folder: Path, layout: Layout, version: str) -> None:
    """Write what the tables are."""
    with written(folder / NAME) as file:
        file.write(json.dumps({"format": FORMAT, "version": version, **layout.to_data()}).encode())


def indexed(folder: Path, edition: Edition) -> None:
    """Write which item is in which row."""
    index, about = edition.index, {"number": np.int64(edition.number), "since": np.float64(edition.since)}
    with written(folder / INDEX) as file:
        np.savez(file, ids=index.ids, rows=index.rows, **about)


def opened(folder: Path, stage: ItemStage, *, write: bool = False) -> tuple[Layout, list[Tensor], Edition]:
    """The store in a folder, for the item stage that it must be of; `write`: what is written comes into the folder.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another model or of other weights.
    """
    try:
        data = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable store: {error}") from error
    if entry(data, "format", int) != FORMAT:
        raise ArtifactError(f"the store in {folder} has a format that this version does not read; make it again")
    if entry(data, "version", str) != stage.version:
        raise ArtifactError(f"the store in {folder} is of another model, or of other weights; make it again")
    layout = Layout.from_data(data)
    if [c.node for c in layout.columns] != stage.catalogue.kept:
        raise ArtifactError(f"the store in {folder} keeps other values than the model reads; make it again")
    edition = latest(folder)
    used = edition.index.used
    room = [_rows_in(folder, i, table, used) for i, table in enumerate(layout.tables)]
    if min(room, default=used) < used:
        raise ArtifactError(f"{folder}/table_{room.index(min(room))}.bin is missing or too short; make the store again")
    rows = min(room, default=used)
    return layout, [_mapped(folder, i, rows, t, shared=write) for i, t in enumerate(layout.tables)], edition


def latest(folder: Path) -> Edition:
    """Which item is in which row, as it was last written.

    Raises:
        ArtifactError: there is no index, or it is damaged.
    """
    try:
        with np.load(folder / INDEX, allow_pickle=False) as found:
            ids, rows, number, since = (found[name] for name in ("ids", "rows", "number", "since"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ArtifactError(f"{folder} holds no readable store: {error}") from error
    whole = ids.ndim == rows.ndim == 1 and len(ids) == len(rows) and rows.dtype == np.int64
    if not whole or ids.dtype.kind not in "iU" or (len(rows) and rows.min() < 0) or number.size != 1 != since.size:
        raise ArtifactError(f"the index in {folder} is damaged; make the store again")
    return Edition(Index(ids, rows), int(number), float(since))


def _rows_in(folder: Path, number: int, table: Table, used: int) -> int:
    """Rows of a table as it lies there."""
    path, size = folder / f"table_{number}.bin", table.width * table.dtype.itemsize
    if not size:
        return used
    return path.stat().st_size // size if path.exists() else -1


def _mapped(folder: Path, number: int, rows: int, table: Table, *, shared: bool) -> Tensor:
    path, size = folder / f"table_{number}.bin", rows * table.width
    if not size:
        return torch.empty(rows, table.width, dtype=table.dtype)
    return torch.from_file(os.fspath(path), shared=shared, size=size, dtype=table.dtype).view(rows, table.width)
