"""The search over plans: which captured operators keep their result as a form (push), and which evaluate it.

A level below `full` leaves no choice: it is a baseline, and takes the plan of a lower level only where that does fewer
multiply-adds. At `full`, every plan of a lower level is among the candidates and predicted time decides; a local rule
would not do (see the design: the best choice depends on N and on all layers).
"""

from __future__ import annotations

import collections
import itertools
import math
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.algebra.interpret import Interpreter, OverBudget
from rankhoist.compiler.algebra.memo import Memo, identity
from rankhoist.compiler.algebra.text import graph_text
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.demand import narrowed
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, live_nodes
from rankhoist.compiler.lower.lean import lean
from rankhoist.compiler.lower.own import owned
from rankhoist.compiler.plan.cut import cut, penalty, stored
from rankhoist.compiler.plan.watch import watch
from rankhoist.compiler.rules import all_rules, rules_without
from rankhoist.compiler.targets import ALIKE, Target, this_machine
from rankhoist.errors import HoistingWarning

SECONDS = 15.0  # of this thread, whatever else the machine does: the search stops here with the best plan so far
ATTEMPT = 5.0  # seconds that one attempt may take: it is given up, and the search goes on without it


@dataclass(frozen=True)
class Cost:
    """Work of one call of the workload, both stages: multiply-adds, elements written, and predicted seconds."""

    multiply_adds: int
    elements: int
    seconds: float


@dataclass(frozen=True)
class PlanSummary:
    """A plan in numbers, which is all that is left of it in a file.

    `level` is that of the plan, which may be lower than the one that was `asked` for.
    """

    level: Level
    asked: Level
    workload: Workload
    cost: Cost


@dataclass(frozen=True)
class Plan(PlanSummary):
    """An interpreted program: its outputs as nodes, what it costs, and the operators whose forms are evaluated.

    `target` is what it was made for.
    `reasons` says, per captured operator, why no rule applied at the level asked for, or its form was not kept. A
    `safe` plan is in the place of one that could not be made; laws in `without` were switched off.
    `condition` says of a request whether the plan holds, `[R]`, and `check` of a row, `[N]`: another scores those for
    which it does not. None: it holds for all.
    """

    interpreter: Interpreter
    outputs: list[Any]
    evaluated: frozenset[str]
    target: Target
    reasons: dict[str, str] = field(default_factory=dict)
    safe: bool = False
    without: frozenset[str] = frozenset()
    condition: Node | None = None
    check: Node | None = None

    @property
    def results(self) -> list[Any]:
        """Its outputs, then on what it holds."""
        return [*self.outputs, *(n for n in (self.condition, self.check) if n is not None)]

    @property
    def conditional(self) -> bool:
        """Whether there are calls that it must not score."""
        return self.condition is not None or self.check is not None

    @property
    def nodes(self) -> list[Node]:
        """Everything it computes, operands first."""
        return live_nodes([o for o in self.results if isinstance(o, Node)])

    @property
    def per_call(self) -> list[Node]:
        """The part of it that calls compute; what is made once per item of a store is left out."""
        return [n for n in self.nodes if n.rate is Rate.WEIGHT or not self.workload.before(n.rate)]

    @property
    def stored(self) -> list[Node]:
        """What a store holds of an item for it."""
        return stored(self.outputs)

    def __str__(self) -> str:
        return graph_text(self.nodes)


def make_plan(
    program: Program, level: Level, workload: Workload, target: Target | None = None,
    without: frozenset[str] = frozenset(),
) -> Plan:  # fmt: skip
    """The plan for `workload`: the fastest by prediction, below `full` the one with the fewest multiply-adds."""
    found = search(program, level, workload, target or this_machine(), without)
    return explained(level, settled(program, choice(level, found), Builder(program.device)), found[-1])


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


def settled(program: Program, plan: Plan, builder: Builder) -> Plan:
    """The plan once more, without what the search left in its builder."""
    again = attempt(program, plan.level, plan.workload, plan.evaluated, Memo(builder), plan.target, plan.without)
    return replace(again, cost=plan.cost)


def explained(level: Level, plan: Plan, told: Plan) -> Plan:
    """The plan with the level asked for, and why rules declined there: in `told` where the plan is of a lower level."""
    return replace(plan, reasons=(plan if plan.level is level else told).reasons, asked=level)


def search(
    program: Program, level: Level, workload: Workload, target: Target, without: frozenset[str] = frozenset(),
    near: Collection[frozenset[str]] = (),
) -> list[Plan]:  # fmt: skip
    """All plans worth comparing for `workload`: of every lower level, and at `full` the best that was found, last.

    `near` are choices that were best for a workload like it: what is evaluated there.
    """
    memo = Memo(Builder(program.device))
    plain = attempt(program, Level.EXPAND, workload, frozenset(), memo, target, without)
    found = []
    for lower in (x for x in Level if Level.EXPAND < x <= min(level, Level.FIRST)):
        watch().told(f"{len(operators_of(program)):,} operators, level {lower.name.lower()}")
        found.append(affordable(program, lower, workload, frozenset(), memo, target, without))
    if level is Level.FULL:
        found.append(_improved(program, workload, memo, target, without, near))
    made = [plan for plan in found if plan is not None]
    if found and not made and math.isinf(watch().seconds):
        warnings.warn(
            f"every attempt at a plan took more than {ATTEMPT:g} s and was given up: the model runs as it was, all of "
            "it once per candidate. That is a mistake of ours; please report it",
            HoistingWarning,
            stacklevel=2,
        )
    return [plain, *made]


