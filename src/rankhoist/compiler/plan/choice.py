"""How a call is scored, by which plan and backend: a table over numbers of candidates and requests."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

REACH = 3.0  # times as many candidates as were measured, or as few, are scored by what won there


class Way(NamedTuple):
    """How a call is scored: by plan number `plan`.

    `backend` runs it; where it is empty, the model's own does. `chunk` is how many rows its candidate stage takes at a
    time at most, 0 for all of them.
    """

    plan: int
    backend: str = ""
    chunk: int = 0

    def __str__(self) -> str:
        chunks = f" in chunks of {self.chunk} rows" if self.chunk else ""
        return f"plan {self.plan}{chunks}" + (f" by {self.backend}" if self.backend else "")


class Range(NamedTuple):
    """`first` candidates per call and more, up to the next range, are scored this way."""

    first: int
    way: Way


@dataclass(frozen=True)
class Ranges:
    """Which plan scores how many candidates, for each number of requests in `requests` (ascending)."""

    requests: tuple[int, ...]
    candidates: tuple[tuple[Range, ...], ...]

    def choose(self, candidates: int, requests: int) -> int:
        """The number of the plan for a call."""
        return self.at(candidates, requests).plan

    def at(self, candidates: int, requests: int) -> Way:
        """How a call is scored."""
        row = self.row(requests)
        return row[0 if len(row) == 1 else _place(row, candidates)].way

    @property
    def ways(self) -> set[Way]:
        """How calls are scored, of all sizes."""
        return {r.way for row in self.candidates for r in row}

    def row(self, requests: int) -> tuple[Range, ...]:
        """The ranges of candidates for the nearest number of requests."""
        return self.candidates[self._nearest(requests)]

    def _nearest(self, requests: int) -> int:
        above = bisect.bisect_left(self.requests, requests)
        if above in (0, len(self.requests)):
            return min(above, len(self.requests) - 1)
        low, high = self.requests[above - 1 : above + 1]
        return above if requests * requests > low * high else above - 1

    def measured(self, winners: Mapping[tuple[int, int], Way]) -> Ranges:
        """These, but where something was measured: (requests, candidates) -> what won."""
        rows = dict(zip(self.requests, self.candidates, strict=True))
        for requests in {r for r, _ in winners}:
            own = {n: won for (r, n), won in sorted(winners.items()) if r == requests}
            rows[requests] = _row(self.row(requests), own)
        numbers = tuple(sorted(rows))
        return Ranges(numbers, tuple(rows[r] for r in numbers))

    def numbered(self, numbers: Sequence[int]) -> Ranges:
        """The same with other numbers for the plans: `numbers[i]` for plan i."""
        return self._each(lambda way: way._replace(plan=numbers[way.plan]))

    def on(self, backend: str) -> Ranges:
        """The same plans, all run by one backend, on all rows."""
        return self._each(lambda way: Way(way.plan, backend))

    def _each(self, other: Callable[[Way], Way]) -> Ranges:
        """The same with another way in place of each."""
        rows = (_merged(Range(first, other(way)) for first, way in row) for row in self.candidates)
        return replace(self, candidates=tuple(rows))

    def without(self, backends: Collection[str], otherwise: Ranges) -> Ranges:
        """These, but what is to be run by one of `backends` is scored as `otherwise` says."""
        rows = []
        for requests, row in zip(self.requests, self.candidates, strict=True):
            own: list[Range] = []
            for r, end in zip(row, [*(r.first for r in row[1:]), math.inf], strict=True):
                there = _from(otherwise.row(requests), r.first) if r.way.backend in backends else [r]
                own += [Range(max(x.first, r.first), x.way) for x in there if x.first < end]
            rows.append(_merged(own))
        return replace(self, candidates=tuple(rows))


EVERYWHERE = Ranges((1,), ((Range(0, Way(0)),),))


def _row(predicted: tuple[Range, ...], won: Mapping[int, Way]) -> tuple[Range, ...]:
    """Each winner reaches to the middle of the next, the outer two as far as `REACH`; beyond, the prediction stands."""
    counts = list(won)
    inner = [round(math.sqrt(a * b) + 0.5) for a, b in itertools.pairwise(counts)]
    first, end = math.ceil(counts[0] / REACH), math.floor(counts[-1] * REACH) + 1
    starts = [first if first > 1 else 0, *inner]
    before = [r for r in predicted if r.first < starts[0]]
    after = [Range(max(r.first, end), r.way) for r in _from(predicted, end)]
    own = [Range(start, won[n]) for start, n in zip(starts, counts, strict=True)]
    return _merged([*before, *own, *after])


def _from(row: tuple[Range, ...], candidates: int) -> tuple[Range, ...]:
    """The range of so many candidates, and those behind it."""
    return row[_place(row, candidates) :]


def _place(row: tuple[Range, ...], candidates: int) -> int:
    """Where in a row the range of so many candidates is."""
    return max(bisect.bisect_right(row, candidates, key=lambda r: r.first) - 1, 0)


def _merged(row: Iterable[Range]) -> tuple[Range, ...]:
    """Neighbours that are scored alike are one range."""
    kept: list[Range] = []
    for r in row:
        if not kept or r.way != kept[-1].way:
            kept.append(r)
    return tuple(kept)
