"""The search over plans: which captured operators keep their result as a form (push), and which evaluate it.

A level below `full` leaves no choice: it is a baseline, and takes the plan of a lower level only where that does fewer
multiply-adds. At `full`, every plan of a lower level is among the candidates and predicted time decides; a local rule
would not do (see the design: the best choice depends on N and on all layers).
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Builder, Node, live_nodes
from rankhoist.compiler.algebra.lean import lean
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.over import overwritten
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.rules import all_rules, lookups
from rankhoist.compiler.targets import ALIKE, Target, this_machine

SECONDS = 15.0  # of this thread, whatever else the machine does: the search stops here with the best plan so far


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
    `reasons` says, per captured operator, why no rule applied at the level asked for.
    """

    interpreter: Interpreter
    outputs: list[Any]
    evaluated: frozenset[str]
    target: Target
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        """Everything it computes, operands first."""
        return live_nodes([o for o in self.outputs if isinstance(o, Node)])


def make_plan(program: Program, level: Level, workload: Workload, target: Target | None = None) -> Plan:
    """The plan for `workload`: the fastest by prediction, below `full` the one with the fewest multiply-adds."""
    found = choice(level, search(program, level, workload, target or this_machine()))
    return explained(program, level, settled(program, found, Builder(program.device)))


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


def settled(program: Program, plan: Plan, b: Builder) -> Plan:
    """The plan once more, without what the search left in its builder."""
    again = attempt(program, plan.level, plan.workload, plan.evaluated, Memo(b), plan.target)
    return replace(again, cost=plan.cost)


def explained(program: Program, level: Level, plan: Plan) -> Plan:
    """The plan with the level asked for, and why rules declined at that level."""
    told = plan if plan.level is level else attempt(program, level, plan.workload, frozenset(), target=plan.target)
    reasons = {n: o.reason for n, o in told.interpreter.outcomes.items() if o.reason}
    return replace(plan, reasons=reasons, asked=level)


def search(program: Program, level: Level, workload: Workload, target: Target) -> list[Plan]:
    """All plans worth comparing for `workload`: of every lower level, and at `full` the best that was found."""
    memo = Memo(Builder(program.device))
    levels = [x for x in Level if x <= min(level, Level.FIRST)]
    lower = [attempt(program, x, workload, frozenset(), memo, target) for x in levels]
    return [*lower, _improved(program, workload, memo, target)] if level is Level.FULL else lower


def _improved(program: Program, workload: Workload, memo: Memo, target: Target) -> Plan:
    """From "keep all" and "evaluate all", flip like operators together, then single ones, while it helps."""
    operators = frozenset(n.name for n in program.graph.nodes if n.op == "call_function")

    def tried(evaluated: frozenset[str]) -> Plan:
        return attempt(program, Level.FULL, workload, evaluated, memo, target)

    kept, evaluated = tried(frozenset()), tried(operators)
    deadline = time.thread_time() + SECONDS

    def climb(current: Plan, moves: Iterable[frozenset[str]]) -> Plan:
        for names in moves:
            if time.thread_time() < deadline:
                current = best([current, tried(current.evaluated ^ names)])
        return current

    shares = _shares([kept, evaluated], memo)
    groups = _like_operators(program, memo.kept_forms)
    groups.sort(key=lambda group: -sum(shares[name] for name in group))  # what decides most goes first
    found = best([climb(kept, groups), climb(evaluated, groups)])
    return climb(found, [frozenset({name}) for group in groups if len(group) > 1 for name in sorted(group)])


def _shares(plans: Sequence[Plan], memo: Memo) -> collections.Counter[str]:
    """Predicted seconds by captured operator, over all plans."""
    found: collections.Counter[str] = collections.Counter()
    for plan in plans:
        over = overwritten(plan.nodes, plan.outputs)
        for n in plan.nodes:
            found[n.source] += memo.seconds[plan.target.kind(n), n.index in over]  # type: ignore[assignment]
    return found


def _like_operators(program: Program, names: set[str]) -> list[frozenset[str]]:
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
    target: Target | None = None,
) -> Plan:  # fmt: skip
    """Interpret the program with one set of choices, and count."""
    target = target or this_machine()
    interpreter = Interpreter(program, level, workload, all_rules(), lookups(), lambda n: n.name not in evaluated, memo)
    outputs = lean(interpreter.b, interpreter.run(), target.limits)
    cost = total_cost(outputs, workload, interpreter.memo.seconds, target)
    return Plan(level, level, workload, cost, interpreter, outputs, evaluated, target)


def total_cost(outputs: Sequence[Any], workload: Workload, known: dict[Any, float], target: Target) -> Cost:
    """Work of everything that `outputs` need; `known` remembers the seconds of nodes that are alike."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    over = overwritten(nodes, outputs)
    taken = target.start(target.profile)
    for n in nodes:
        alike = (target.kind(n), n.index in over)
        if alike not in known:
            each = target.seconds(n, target.profile, workload.candidates, workload.requests, over=alike[1])
            known[alike] = float(each)
        taken += known[alike]
    return Cost(
        sum(n.work.multiply_adds * workload.of(n.rate) for n in nodes),
        sum(n.work.elements * workload.of(n.rate) for n in nodes),
        taken,
    )
