"""Whether a model's scores of one candidate change with what else is in the call.

Whoever puts requests together that came apart, or rows that are nobody's to a call, asks this first: a softmax or a
mean over all rows of a call would mix one user's scores with another's.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.capture import Jagged
from rankhoist.runtime.scoring import Scoring

OFFSETS = [0, 3, 5, 7]  # of the call that tells
ALIKE = 5e-3  # of the largest score: a model that mixes rows is further off, and rounding is not
ROUNDED = {torch.bfloat16: 0.03, torch.float16: 0.01}  # the same of these

Rows = Tensor | Jagged
Side = dict[str, Rows]


def mixes_rows(model: Scoring) -> bool:
    """Whether candidates are scored otherwise together than each alone; also where the example cannot tell.

    Rows that are all alike cannot: `x - x.mean()` is the same for them together and alone.
    """
    if not model.interface.example:
        return True
    context, candidate = (_rows(model, *side) for side in (("context", len(OFFSETS) - 1), ("candidate", OFFSETS[-1])))
    if _all_alike(context) or _all_alike(candidate):
        return True
    try:
        together = _scores(model, context, candidate, OFFSETS if context else None)
        alone = [
            _scores(model, _row(context, request), _row(candidate, i))
            for request, (start, end) in enumerate(itertools.pairwise(OFFSETS))
            for i in range(start, end)
        ]
    except (RuntimeError, IndexError):  # it is not made for a single row, or not for these rows
        return True
    return any(
        not _equal(a, torch.cat(parts))
        for a, *parts in zip(together, *alone, strict=True)
        if a.dim() and len(a) == OFFSETS[-1]
    )


def _rows(model: Scoring, side: str, count: int) -> Side:
    """Rows of an example; where all are alike every second one is halved: an id below a known one is an id."""
    return {name: _varied(rows) for name, rows in model.made_up(side, count).items()}


def _varied(rows: Rows) -> Rows:
    if isinstance(rows, Jagged):  # every second one is empty
        return Jagged.joined([rows[i : i + 1] if i % 2 == 0 else _emptied(rows) for i in range(len(rows))])
    if rows.dtype == torch.bool or not _alike(rows) or rows.device.type != "cpu":  # elsewhere a wrong id does harm
        return rows
    halves = rows / 2 if rows.is_floating_point() else rows // 2
    rows = rows.clone()
    rows[1::2] = torch.where(rows == rows.round(), halves.floor(), halves).to(rows.dtype)[1::2]
    return rows


def _emptied(rows: Jagged) -> Jagged:
    """A bag without values."""
    return Jagged.of([column[:0] for column in rows.values], rows.lengths[:1] * 0)


def _alike(rows: Rows) -> bool:
    if not isinstance(rows, Jagged):
        return bool((rows == rows[:1]).all())
    first = rows[:1].repeat_interleave(len(rows))
    return torch.equal(rows.lengths, first.lengths) and all(map(torch.equal, rows.values, first.values))


def _all_alike(side: Side) -> bool:
    return bool(side) and all(_alike(rows) for rows in side.values())


def _row(side: Side, number: int) -> Side:
    return {name: rows[number : number + 1] for name, rows in side.items()}


def _scores(model: Scoring, context: Side, candidate: Side, offsets: list[int] | None = None) -> list[Tensor]:
    state = model.prepare(context, candidates=len(next(iter(candidate.values()), ())))
    made = model.score(state, candidate, offsets)
    return [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor)]


def _equal(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    scale = float(one.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=ROUNDED.get(one.dtype, ALIKE) * scale, equal_nan=True)
