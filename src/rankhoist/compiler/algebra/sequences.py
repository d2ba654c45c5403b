"""Along a sequence of both sides: which positions exist per candidate, and where one kind ends and another begins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rankhoist.compiler.algebra.forms import Elsewhere, Form

Run = tuple[int, int, int]  # from, to (not included), kind
MOST = 8  # runs that are computed one by one; a sequence of more is computed as a whole


def per_candidate(value: Form, dim: int) -> np.ndarray:
    """Per position of a dim: whether any of it exists per candidate."""
    found = np.zeros(value.sizes[dim], dtype=bool)
    for cell, block in value.blocks.items():
        if block.rate.per_candidate:
            found[value.dims[dim][cell[dim]]] = True
    return found


def runs(kinds: Sequence[int] | np.ndarray) -> list[Run]:
    """Neighbours of one kind; declines where to compute them apart gains nothing."""
    found: list[Run] = []
    for kind, group in itertools.groupby(range(len(kinds)), key=lambda t: int(kinds[t])):
        own = list(group)
        found.append((own[0], own[-1] + 1, kind))
    if not 1 < len(found) <= MOST:
        raise Elsewhere(
            f"{len(found)} runs of positions are known at one rate each, where 2 to {MOST} are computed apart"
        )
    return found
