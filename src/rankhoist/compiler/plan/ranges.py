"""Plans for ranges of candidates and requests: no plan is the fastest for one candidate and for five thousand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node
from rankhoist.compiler.plan.attempt import Settled
from rankhoist.compiler.plan.choice import EVERYWHERE, Range, Ranges, Way
from rankhoist.compiler.plan.cut import bytes_of
from rankhoist.compiler.plan.plan import Plan
from rankhoist.compiler.plan.plans import Plans
from rankhoist.compiler.plan.safe import as_it_is
from rankhoist.compiler.plan.search import affordable, choice, explained, search
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.rules import CONDITIONAL
from rankhoist.compiler.targets import ALIKE, Target

CANDIDATES = sorted({round(10 ** (i / 8)) for i in range(41)})  # 1 .. 100 000
REQUESTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
ELSEWHERE = [100, 10_000]  # candidates for which the search's result is ordered anew, and what keeps every form
SPARE, NEARLY = 2, 1.3  # plans that only `tune` tries: so many, and predicted to take at most so many times as long
SECONDS = 8.0  # of this thread; no further plans are made after that


def make_plans(
    task: Task, others: Sequence[Target] = (), builder: Builder | None = None, near: Collection[frozenset[str]] = ()
) -> Plans[Plan]:
    """The plan for a task, and at `full` others where they are predicted to be faster by a few percent; also those of
    `others`, where the model may go. They are made in `builder`, if yet other plans share their weights stage.
    `near`: see `search`.
    """
    builder = builder or Builder(task.program.device)
    found = {t.name: _of_target(replace(task, target=t), builder, near) for t in (task.target, *others)}
    plans: list[Plan] = []
    ranges = {name: own.numbered([_placed(plan, plans) for plan in made]) for name, (made, own) in found.items()}
    otherwise = None
    if any(plan.conditional for plan in plans):
        always = replace(task, without=task.without | CONDITIONAL)
        unconditional = choice(task.level, search(always))
        if unconditional.cost.seconds <= ALIKE * plans[0].cost.seconds:
            return make_plans(always, others, builder, near)
        otherwise = _placed(Settled(builder)(unconditional), plans)
    original = None if task.workload.stored else _placed(as_it_is(plans[0]), plans)
    name = task.target.name
    return Plans(tuple(plans), ranges.pop(name), original, None, name, ranges, otherwise)


def _of_target(task: Task, builder: Builder, near: Collection[frozenset[str]]) -> tuple[list[Plan], Ranges]:
    """The plans for one target, the one for the workload first, and where each is used."""
    deadline = time.thread_time() + SECONDS
    found, settled = search(task, near), Settled(builder)
    target, stored = task.target, task.workload.stored
    main = choice(task.level, found)
    if task.level is not Level.FULL:
        return [explained(task.level, settled(main), found[-1])], EVERYWHERE
    pool = [main, *(p for p in found if p is not main), *_for_elsewhere(task, found[-1].evaluated, deadline)]
    times = _predicted(pool, target)
    if stored:
        pool = _in_one_store(pool, _used(_chosen(pool, times, target.doubt)))
        times = _predicted(pool, target)
    chosen = _chosen(pool, times, target.doubt)
    used = _used(chosen)
    plans = [settled(pool[i]) for i in used]
    if not stored:  # what `tune` tries
        originals = [i for i, plan in enumerate(pool) if plan.level is Level.EXPAND]  # one is kept anyhow
        spare = _spare(times, [*used, *originals])[:SPARE]
        simplest = min(plans, key=lambda plan: _simplicity(plan.level))
        few = [main] if simplest is plans[0] else [main, simplest]
        plans += [*(settled(pool[i]) for i in spare)]
        plans += [settled.limited(plan, limits) for plan in few for limits in plan.target.tried]
    rows = [_joined([used.index(i) for i in row]) for row in chosen]
    return [explained(task.level, plans[0], found[-1]), *plans[1:]], Ranges(tuple(REQUESTS), tuple(rows))


def _for_elsewhere(task: Task, evaluated: frozenset[str], deadline: float) -> list[Plan]:
    """Plans for other numbers of candidates: the choices of the search, and where there are many, every form kept."""
    plans = []
    for count, own in (*((n, evaluated) for n in ELSEWHERE), (max(ELSEWHERE), frozenset[str]())):
        if time.thread_time() < deadline and not _near(count, task.workload):
            plans.append(affordable(replace(task, workload=replace(task.workload, candidates=count)), own))
    return [plan for plan in plans if plan is not None]


def _placed(plan: Plan, plans: list[Plan]) -> int:
    """The number of a plan among all, where it is put unless one computes the same by the same operators."""
    for i, other in enumerate(plans):
        if _results(plan) == _results(other):
            return i
    plans.append(plan)
    return len(plans) - 1


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
