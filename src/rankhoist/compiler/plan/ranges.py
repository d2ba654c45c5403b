"""Plans for ranges of candidates and requests: no plan is the fastest for one candidate and for five thousand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from rankhoist.capture import Program
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node
from rankhoist.compiler.plan.choice import EVERYWHERE, Range, Ranges, Way
from rankhoist.compiler.plan.cut import bytes_of
from rankhoist.compiler.plan.safe import as_it_is
from rankhoist.compiler.plan.search import Plan, PlanSummary, affordable, attempt, choice, explained, search, settled
from rankhoist.compiler.rules import CONDITIONAL
from rankhoist.compiler.targets import ALIKE, CPU, Target, this_machine
from rankhoist.compiler.targets.backends import here

CANDIDATES = sorted({round(10 ** (i / 8)) for i in range(41)})  # 1 .. 100 000
REQUESTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
ELSEWHERE = [100, 10_000]  # candidates for which the search's result is ordered anew, and what keeps every form
SPARE, NEARLY = 2, 1.3  # plans that only `tune` tries: so many, and predicted to take at most so many times as long
SECONDS = 8.0  # of this thread; no further plans are made after that

P = TypeVar("P", bound=PlanSummary, covariant=True)


@dataclass(frozen=True)
class Plans(Generic[P]):
    """Plans of one program over one builder, the first made for `workload`, and where each is used.

    Some are used nowhere by prediction: `tune` tries them, too.

    Attributes:
        original: the number of the plan that is the original, operator by operator; None in an older file.
        otherwise: the number of the plan for calls for which the condition of another does not hold; None where none
            has a condition.
        predicted: where each is used by prediction, if `ranges` were measured.
        target: the name of what `ranges` are for.
        elsewhere: where each is used on other targets, by name.
    """

    plans: tuple[P, ...]
    ranges: Ranges
    original: int | None = None
    predicted: Ranges | None = None
    target: str = CPU.name
    elsewhere: Mapping[str, Ranges] = field(default_factory=dict)
    otherwise: int | None = None

    @property
    def main(self) -> P:
        """The plan for the workload asked for."""
        return self.plans[0]

    def at(self, candidates: int | None, requests: int) -> Way:
        """What scores a call; None stands for as many candidates per request as it was made for."""
        made_for = self.main.workload
        expected = made_for.candidates * requests // made_for.requests if candidates is None else candidates
        return self.ranges.at(expected, requests)

    def absent(self, device: torch.device) -> list[str]:
        """The backends that score some calls, and that this machine lacks."""
        return sorted(backend for backend in {way.backend for way in self.ranges.ways} if not here(backend, device))

    def without(self, backends: Collection[str]) -> Plans[P]:
        """The same, but what one of `backends` won is scored as was predicted."""
        otherwise = self.predicted or self.ranges.on("")
        return replace(self, ranges=self.ranges.without(backends, otherwise)) if backends else self

    def for_all(self, plan: int) -> int:
        """The plan for calls for which the condition of a plan does not hold."""
        assert self.otherwise is not None, f"plan {plan} has a condition, and so there is one without"
        return self.otherwise

    def fits(self, plan: int, candidates: int, requests: int) -> bool:
        """Whether a plan scores such calls: by their size, or because the condition of another did not hold."""
        return plan in (self.ranges.choose(candidates, requests), self.otherwise)

    def one_per_plan(self, requests: int) -> list[int]:
        """A number of candidates for every plan that so many requests use: 2 or more if it can be, one is special."""
        row = self.ranges.row(requests)
        last = [*(r.first - 1 for r in row[1:]), max(row[-1].first, 2)]
        counts = {r.way: min(max(r.first, 2), end) for r, end in zip(row, last, strict=True)}
        usual = self.main.workload.candidates
        there = self.ranges.at(usual, requests)
        return list((counts | {there: usual}).values())

    def __str__(self) -> str:
        """Break-even points: how many candidates are scored by the plan of which level."""
        lines = []
        for requests, row in zip(self.ranges.requests, self.ranges.candidates, strict=True):
            names = [f"{first or 1}+: {self.plans[way.plan].level.name.lower()} ({way})" for first, way in row]
            lines.append(f"{requests} request{'s' * (requests > 1)}, candidates " + ", ".join(names))
        if self.otherwise is not None:
            level = self.plans[self.otherwise].level.name.lower()
            lines.append(f"where the condition of a plan does not hold: {level} (plan {self.otherwise})")
        return "\n".join(lines)


def make_plans(
    program: Program, level: Level, workload: Workload, target: Target | None = None,
    without: frozenset[str] = frozenset(), others: Sequence[Target] = (), builder: Builder | None = None,
    near: Collection[frozenset[str]] = (),
) -> Plans[Plan]:  # fmt: skip
    """The plan for `workload`, and at `full` others where they are predicted to be faster by a few percent; also those
    of `others`, where the model may go. They are made in `builder`, if yet other plans share their weights stage.
    `near`: see `search`.
    """
    builder = builder or Builder(program.device)
    targets = [target or this_machine(), *others]
    found = {t.name: _of_target(program, level, workload, t, without, builder, near) for t in targets}
    plans: list[Plan] = []
    ranges = {name: own.numbered([_placed(plan, plans) for plan in made]) for name, (made, own) in found.items()}
    name = targets[0].name
    otherwise = None
    if any(plan.conditional for plan in plans):
        unconditional = choice(level, search(program, level, workload, targets[0], without | CONDITIONAL))
        if unconditional.cost.seconds <= ALIKE * plans[0].cost.seconds:
            return make_plans(program, level, workload, target, without | CONDITIONAL, others, builder, near)
        otherwise = _placed(settled(program, unconditional, builder), plans)
    return with_original(plans, ranges.pop(name), name, ranges, otherwise)


def _of_target(
    program: Program, level: Level, workload: Workload, target: Target, without: frozenset[str], builder: Builder,
    near: Collection[frozenset[str]],
) -> tuple[list[Plan], Ranges]:  # fmt: skip
    """The plans for one target, the one for the workload first, and where each is used."""
    deadline = time.thread_time() + SECONDS
    found = search(program, level, workload, target, without, near)
    main = choice(level, found)
    if level is not Level.FULL:
        return [explained(level, settled(program, main, builder), found[-1])], EVERYWHERE
    pool = [main, *(p for p in found if p is not main)]
    for count, evaluated in (*((n, found[-1].evaluated) for n in ELSEWHERE), (max(ELSEWHERE), frozenset())):
        if time.thread_time() < deadline and not _near(count, workload):
            other = replace(workload, candidates=count)
            plan = affordable(program, level, other, evaluated, None, target, without)
            pool += [] if plan is None else [plan]
    times = _predicted(pool, target)
    if workload.stored:
        pool = _in_one_store(pool, _used(_chosen(pool, times, target.doubt)))
        times = _predicted(pool, target)
    chosen = _chosen(pool, times, target.doubt)
    used = _used(chosen)
    as_they_are = [i for i, plan in enumerate(pool) if plan.level is Level.EXPAND]  # the original is kept anyhow
    spare = [] if workload.stored else _spare(times, [*used, *as_they_are])[:SPARE]
    plans = [settled(program, pool[i], builder) for i in [*used, *spare]]
    for limits in target.tried if not workload.stored else ():
        padded = replace(target, limits=limits)
        plans.append(attempt(program, main.level, workload, main.evaluated, Memo(builder), padded, without))
    rows = [_joined([used.index(i) for i in row]) for row in chosen]
    return [explained(level, plans[0], found[-1]), *plans[1:]], Ranges(tuple(REQUESTS), tuple(rows))


def _placed(plan: Plan, plans: list[Plan]) -> int:
    """The number of a plan among all, where it is put unless one computes the same by the same operators."""
    for i, other in enumerate(plans):
        if _results(plan) == _results(other):
            return i
    plans.append(plan)
    return len(plans) - 1


def single(plan: Plan) -> Plans[Plan]:
    """One plan for every call; the original beside it where it holds on a condition."""
    if plan.conditional:
        return Plans((plan, as_it_is(plan)), EVERYWHERE, 1, None, plan.target.name, otherwise=1)
    return Plans((plan,), EVERYWHERE, 0 if plan.safe else None, None, plan.target.name)


def with_original(
    plans: list[Plan], ranges: Ranges, target: str, elsewhere: dict[str, Ranges], otherwise: int | None = None
) -> Plans[Plan]:
    """Beside these plans the original as it is, unless it is one of them; for items with a store, there is none."""
    original = None if plans[0].workload.stored else _placed(as_it_is(plans[0]), plans)
    return Plans(tuple(plans), ranges, original, None, target, elsewhere, otherwise)


def _predicted(pool: Sequence[Plan], target: Target) -> Any:
    """Seconds by requests, plan and candidates."""
    requests, candidates = (x.ravel() for x in np.meshgrid(REQUESTS, np.asarray(CANDIDATES, float), indexing="ij"))
    known: dict[Any, Any] = {}
    times = [target.predicted(p.per_call, p.results, candidates, requests, known) for p in pool]
    return np.stack(times).reshape(len(pool), len(REQUESTS), len(CANDIDATES)).swapaxes(0, 1)


def _spare(times: Any, used: Sequence[int]) -> list[int]:
    """Plans that are not `used` and somewhere are predicted to be nearly as fast as the fastest, the nearest first.

    Of those that take the same everywhere, and so do the same, one is enough.
    """
    nearest = (times / times.min(1, keepdims=True))[:, :, len(CANDIDATES) // 4 :].min((0, 2))
    found: list[int] = []
    for i in np.argsort(nearest, kind="stable").tolist():
        if nearest[i] < NEARLY and not any(np.array_equal(times[:, i], times[:, j]) for j in (*used, *found)):
            found.append(i)
    return found


def _results(plan: Plan) -> list[Any]:
    """The numbers of its results' nodes, which over one builder say how they are computed."""
    return [o.index if isinstance(o, Node) else o for o in plan.results]


