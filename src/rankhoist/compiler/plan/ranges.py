"""Plans for ranges of candidates and requests: no plan is the fastest for one candidate and for five thousand."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from rankhoist.capture import Program
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.plan.search import Plan, PlanSummary, affordable, choice, explained, search, settled
from rankhoist.compiler.targets import ALIKE, Target, this_machine

CANDIDATES = sorted({round(10 ** (i / 8)) for i in range(41)})  # 1 .. 100 000
REQUESTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
ELSEWHERE = [100, 10_000]  # candidates for which the search's result is ordered anew
SECONDS = 8.0  # of this thread; no further plans are made after that

P = TypeVar("P", bound=PlanSummary, covariant=True)


@dataclass(frozen=True)
class Range:
    """`first` candidates per call and more, up to the next range, are scored by plan number `plan`."""

    first: int
    plan: int


@dataclass(frozen=True)
class Ranges:
    """Which plan scores how many candidates, for each number of requests in `requests` (ascending)."""

    requests: tuple[int, ...]
    candidates: tuple[tuple[Range, ...], ...]

    def choose(self, candidates: int, requests: int) -> int:
        """The number of the plan for a call."""
        row = self.row(requests)
        if len(row) == 1:
            return row[0].plan
        return row[max(bisect.bisect_right(row, candidates, key=lambda r: r.first) - 1, 0)].plan

    def row(self, requests: int) -> tuple[Range, ...]:
        """The ranges of candidates for the nearest number of requests."""
        return self.candidates[self._nearest(requests)]

    def _nearest(self, requests: int) -> int:
        above = bisect.bisect_left(self.requests, requests)
        if above in (0, len(self.requests)):
            return min(above, len(self.requests) - 1)
        low, high = self.requests[above - 1 : above + 1]
        return above if requests * requests > low * high else above - 1


EVERYWHERE = Ranges((1,), ((Range(0, 0),),))


@dataclass(frozen=True)
class Plans(Generic[P]):
    """Plans of one program over one builder, the first made for `workload`, and where each is used."""

    plans: tuple[P, ...]
    ranges: Ranges

    @property
    def main(self) -> P:
        """The plan for the workload asked for."""
        return self.plans[0]

    def one_per_plan(self, requests: int) -> list[int]:
        """A number of candidates for every plan that so many requests use: 2 or more if it can be, one is special."""
        row = self.ranges.row(requests)
        last = [*(r.first - 1 for r in row[1:]), max(row[-1].first, 2)]
        counts = {r.plan: min(max(r.first, 2), end) for r, end in zip(row, last, strict=True)}
        usual = self.main.workload.candidates
        return list((counts | {self.ranges.choose(usual, requests): usual}).values())

    def __str__(self) -> str:
        """Break-even points: how many candidates are scored by the plan of which level."""
        lines = []
        for requests, row in zip(self.ranges.requests, self.ranges.candidates, strict=True):
            names = [f"{r.first or 1}+: {self.plans[r.plan].level.name.lower()} (plan {r.plan})" for r in row]
            lines.append(f"{requests} request{'s' * (requests > 1)}, candidates " + ", ".join(names))
        return "\n".join(lines)


def make_plans(
    program: Program, level: Level, workload: Workload, target: Target | None = None,
    without: frozenset[str] = frozenset(),
) -> Plans[Plan]:  # fmt: skip
    """The plan for `workload`, and at `full` others where they are predicted to be faster by a few percent."""
    target = target or this_machine()
    deadline = time.thread_time() + SECONDS
    found = search(program, level, workload, target, without)
    main = choice(level, found)
    b = Builder(program.device)
    if level is not Level.FULL:
        return Plans((explained(level, settled(program, main, b), found[-1]),), EVERYWHERE)
    pool = [main, *(p for p in found if p is not main)]
    for count in ELSEWHERE:
        if time.thread_time() < deadline and not _near(count, workload):
            other = Workload(count, workload.requests)
            plan = affordable(program, level, other, found[-1].evaluated, None, target, without)
            pool += [] if plan is None else [plan]
    chosen = _chosen(pool, target)
    used = sorted({0, *(i for row in chosen for i in row)})
    plans = [settled(program, pool[i], b) for i in used]
    rows = [_joined([used.index(i) for i in row]) for row in chosen]
    return Plans((explained(level, plans[0], found[-1]), *plans[1:]), Ranges(tuple(REQUESTS), tuple(rows)))


def single(plan: Plan) -> Plans[Plan]:
    """One plan for every call."""
    return Plans((plan,), EVERYWHERE)


def _chosen(pool: Sequence[Plan], target: Target) -> list[list[int]]:
    """Number of the plan, by requests and candidates, among those that are as fast as the fastest.

    Near the workload that is the first plan, elsewhere the simplest: what is predicted alike and does less that is new
    is the safer choice.
    """
    simplest = sorted(range(len(pool)), key=lambda i: (_simplicity(pool[i].level), i))
    main_first = [0, *(i for i in simplest if i != 0)]
    orders = [main_first if _near(count, pool[0].workload) else simplest for count in CANDIDATES]
    given = [(p.nodes, p.outputs) for p in pool]
    counts = np.asarray(CANDIDATES, float)
    result = []
    for requests in REQUESTS:
        times = np.stack([target.predicted(*g, counts, np.full_like(counts, requests)) for g in given])
        fast = times <= ALIKE * times.min(0)
        result.append([next(i for i in order if fast[i, at]) for at, order in enumerate(orders)])
    return result


def _simplicity(level: Level) -> tuple[bool, Level]:
    """The smaller, the nearer to what the author wrote with context work done once."""
    return level < Level.REQUEST, level


def _near(candidates: int, workload: Workload) -> bool:
    return 0.3 < candidates / workload.candidates < 3


def _joined(row: Sequence[int]) -> tuple[Range, ...]:
    """Runs of equal numbers, each from the middle between the two counts where the number changes."""
    ranges = [Range(0, row[0])]
    for (low, a), (high, b) in itertools.pairwise(zip(CANDIDATES, row, strict=True)):
        if a != b:
            ranges.append(Range(round((low * high) ** 0.5 + 0.5), b))
    return tuple(ranges)
