"""Candidates that are items of a store: of files of items, or of items that come again in a part of a job.

Where a model marks inputs as the item's, and rows of a file repeat items, what the model computes of an item alone is
computed once in a part. A column may say which item a row is of: see `rankhoist.score.named`. Else rows are compared
whole, byte for byte, so that no two items are mixed up. Arrow's hash tables do either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel, Store
from rankhoist.score.columns import Rows
from rankhoist.score.item_ids import values_of
from rankhoist.score.layouts import Block, Ints, Layout
from rankhoist.score.parts import Part

LOOK, LOOK_PER_BYTE = 1e-6, 1e-9  # seconds to find out whether an item came before, and for each of its bytes
LOOK_UP = 2e-7  # the same by its id
GAIN = 0.8  # of the predicted time without a store: what the one with it must stay under


@dataclass(frozen=True)
class Stocked:
    """The candidates of a block: the rows of a store that their items have, `[N]`, and what is left of their inputs."""

    store: Store
    rows: Tensor
    pairs: dict[str, Rows]


def of_catalogue(store: Store, block: Block, column: str) -> Stocked:
    """Candidates that name their items, by a column.

    Raises:
        ScoringError: an item is not in the catalogue; says in which file and row.
    """
    assert block.ids is not None, "its layout has ids"
    ids = values_of(block.ids)
    known = store.known(ids)
    if not known.all():
        first = int(np.argmin(known))
        raise ScoringError(f"{block.where(first)}, column {column!r}: no item {ids[first].item()!r} in the catalogue")
    return Stocked(store, store.rows_of(ids), block.candidate)


class Repeats:
    """The items of one part of a job, as they come: rows are of one if all that is the item's is the same."""

    def __init__(self, model: HoistedModel) -> None:
        self._sides, self._seen = sides_of(model), Seen()
        self._store = model.catalogue({n: x[:0] for n, x in model.made_up("item", 1).items()})

    def of(self, block: Block) -> Stocked:
        """The candidates of a block; the store then has what is new among their items."""
        numbers, new = self._seen.add(identities(block, self._sides))
        self._read(block, numbers, new)
        return Stocked(self._store, self._store.rows_of(numbers), of_side("pair", block.candidate, self._sides))

    def _read(self, block: Block, numbers: Ints, new: Ints) -> None:
        """Take new items into the store, from where they are in a block; `numbers` are those of all candidates."""
        items, at = of_side("item", block.candidate, self._sides), torch.from_numpy(new)
        self._add({n: x[at] for n, x in items.items()})

    def _add(self, items: dict[str, Tensor]) -> None:
        """The next items, the last that were seen."""
        count = len(next(iter(items.values())))
        if count:
            self._store.update(items, np.arange(self._seen.count - count, self._seen.count))


class Seen:
    """Keys that came so far, numbered as they came."""

    def __init__(self) -> None:
        self._keys: pa.Array | None = None

    @property
    def count(self) -> int:
        """Of those that differ."""
        return 0 if self._keys is None else len(self._keys)

    def add(self, given: pa.Array) -> tuple[Ints, Ints]:
        """The numbers of keys, `[N]`, and where those are among them that were not there before, one of each."""
        coded = given.dictionary_encode()
        own, codes = coded.dictionary, coded.indices.to_numpy()
        if self._keys is None:
            self._keys = own.slice(0, 0)
        places = pc.index_in(own, value_set=self._keys)
        fresh = places.is_null().to_numpy(zero_copy_only=False)
        numbers = places.fill_null(0).to_numpy().astype(np.int64)
        numbers[fresh] = self.count + np.arange(fresh.sum())
        self._keys = pa.concat_arrays([self._keys, own.filter(pa.array(fresh))])
        first = np.empty(len(own), np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        return numbers[codes], first[fresh]


def items_repeat(model: HoistedModel, layout: Layout, part: Part) -> bool:
    """Whether items that come again are worth looking for, if they come as often as in a part: by predicted time.

    The more rows are seen, the smaller is the share of new items; so it ends where it pays already.
    """
    found, plan = model.report().items, model.plan
    if found is None or not part.rows:
        return False
    per_product = found.milliseconds_without / 1e3 / max(plan.cost.multiply_adds, 1)
    plain, stored = (ms / 1e3 / plan.workload.candidates for ms in (found.milliseconds_without, found.milliseconds))
    sides, seen, rows = sides_of(model), Seen(), 0
    for block in layout.blocks(part):
        own = identities(block, sides)
        seen.add(own)
        rows += len(own)
        look = LOOK_UP if block.items is not None else LOOK + own.type.byte_width * LOOK_PER_BYTE
        once = seen.count / max(rows, 1) * found.item.multiply_adds * per_product
        if rows and stored + look + once < GAIN * plain:
            return True
    return False


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


def of_side(side: str, candidate: dict[str, Any], sides: Sides) -> dict[str, Any]:
    """Of the candidates' inputs, those of items or of pairs."""
    return {name: candidate[name] if own is None else candidate[name][:, own] for name, own in sides[side].items()}


def identities(block: Block, sides: Sides) -> pa.Array:
    """What tells items apart, `[N]`: their ids where a column says them, else all that is theirs."""
    return block.ids if block.items is not None else keys(of_side("item", block.candidate, sides))


def keys(items: dict[str, Tensor]) -> pa.Array:
    """The bytes of every row: two items are the same where all of their inputs are, bit for bit."""
    parts = [x.reshape(len(x), math.prod(x.shape[1:])).contiguous().view(torch.uint8) for x in items.values()]
    whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(whole.shape[1]), len(whole), [None, pa.py_buffer(whole.numpy())]
    )