def _chosen(pool: Sequence[Plan], times: Any, doubt: float) -> list[list[int]]:
    """Number of the plan, by requests and candidates, among those that are as fast as the fastest.

    Near the workload that is the first plan, elsewhere the simplest: what is predicted alike and does less that is new
    is the safer choice. The original is the safest: none is chosen that is not `doubt` times as fast.
    """
    original = next((i for i, plan in enumerate(pool) if plan.level is Level.EXPAND), None)
    simplest = sorted(range(len(pool)), key=lambda i: (_simplicity(pool[i].level), i))
    main_first = [0, *(i for i in simplest if i != 0)]
    orders = [main_first if _near(count, pool[0].workload) else simplest for count in CANDIDATES]
    result = []
    for of_requests in times:
        fast = of_requests <= ALIKE * of_requests.min(0)
        if original is not None and doubt > 1:
            as_it_is = of_requests[original] < doubt * of_requests.min(0)
            fast[:, as_it_is] = False
            fast[original, as_it_is] = True
        result.append([next(i for i in order if fast[i, at]) for at, order in enumerate(orders)])
    return result


def _used(chosen: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of the plans that score some call, and of the first."""
    return sorted({0, *(i for row in chosen for i in row)})


def _in_one_store(pool: Sequence[Plan], wanted: Sequence[int]) -> list[Plan]:
    """Those of the plans that are wanted which read one store together: it holds of an item what it may at most."""
    plans: list[Plan] = []
    held = 0
    for plan in (pool[i] for i in wanted):
        size = bytes_of(plan.stored)
        if not plans or held + size <= (plan.workload.item_bytes or 0):
            plans.append(plan)
            held += size
    return plans


def _simplicity(level: Level) -> tuple[bool, Level]:
    """The smaller, the nearer to what the author wrote with context work done once."""
    return level < Level.REQUEST, level


def _near(candidates: int, workload: Workload) -> bool:
    return 0.3 < candidates / workload.candidates < 3


def _joined(row: Sequence[int]) -> tuple[Range, ...]:
    """Runs of equal numbers, each from the middle between the two counts where the number changes."""
    ranges = [Range(0, Way(row[0]))]
    for (low, a), (high, b) in itertools.pairwise(zip(CANDIDATES, row, strict=True)):
        if a != b:
            ranges.append(Range(round((low * high) ** 0.5 + 0.5), Way(b)))
    return tuple(ranges)
