"""The search over plans: which captured operators keep their result as a form (push), and which evaluate it.

A level below `full` leaves no choice. At `full`, every plan of a lower level is among the candidates, so `full` never
does more work than `first`; a local rule would not do (see the design: the best choice depends on N and on all layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rankhoist.algebra.interpret import Interpreter, Level
from rankhoist.algebra.ir import Node, Workload, live_nodes
from rankhoist.capture import Program
from rankhoist.rules import all_rules, lookups


@dataclass(frozen=True)
class Cost:
    """Work of one call of the workload, both stages: multiply-adds, and elements written."""

    multiply_adds: int
    elements: int

    @property
    def units(self) -> int:
        return self.multiply_adds + self.elements


@dataclass
class Plan:
    """An interpreted program: its outputs as nodes, what it costs, and the operators whose forms are evaluated."""

    level: Level
    workload: Workload
    interpreter: Interpreter
    outputs: list[Any]
    cost: Cost
    evaluated: frozenset[str]


def make_plan(program: Program, level: Level, workload: Workload) -> Plan:
    """The cheapest plan found for `workload`."""
    lower = [attempt(program, x, workload, frozenset()) for x in Level if x <= min(level, Level.FIRST)]
    best = min(lower, key=lambda p: (p.cost.multiply_adds, p.cost.units))
    if level < Level.FULL:
        return best
    return _improve(program, best, workload)


def _improve(program: Program, best: Plan, workload: Workload) -> Plan:
    """From "keep everything" and "evaluate everything", flip one operator at a time, in graph order, while it helps.

    A plan is accepted only if it does no more multiply-adds than the best plan of the lower levels.
    """
    bound = best.cost.multiply_adds

    def rank(plan: Plan) -> tuple[int, int]:
        return (max(plan.cost.multiply_adds - bound, 0), plan.cost.units)

    operators = frozenset(n.name for n in program.graph.nodes if n.op == "call_function")
    kept = attempt(program, Level.FULL, workload, frozenset())
    current = min(kept, attempt(program, Level.FULL, workload, operators), key=rank)
    for node in _choices(program, kept):
        trial = attempt(program, Level.FULL, workload, current.evaluated ^ {node.name})
        current = min(current, trial, key=rank)
    return min(best, current, key=rank)


def _choices(program: Program, plan: Plan) -> list[fx.Node]:
    """Operators whose result some plan keeps as a form."""
    names = plan.interpreter.kept_forms
    return [n for n in program.graph.nodes if n.name in names]


def attempt(program: Program, level: Level, workload: Workload, evaluated: frozenset[str]) -> Plan:
    """Interpret the program with one set of choices, and count."""
    interpreter = Interpreter(program, level, workload, all_rules(), lookups(), lambda n: n.name not in evaluated)
    outputs = interpreter.run()
    return Plan(level, workload, interpreter, outputs, total_cost(outputs, workload), evaluated)


def total_cost(outputs: Sequence[Any], workload: Workload) -> Cost:
    """Work of everything that `outputs` need."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    madds = sum(n.work.multiply_adds * workload.of(n.rate) for n in nodes)
    elements = sum(n.work.elements * workload.of(n.rate) for n in nodes)
    return Cost(madds, elements)
