"""Candidates that are items of a store: of files of items, or of items that come again in a part of a job.

Where a model marks inputs as the item's, and rows of a file repeat items, what the model computes of an item alone is
computed once in a part: rows are compared whole, byte for byte, so that no id is needed and no two items are mixed up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel, Store
from rankhoist.score.columns import Rows
from rankhoist.score.layouts import Block, Layout
from rankhoist.score.parts import Part

LOOK, LOOK_PER_BYTE = 1e-6, 1e-9  # seconds to find out whether an item came before, and for each of its bytes
GAIN = 0.8  # of the predicted time without a store: what the one with it must stay under


@dataclass(frozen=True)
class Stocked:
    """The candidates of a block: the rows of a store that their items have, `[N]`, and what is left of their inputs."""

    store: Store
    rows: Tensor
    pairs: dict[str, Rows]


def of_catalogue(store: Store, block: Block, column: str) -> Stocked:
    """Candidates that name their items.

    Raises:
        ScoringError: an item is not in the catalogue; says in which file and row.
    """
    assert block.ids is not None, "its layout has ids"
    known = store.known(block.ids)
    if not known.all():
        first = int(np.argmin(known))
        raise ScoringError(
            f"{block.where(first)}, column {column!r}: no item {block.ids[first].item()!r} in the catalogue"
        )
    return Stocked(store, store.rows_of(block.ids), block.candidate)


class Repeats:
    """The items of one part of a job, as they come."""

    def __init__(self, model: HoistedModel) -> None:
        self._sides = sides_of(model)
        self._store = model.catalogue({n: x[:0] for n, x in model.made_up("item", 1).items()})
        self._rows: dict[bytes, int] = {}

    def of(self, block: Block) -> Stocked:
        """The candidates of a block; the store then has what is new among their items."""
        items, pairs = apart(block.candidate, self._sides)
        before = len(self._rows)
        rows = np.array([self._rows.setdefault(key, len(self._rows)) for key in keys(items)], np.int64)
        new = np.unique(rows, return_index=True)
        first = new[1][new[0] >= before]
        if len(first):
            at = torch.from_numpy(first)
            self._store.update({n: x[at] for n, x in items.items()}, np.arange(before, len(self._rows)))
        return Stocked(self._store, self._store.rows_of(rows), pairs)


def items_repeat(model: HoistedModel, layout: Layout, part: Part) -> bool:
    """Whether items that come again are worth looking for, if they come as often as in a part: by predicted time."""
    found, plan = model.report().items, model.plan
    if found is None or not part.rows:
        return False
    sides, seen, width = sides_of(model), set[bytes](), 0
    for block in layout.blocks(part):
        rows = keys(apart(block.candidate, sides)[0])
        seen.update(rows)
        width = max(width, *map(len, rows[:1]), 0)
    once = len(seen) / part.rows
    per_product = found.milliseconds_without / 1e3 / max(plan.cost.multiply_adds, 1)
    plain, stored = (ms / 1e3 / plan.workload.candidates for ms in (found.milliseconds_without, found.milliseconds))
    look = LOOK + width * LOOK_PER_BYTE
    return stored + look + once * found.item.multiply_adds * per_product < GAIN * plain


Sides = dict[str, dict[str, Tensor | None]]  # side -> input -> places of its columns among the candidate's; None: all


def sides_of(model: HoistedModel) -> Sides:
    """What of the candidates' inputs is the item's and what is the pair's."""
    sides: Sides = {"item": {}, "pair": {}}
    for spec in model.interface.inputs.values():
        for side, _, columns in spec.parts_with_store:
            if side in sides:
                own = None if columns is None else torch.tensor([spec.candidate_columns.index(c) for c in columns])
                sides[side][spec.name] = own
    return sides


def apart(candidate: dict[str, Any], sides: Sides) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of items, and those of pairs."""
    items, pairs = (
        {name: candidate[name] if own is None else candidate[name][:, own] for name, own in sides[side].items()}
        for side in ("item", "pair")
    )
    return items, pairs


def keys(items: dict[str, Tensor]) -> list[bytes]:
    """The bytes of every row: two items are the same where all of their inputs are, bit for bit."""
    parts = [x.reshape(len(x), math.prod(x.shape[1:])).contiguous().view(torch.uint8) for x in items.values()]
    whole, width = torch.cat(parts, 1).numpy().tobytes(), sum(p.shape[1] for p in parts)
    return [whole[i : i + width] for i in range(0, len(whole), width)]
