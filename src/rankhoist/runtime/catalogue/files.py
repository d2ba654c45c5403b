"""A store as a folder: tables as they lie in memory, ids as numpy's own files, and what they are.

    store.json       layout, version of the weights, rows
    table_0.bin      [rows, width], mapped by every process that has it open: there is one copy in memory
    ids.npy, rows.npy

It holds data alone. A process that opens it does not write to it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rankhoist.errors import ArtifactError
from rankhoist.runtime.catalogue.index import Index
from rankhoist.runtime.catalogue.layout import Layout, Table
from rankhoist.runtime.catalogue.stage import ItemStage
from rankhoist.runtime.plain import counts, entry
from rankhoist.runtime.whole import written

FORMAT = 1
NAME = "store.json"


def created(folder: Path, layout: Layout, rows: int) -> list[Tensor]:
    """Tables of so many rows in a folder, to be written; those that are there keep their rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_mapped(folder, i, rows, table, shared=True) for i, table in enumerate(layout.tables)]
    except OSError as error:
        raise ArtifactError(f"no store can be written to {folder}: {error.strerror or error}") from error


def described(folder: Path, layout: Layout, version: str, rows: int, index: Index) -> None:
    """Write what the tables are, and the ids of their rows."""
    for name, array in (("ids.npy", index.ids), ("rows.npy", index.rows)):
        with written(folder / name) as file:
            np.save(file, array, allow_pickle=False)
    data = {"format": FORMAT, "version": version, "rows": rows, **layout.to_data()}
    with written(folder / NAME) as file:
        file.write(json.dumps(data).encode())


def opened(folder: Path, stage: ItemStage) -> tuple[Layout, list[Tensor], Index]:
    """The store in a folder, for the item stage that it must be of.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another model or of other weights.
    """
    try:
        data = json.loads((folder / NAME).read_bytes())
        ids, rows = (np.load(folder / name, allow_pickle=False) for name in ("ids.npy", "rows.npy"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable store: {error}") from error
    if entry(data, "format", int) != FORMAT:
        raise ArtifactError(f"the store in {folder} has a format that this version does not read; make it again")
    if entry(data, "version", str) != stage.version:
        raise ArtifactError(f"the store in {folder} is of another model, or of other weights; make it again")
    layout, count = Layout.from_data(data), counts({"rows": [data.get("rows")]}, "rows")[0]
    if [c.node for c in layout.columns] != stage.catalogue.kept:
        raise ArtifactError(f"the store in {folder} keeps other values than the model reads; make it again")
    whole = ids.ndim == rows.ndim == 1 and len(ids) == len(rows) and rows.dtype == np.int64
    if not whole or ids.dtype.kind not in "iU" or (len(rows) and not 0 <= rows.min() <= rows.max() < count):
        raise ArtifactError(f"the ids in {folder} do not fit its tables")
    tables = [_mapped(folder, i, count, table, shared=False) for i, table in enumerate(layout.tables)]
    return layout, tables, Index(ids, rows)


def _mapped(folder: Path, number: int, rows: int, table: Table, *, shared: bool) -> Tensor:
    path, size = folder / f"table_{number}.bin", rows * table.width
    if not shared and (not path.exists() or path.stat().st_size < size * table.dtype.itemsize):
        raise ArtifactError(f"{path} is missing or too short; make the store again")
    if not size:
        return torch.empty(rows, table.width, dtype=table.dtype)
    return torch.from_file(os.fspath(path), shared=shared, size=size, dtype=table.dtype).view(rows, table.width)
