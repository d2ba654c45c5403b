"""Requests that wait together are scored in one ragged call, where that is faster than one call for each.

It is for few candidates, where a call costs more than its arithmetic; a ragged call of many candidates is slower, since
its context is gathered row by row. Where the one ends and the other begins is measured when a model is loaded: with the
plans and on the machine that serve.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from rankhoist.capture import Jagged
from rankhoist.serve.inputs import Batch, Rows
from rankhoist.serve.model import ServedModel
from rankhoist.verify import mixes_rows

REQUESTS = 4  # of a ragged call that is measured
CANDIDATES = (1, 3, 10, 30, 100, 300, 1000)
REPEATS = 5
GAIN = 0.9  # of the time of single calls: what a ragged call must stay under


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches of one request each as one of several requests."""
    context = {name: _under([b.context[name] for b in batches]) for name in batches[0].context}
    candidates = {name: _under([b.candidates[name] for b in batches]) for name in batches[0].candidates}
    offsets = list(itertools.accumulate((b.rows for b in batches), initial=0))
    ids = [b.ids for b in batches if b.ids is not None]
    return Batch(context, candidates, len(batches), offsets[-1], offsets, np.concatenate(ids) if ids else None)


def _under(rows: Sequence[Rows]) -> Rows:
    """Rows under rows, or bags under bags."""
    bags = [own for own in rows if isinstance(own, Jagged)]
    return Jagged.joined(bags) if bags else torch.cat([own for own in rows if not isinstance(own, Jagged)])


def joined_up_to(model: ServedModel, most: int, wanted: int | None = None) -> int:
    """Requests of up to so many candidates are joined: as many as `wanted`, else where that is faster.

    0 of a model that mixes rows, whatever is wanted: a user's scores would change with those of others. A call has at
    `most` so many candidates.
    """
    if not model.hoisted.made_up("context", 1) or mixes_rows(model.hoisted):
        return 0
    return _break_even(model, most) if wanted is None else wanted


def _break_even(model: ServedModel, most: int) -> int:
    """Requests of up to so many candidates are scored faster together, `most` candidates in a call; 0 if none are."""
    best = 0
    for count in CANDIDATES:
        if count * REQUESTS > most:
            break
        together, alone = _seconds(_together(model, count), _alone(model, count))
        if together > GAIN * alone:
            break
        best = count
    return best


def _together(model: ServedModel, count: int) -> Callable[[], object]:
    batch = model.made_up(REQUESTS, count * REQUESTS)
    return lambda: model.score(batch)


def _alone(model: ServedModel, count: int) -> Callable[[], object]:
    batch = model.made_up(1, count)
    return lambda: [model.score(batch) for _ in range(REQUESTS)]


def _seconds(*calls: Callable[[], object]) -> list[float]:
    """The least time of each, measured in turn."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best
