"""A store is made: items come piece by piece, and go through the item stage block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.targets.cuda_graphs import wait_for
from rankhoist.errors import InputError
from rankhoist.runtime.catalogue import files
from rankhoist.runtime.catalogue.index import Edition, Ids, Index
from rankhoist.runtime.catalogue.layout import Layout
from rankhoist.runtime.catalogue.stage import ItemStage, blocks
from rankhoist.runtime.catalogue.store import Given, Store, ids_of

Piece = tuple[Given, Mapping[str, Any] | Sequence[Any]]  # ids of some items, and their inputs


def build(
    stage: ItemStage, pieces: Iterable[Piece], count: int, folder: Path | None, dtype: torch.dtype | None
) -> Store:
    """The store of `count` items; see `HoistedModel.catalogue`."""
    layout = Layout.of(stage.catalogue, stage(stage.inputs.made_up("item", 1), 0, 1), dtype)
    tables = layout.empty(count, stage.inputs.device) if folder is None else files.created(folder, layout, count)
    ids: list[Ids] = []
    first = 0
    for names, items in pieces:
        given, size = stage.checked(items)
        ids.append(ids_of(names, size))
        if first + size > count:
            raise InputError(f"there are more items than the {count} that were announced")
        for start, end in blocks(size):
            for table, made in zip(tables, layout.rows_of(stage(given, start, end)), strict=True):
                table[first + start : first + end] = made.to(table.device)
        first += size
    if first != count:
        raise InputError(f"there are {first} items, and {count} were announced")
    wait_for(stage.inputs.device)  # calls may be on other streams
    index = Index.of(np.concatenate(ids) if ids else np.arange(0), np.arange(count))
    store = Store(stage, layout, tables, Edition(index), folder, writes=folder is not None)
    if folder is not None:
        files.described(folder, layout, stage.version)
        files.indexed(folder, store.edition)
    return store
