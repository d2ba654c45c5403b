"""The search over plans: which captured operators keep their result as a form (push), and which evaluate it.

A level below `full` leaves no choice. At `full`, every plan of a lower level is among the candidates, so `full` never
does more work than `first`; a local rule would not do (see the design: the best choice depends on N and on all layers).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from rankhoist.algebra.interpret import Interpreter, Level, Memo
from rankhoist.algebra.ir import Builder, Node, Workload, live_nodes
from rankhoist.algebra.lean import lean
from rankhoist.capture import Program
from rankhoist.rules import all_rules, lookups

SECONDS = 20.0  # the search stops here with the best plan so far


@dataclass(frozen=True)
class Cost:
    """Work of one call of the workload, both stages: multiply-adds, and elements written."""

    multiply_adds: int
    elements: int

    @property
    def units(self) -> int:
        return self.multiply_adds + self.elements


@dataclass(frozen=True)
class Plan:
    """An interpreted program: its outputs as nodes, what it costs, and the operators whose forms are evaluated.

    `reasons` says, per captured operator, why no rule applied at the level that was asked for.
    """

    level: Level
    workload: Workload
    interpreter: Interpreter
    outputs: list[Any]
    cost: Cost
    evaluated: frozenset[str]
    reasons: dict[str, str] = field(default_factory=dict)


def make_plan(program: Program, level: Level, workload: Workload) -> Plan:
    """The cheapest plan found for `workload`.

    The levels below are candidates too, so that no level does more multiply-adds than a lower one.
    """
    memo = Memo(Builder(program.device))
    lower = [attempt(program, x, workload, frozenset(), memo) for x in Level if x <= min(level, Level.FIRST)]
    best = min(lower, key=lambda p: (p.cost.multiply_adds, p.cost.units, -p.level))
    if level is Level.FULL:
        best = _improve(program, best, workload, memo)
    final = attempt(program, best.level, workload, best.evaluated)
    told = final if final.level is level else attempt(program, level, workload, frozenset())
    return replace(final, reasons={n: o.reason for n, o in told.interpreter.outcomes.items() if o.reason})


def _improve(program: Program, best: Plan, workload: Workload, memo: Memo) -> Plan:
    """From "keep everything" and "evaluate everything", flip like operators together, then single ones, while it helps.

    A plan is accepted only if it does no more multiply-adds than the best plan of the lower levels.
    """
    bound = best.cost.multiply_adds

    def rank(plan: Plan) -> tuple[int, int]:
        return (max(plan.cost.multiply_adds - bound, 0), plan.cost.units)

    operators = frozenset(n.name for n in program.graph.nodes if n.op == "call_function")
    kept = attempt(program, Level.FULL, workload, frozenset(), memo)
    evaluated = attempt(program, Level.FULL, workload, operators, memo)
    deadline = time.monotonic() + SECONDS

    def climb(current: Plan, moves: Iterable[frozenset[str]]) -> Plan:
        for names in moves:
            if time.monotonic() < deadline:
                trial = attempt(program, Level.FULL, workload, current.evaluated ^ names, memo)
                current = min(current, trial, key=rank)
        return current

    groups = _like_operators(program, memo.kept_forms)
    found = min(climb(kept, groups), climb(evaluated, groups), key=rank)
    found = climb(found, [frozenset({name}) for group in groups if len(group) > 1 for name in sorted(group)])
    return min(found, best, key=rank)


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
    program: Program, level: Level, workload: Workload, evaluated: frozenset[str], memo: Memo | None = None
) -> Plan:
    """Interpret the program with one set of choices, and count."""
    interpreter = Interpreter(program, level, workload, all_rules(), lookups(), lambda n: n.name not in evaluated, memo)
    outputs = lean(interpreter.b, interpreter.run())
    return Plan(level, workload, interpreter, outputs, total_cost(outputs, workload), evaluated)


def total_cost(outputs: Sequence[Any], workload: Workload) -> Cost:
    """Work of everything that `outputs` need."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    madds = sum(n.work.multiply_adds * workload.of(n.rate) for n in nodes)
    elements = sum(n.work.elements * workload.of(n.rate) for n in nodes)
    return Cost(madds, elements)