def _improved(
    program: Program, workload: Workload, memo: Memo, target: Target, without: frozenset[str],
    near: Collection[frozenset[str]],
) -> Plan | None:  # fmt: skip
    """From what is `near`, "keep all" and "evaluate all", flip like operators together, then single ones, if it helps.

    Its reasons are those of "keep all"; None where both are too dear.
    """
    program = narrowed(program)
    operators, trials = operators_of(program), itertools.count(1)

    def tried(evaluated: frozenset[str]) -> list[Plan]:
        plan = affordable(program, Level.FULL, workload, evaluated, memo, target, without)
        return [] if plan is None else [plan]

    starts = [*tried(frozenset()), *tried(operators)]
    if not starts:
        return None
    others = [plan for evaluated in near for plan in tried(evaluated)]
    deadline = time.thread_time() + min(SECONDS, watch().left)

    def climb(current: Plan, moves: Iterable[frozenset[str]]) -> Plan:
        for names in moves:
            if names.isdisjoint(current.interpreter.choices):
                continue  # it would be the same plan
            if time.thread_time() < deadline:
                watch().told(
                    f"plan {next(trials)}; the best so far takes {current.cost.seconds * 1e3:.3g} ms by prediction"
                )
                current = best([current, *tried(current.evaluated ^ names)])
        return current

    shares = _shares(starts, memo)
    choices = frozenset[str]().union(*(plan.interpreter.choices for plan in [*starts, *others]))
    groups = _like_operators(program, choices)
    groups.sort(key=lambda group: -sum(shares[name] for name in group))  # what decides most goes first
    found = best([climb(start, groups) for start in [*others, *starts]])
    singles = [frozenset({name}) for group in groups if len(group) > 1 for name in sorted(group)]
    return replace(climb(found, singles), reasons=starts[0].reasons)


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


def attempt(
    program: Program, level: Level, workload: Workload, evaluated: frozenset[str], memo: Memo | None = None,
    target: Target | None = None, without: frozenset[str] = frozenset(), seconds: float = math.inf,
) -> Plan:  # fmt: skip
    """Interpret the program with one set of choices, and count; see `Interpreter.run` for `seconds`."""
    program = narrowed(program) if level is Level.FULL else program.captured
    target = target or this_machine()
    laws = rules_without(without) if without else all_rules()
    interpreter = Interpreter(program, level, workload, laws, lambda n: n.name not in evaluated, memo)
    results = interpreter.run(seconds)
    conditions = [interpreter.condition(late) for late in (False, True)]
    known, key = interpreter.memo.lowered, (level, identity(results), identity(conditions))
    if key not in known:
        known[key] = _lowered(interpreter, results, conditions, target)
    outputs, conditions, cost = known[key]
    reasons = {n: o.reason for n, o in interpreter.outcomes.items() if o.reason}
    return Plan(
        level, level, workload, cost, interpreter, outputs, evaluated, target, reasons, False, without, *conditions
    )  # fmt: skip


def _lowered(
    interpreter: Interpreter, results: Sequence[Any], conditions: Sequence[Any], target: Target
) -> tuple[list[Any], list[Any], Cost]:  # fmt: skip
    """Results and conditions as they are run, and what that costs."""
    b, workload, count = interpreter.b, interpreter.workload, len(results)
    outputs = [*results, *conditions]
    if workload.stored:
        outputs = cut(b, outputs, workload, target, interpreter.memo.cuts)
    outputs = lean(b, outputs, target.limits, reordered=interpreter.level is Level.FULL)
    outputs[:count] = owned(b, outputs[:count], interpreter.program.outputs)
    cost = total_cost(outputs, workload, interpreter.memo.seconds, target)
    if workload.stored:
        cost = replace(cost, seconds=cost.seconds + penalty(outputs, workload))
    return outputs[:count], outputs[count:], cost


def affordable(
    program: Program, level: Level, workload: Workload, evaluated: frozenset[str], memo: Memo | None, target: Target,
    without: frozenset[str] = frozenset(),
) -> Plan | None:  # fmt: skip
    """An attempt, or None where it takes too long. What the memo has learned stays right: it ends between operators."""
    try:
        return attempt(program, level, workload, evaluated, memo, target, without, min(ATTEMPT, watch().left))
    except OverBudget:
        return None


def total_cost(outputs: Sequence[Any], workload: Workload, known: dict[Any, float], target: Target) -> Cost:
    """Work of everything that `outputs` need; `known` remembers the seconds of nodes that are alike."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    alike = target.timed(nodes, outputs, workload.candidates, workload.requests, known)
    own = [(n, key) for n, key in zip(nodes, alike, strict=True) if not workload.before(n.rate)]
    taken = sum((float(known[key]) for _, key in own), start=target.start(target.profile))
    return counted([n for n, _ in own], workload, taken)


def counted(nodes: Iterable[Node], workload: Workload, seconds: float) -> Cost:
    """Work of these nodes in one call."""
    work = [(n.work, workload.of(n.rate)) for n in nodes]
    return Cost(sum(w.multiply_adds * rows for w, rows in work), sum(w.elements * rows for w, rows in work), seconds)
