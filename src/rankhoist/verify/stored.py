"""Scores by a store of items, beside those of the original: what a store keeps is computed apart from any call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankhoist.capture import InputSpec
from rankhoist.errors import VerificationError
from rankhoist.runtime import HoistedModel, Store
from rankhoist.verify.batches import Batch
from rankhoist.verify.measure import Outputs, outputs


@dataclass(frozen=True)
class Stocked:
    """A batch whose candidates are items of a store: their rows there, `[N]`, and the store."""

    batch: Batch
    rows: Tensor
    store: Store


def stocked(
    hoisted: HoistedModel, batch: Batch, store: Store, items: Mapping[str, Any] | None, ids: Any, seed: int
) -> Stocked:
    """The batch with items of the store: those that the caller knows the inputs of, or else items of its own in a store
    of the same kind, laid out in another order.
    """
    generator = torch.Generator().manual_seed(seed)
    if items is not None:
        count = len(next(iter(items.values())))
        chosen = torch.randint(count, (batch.candidates,), generator=generator)
        known = torch.arange(count) if ids is None else store.rows_of(ids)
        drawn = {name: x[chosen.to(x.device)] for name, x in items.items()}
        return Stocked(with_items(hoisted, batch, drawn), known[chosen], store)
    order = torch.randperm(batch.candidates, generator=generator)
    own = of_side(hoisted, batch.cast(hoisted.interface, hoisted.dtype), "item")
    made = hoisted.catalogue({name: x[order.to(x.device)] for name, x in own.items()}, dtype=store.dtype)
    return Stocked(batch, order.argsort(), made)


def run_with_store(hoisted: HoistedModel, stocked: Stocked) -> Outputs:
    """The hoisted model, by the store."""
    batch = stocked.batch.cast(hoisted.interface, hoisted.dtype)
    state = hoisted.prepare(batch.context, candidates=batch.candidates, store=stocked.store)
    offsets = list(batch.offsets) if batch.context else None
    pairs = of_side(hoisted, batch, "pair")
    return outputs(hoisted.score(state, None, offsets, store=stocked.store, rows=stocked.rows, pair_inputs=pairs))


def of_side(hoisted: HoistedModel, batch: Batch, side: str) -> dict[str, Tensor]:
    """A batch's inputs of items, or of pairs."""
    found = {}
    for spec in hoisted.interface.inputs.values():
        for own, _, columns in spec.parts_with_store:
            if own == side:
                rows = batch.candidate[spec.name]
                found[spec.name] = rows if columns is None else rows[:, _places(spec, columns)]
    return found


def with_items(hoisted: HoistedModel, batch: Batch, items: Mapping[str, Tensor]) -> Batch:
    """The batch with other inputs of items.

    Raises:
        VerificationError: one is missing.
    """
    candidate = dict(batch.candidate)
    for spec in hoisted.interface.inputs.values():
        for side, _, columns in spec.parts_with_store:
            if side != "item":
                continue
            if spec.name not in items:
                raise VerificationError(f"items lack the input {spec.name!r}, which is marked as the item's")
            own = items[spec.name].to(candidate[spec.name].dtype)
            whole = own if columns is None else candidate[spec.name].clone()
            if columns is not None:
                whole[:, _places(spec, columns)] = own
            candidate[spec.name] = whole
    return replace(batch, candidate=candidate)


def _places(spec: InputSpec, columns: tuple[int, ...]) -> list[int]:
    """Where columns of an input are among those of its candidate side."""
    return [spec.candidate_columns.index(c) for c in columns]
