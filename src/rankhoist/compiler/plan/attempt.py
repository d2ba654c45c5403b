"""One plan, for one set of choices: the program is interpreted, what that makes is lowered, and the work is counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.memo import Memo, identity
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.lower.lean import lean
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.lower.own import owned
from rankhoist.compiler.plan.cut import cut, penalty
from rankhoist.compiler.plan.plan import Cost, Plan
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.targets import Target


def attempt(
    task: Task, evaluated: frozenset[str] = frozenset(), memo: Memo | None = None, seconds: float = math.inf
) -> Plan:
    """The plan that evaluates the forms of these captured operators, and keeps those of all others.

    Raises:
        OverBudget: to interpret it takes more than `seconds` of this thread.
    """
    interpreter = Interpreter(
        task.interpreted, task.level, task.workload, task.laws, lambda n: n.name not in evaluated, memo
    )
    results = interpreter.run(seconds)
    conditions = [interpreter.condition(late) for late in (False, True)]
    known, how = interpreter.memo.lowered, (task.level, task.target.limits)
    key = how, identity(results), identity(conditions)
    if key not in known:
        known[key] = _lowered(interpreter, results, conditions, task.target)
    outputs, conditions, cost = known[key]
    reasons = {n: o.reason for n, o in interpreter.outcomes.items() if o.reason}
    return Plan(
        task.level, task.level, task.workload, cost, interpreter, outputs, evaluated, task.target, reasons, False,
        task.without, *conditions,
    )  # fmt: skip


class Settled:
    """Plans of one target once more, without what the search left in its builder.

    Those for one workload share what they do alike, but where data decides sizes: each plan measures them by itself.
    """

    def __init__(self, builder: Builder) -> None:
        self._b, self._memos = builder, dict[Workload, Memo]()

    def __call__(self, plan: Plan) -> Plan:
        return replace(self.limited(plan, plan.target.limits), cost=plan.cost)

    def limited(self, plan: Plan, limits: Limits) -> Plan:
        """The same choices under other limits."""
        memo = self._memos.get(plan.workload)
        if memo is None or memo.measured:
            memo = self._memos[plan.workload] = Memo(self._b)
        own = limits == plan.target.limits
        task = plan.task if own else replace(plan.task, target=replace(plan.target, limits=limits))
        return attempt(task, plan.evaluated, memo)


def _lowered(
    interpreter: Interpreter, results: Sequence[Any], conditions: Sequence[Any], target: Target
) -> tuple[list[Any], list[Any], Cost]:  # fmt: skip
    """Results and conditions as they are run, and what that costs."""
    b, workload, count = interpreter.b, interpreter.workload, len(results)
    outputs = [*results, *conditions]
    if workload.stored:
        outputs = cut(b, outputs, workload, target, interpreter.memo.cuts)
    outputs = lean(b, outputs, target.limits, reordered=interpreter.level is Level.FULL)
    outputs[:count] = owned(b, outputs[:count], interpreter.program.returned)
    cost = total_cost(outputs, workload, interpreter.memo.seconds, target)
    if workload.stored:
        cost = replace(cost, seconds=cost.seconds + penalty(outputs, workload))
    return outputs[:count], outputs[count:], cost


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
