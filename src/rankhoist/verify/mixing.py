"""Whether a model's scores of one candidate change with what else is in the call.

Whoever puts requests together that came apart asks this first: a softmax or a mean over all rows of a call would mix
one user's scores with another's.
"""

from __future__ import annotations

import bisect

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.runtime import HoistedModel
from rankhoist.verify.batches import Batch, draw

CANDIDATES, REQUESTS = 7, 3  # of the call that tells
ALIKE = 1e-3  # of the largest score: a model that mixes rows is further off, and rounding is not


def mixes_rows(model: HoistedModel) -> bool:
    """Whether candidates are scored otherwise together than each alone; also where the example cannot tell.

    Rows that are all alike cannot: `x - x.mean()` is the same for them together and alone.
    """
    if not model.example:
        return True
    specs = model.interface.inputs.values()
    pool = {name: _varied(rows) for name, rows in model.example.items()}
    batch = draw(specs, pool, CANDIDATES, REQUESTS, -1, 0).cast(model.interface, model.dtype)
    if _all_alike(batch.context) or _all_alike(batch.candidate):
        return True
    try:
        together = _scores(model, batch)
        alone = [_scores(model, _alone(batch, n)) for n in range(CANDIDATES)]
    except (RuntimeError, IndexError):  # it is not made for a single row, or not for these rows
        return True
    return any(
        not _equal(a, torch.cat(parts))
        for a, *parts in zip(together, *alone, strict=True)
        if a.dim() and len(a) == CANDIDATES
    )


def _varied(rows: Tensor) -> Tensor:
    """The rows of an example; where all are alike also their halves: an id below a known one is an id."""
    if rows.dtype == torch.bool or not _alike(rows):
        return rows
    halves = rows / 2 if rows.is_floating_point() else rows // 2
    return torch.cat([rows, torch.where(rows == rows.round(), halves.floor(), halves).to(rows.dtype)])


def _alike(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())


def _all_alike(side: dict[str, Tensor]) -> bool:
    return bool(side) and all(_alike(rows) for rows in side.values())


def _alone(batch: Batch, number: int) -> Batch:
    """A candidate and its request as a call of their own."""
    request = bisect.bisect_right(batch.offsets, number) - 1
    return Batch(_row(batch.context, request), _row(batch.candidate, number), (0, 1))


def _row(side: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: rows[number : number + 1] for name, rows in side.items()}


def _scores(model: HoistedModel, batch: Batch) -> list[Tensor]:
    state = model.prepare(batch.context, candidates=batch.candidates)
    made = model.score(state, batch.candidate, batch.offsets if batch.context else None)
    return [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]


def _equal(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    scale = float(one.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=ALIKE * scale, equal_nan=True)
