"""Along a sequence of both sides: which positions exist per candidate, and where one kind ends and another begins.

So are windows of it: those that read the same sides are computed together, each as early as what it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankhoist.compiler.algebra import joins, moves
from rankhoist.compiler.algebra.forms import ROW, Elsewhere, Form
from rankhoist.compiler.graph.build import Builder

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


# -- windows

CONTEXT, BOTH_SIDES, CANDIDATE = range(3)  # what a window reads


@dataclass(frozen=True)
class Windows:
    """Windows along one axis: positions in each, steps between and within them, and what is put around the axis."""

    axis: int
    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    behind: int = 0

    @property
    def span(self) -> int:
        """Positions from the first that a window reads to the last."""
        return self.dilation * (self.size - 1) + 1

    def count(self, length: int) -> int:
        """Windows on an axis of that length, nothing put around it."""
        return (length - self.span) // self.stride + 1

    def reads(self, start: int, end: int) -> np.ndarray:
        """All that windows from `start` to `end` read, and what lies between."""
        return np.arange(start * self.stride, (end - 1) * self.stride + self.span)

    @property
    def bare(self) -> Windows:
        """The same on an axis around which nothing need be put."""
        return replace(self, before=0, behind=0)


Apply = Callable[[Form, Windows, int], Form]  # x, windows that are all of one kind, the kind


def by_windows(builder: Builder, x: Form, windows: Windows, number: float, apply: Apply) -> Form:
    """Runs of windows that read the same sides, each at its own rate.

    Args:
        number: what lies before the axis and behind it.
    """
    dim = x.dim(windows.axis)
    late = per_candidate(x, dim)
    if late.all() or not late.any():
        raise Elsewhere(f"axis {windows.axis} of {x.axes} is known at one rate")
    own = windows.bare
    if windows.before or windows.behind:
        x = joins.padded(builder, x, windows.axis, windows.before, windows.behind, number)
        late = np.concatenate([np.zeros(windows.before, bool), late, np.zeros(windows.behind, bool)])
    reads = [late[t * own.stride : t * own.stride + own.span : own.dilation] for t in range(own.count(len(late)))]
    kinds = [int(r.any()) + int(r.all()) for r in reads]
    alike = runs(kinds) if any(kinds) else [(0, len(kinds), CONTEXT)]
    dim = x.dim(windows.axis)
    parts = [apply(moves.take_dim(builder, x, dim, own.reads(a, b)), own, kind) for a, b, kind in alike]
    return joins.along_axis(builder, parts, windows.axis)


def only_cut(x: Form, axes: Sequence[int]) -> int:
    """The one axis that exists per candidate in part."""
    late = {a: per_candidate(x, x.dim(a)) for a in axes if len(x.layout[a]) == 1 and ROW not in x.layout[a]}
    cut = [a for a, own in late.items() if own.any() and not own.all()]
    if len(cut) != 1:
        raise Elsewhere(f"{len(cut)} of the axes of {x.axes} hold both context and candidate")
    return cut[0]
