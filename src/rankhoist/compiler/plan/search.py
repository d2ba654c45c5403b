"""The search over plans: which captured operators keep their result as a form (push), and which evaluate it.

A level below `full` leaves no choice: it is a baseline, and takes the plan of a lower level only where that does fewer
multiply-adds. At `full`, every plan of a lower level is among the candidates and predicted time decides; a local rule
would not do (see the design: the best choice depends on N and on all layers).
"""

from __future__ import annotations

import collections
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.algebra.interpret import OverBudget
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.plan.attempt import Settled, attempt
from rankhoist.compiler.plan.plan import Plan
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.plan.watch import watch
from rankhoist.compiler.targets import ALIKE
from rankhoist.errors import HoistingWarning

SECONDS = 15.0  # of this thread, whatever else the machine does: the search stops here with the best plan so far
ATTEMPT = 5.0  # seconds that one attempt may take: it is given up, and the search goes on without it


def make_plan(task: Task) -> Plan:
    """The plan for a task: the fastest by prediction, below `full` the one with the fewest multiply-adds."""
    found = search(task)
    return explained(task.level, Settled(Builder(task.program.device))(choice(task.level, found)), found[-1])


def choice(level: Level, plans: Sequence[Plan]) -> Plan:
    """What a level takes of the plans that it may use."""
    if level is Level.FULL:
        return best(plans)
    return min(plans, key=lambda p: (p.cost.multiply_adds, p.cost.multiply_adds + p.cost.elements, -p.level))


def best(plans: Iterable[Plan]) -> Plan:
    """The fastest; among those that are as fast, the one with the fewest multiply-adds, then of the lowest level."""
    pool = list(plans)
    limit = ALIKE * min(p.cost.seconds for p in pool)
    fast = [p for p in pool if p.cost.seconds <= limit]
    return min(fast, key=lambda p: (p.cost.multiply_adds, p.cost.seconds, p.level))


def explained(level: Level, plan: Plan, told: Plan) -> Plan:
    """The plan with the level asked for, and why rules declined there: in `told` where the plan is of a lower level."""
    return replace(plan, reasons=(plan if plan.level is level else told).reasons, asked=level)


def search(task: Task, near: Collection[frozenset[str]] = ()) -> list[Plan]:
    """All plans worth comparing: of every lower level, and at `full` the best that was found, last.

    `near` are choices that were best for a task like it: what is evaluated there.
    """
    memo = Memo(Builder(task.program.device))
    plain = attempt(replace(task, level=Level.EXPAND), memo=memo)
    found = []
    for lower in (x for x in Level if Level.EXPAND < x <= min(task.level, Level.FIRST)):
        watch().told(f"{len(operators_of(task.program)):,} operators, level {lower.name.lower()}")
        found.append(affordable(replace(task, level=lower), memo=memo))
    if task.level is Level.FULL:
        found.append(_improved(task, memo, near))
    made = [plan for plan in found if plan is not None]
    if found and not made and math.isinf(watch().seconds):
        warnings.warn(
            f"every attempt at a plan took more than {ATTEMPT:g} s and was given up: the model runs as it was, all of "
            "it once per candidate. That is a mistake of ours; please report it",
            HoistingWarning,
            stacklevel=2,
        )
    return [plain, *made]


def _improved(task: Task, memo: Memo, near: Collection[frozenset[str]]) -> Plan | None:
    """From what is `near`, "keep all" and "evaluate all", flip like operators together, then single ones, if it helps.

    Its reasons are those of "keep all"; None where both are too dear.
    """

    def tried(evaluated: frozenset[str]) -> list[Plan]:
        plan = affordable(task, evaluated, memo)
        return [] if plan is None else [plan]

    starts = [*tried(frozenset()), *tried(operators_of(task.interpreted))]
    if not starts:
        return None
    others = [plan for evaluated in near for plan in tried(evaluated)]
    climb, shares = _Climb(tried), _shares(starts, memo)
    choices = frozenset[str]().union(*(plan.interpreter.choices for plan in [*starts, *others]))
    groups = _like_operators(task.interpreted, choices)
    groups.sort(key=lambda group: -sum(shares[name] for name in group))  # what decides most goes first
    found = best([climb(start, groups) for start in [*others, *starts]])
    singles = [frozenset({name}) for group in groups if len(group) > 1 for name in sorted(group)]
    return replace(climb(found, singles), reasons=starts[0].reasons)


class _Climb:
    """Goes on from plans, as long as there is time, by choices that make them better."""

    def __init__(self, tried: Callable[[frozenset[str]], list[Plan]]) -> None:
        self._tried, self._trials = tried, 0
        self._deadline = time.thread_time() + min(SECONDS, watch().left)

    def __call__(self, plan: Plan, moves: Iterable[frozenset[str]]) -> Plan:
        """The best that is found where the choices for some operators at a time are turned round."""
        for names in moves:
            if names.isdisjoint(plan.interpreter.choices):
                continue  # it would be the same plan
            if time.thread_time() < self._deadline:
                self._trials += 1
                so_far = f"the best so far takes {plan.cost.seconds * 1e3:.3g} ms by prediction"
                watch().told(f"plan {self._trials}; {so_far}")
                plan = best([plan, *self._tried(plan.evaluated ^ names)])
        return plan


def affordable(task: Task, evaluated: frozenset[str] = frozenset(), memo: Memo | None = None) -> Plan | None:
    """An attempt, or None where it takes too long. What the memo has learned stays right: it ends between operators."""
    try:
        return attempt(task, evaluated, memo, min(ATTEMPT, watch().left))
    except OverBudget:
        return None


def operators_of(program: Program) -> frozenset[str]:
    """The names of the captured operators."""
    return frozenset(n.name for n in program.graph.nodes if n.op == "call_function")


def _shares(plans: Sequence[Plan], memo: Memo) -> collections.Counter[str]:
    """Predicted seconds by captured operator, over all plans."""
    found: collections.Counter[str] = collections.Counter()
    for plan in plans:
        calls = plan.workload.candidates, plan.workload.requests
        nodes, alike = plan.nodes, plan.target.timed(plan.nodes, plan.results, *calls, memo.seconds)
        for n, key in zip(nodes, alike, strict=True):
            if not plan.workload.before(n.rate):
                found[n.source] += float(memo.seconds[key])  # type: ignore[assignment]
    return found


def _like_operators(program: Program, names: Collection[str]) -> list[frozenset[str]]:
    """Operators to choose for together: the same operator with results of the same sizes, in graph order."""
    groups: dict[Any, list[str]] = {}
    for node in program.graph.nodes:
        if node.name in names:
            sizes = str([getattr(f, "shape", None) for f in _results(node)])
            groups.setdefault((node.target, sizes), []).append(node.name)
    return [frozenset(group) for group in groups.values()]


def _results(node: fx.Node) -> list[Any]:
    meta = node.meta.get("val")
    return list(meta) if isinstance(meta, list | tuple) else [meta]
