"""The safe plan: the original operators over all rows, in place of what a mistake of ours has kept from being made."""

from __future__ import annotations

from rankhoist.capture import Program
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.plan.search import Cost, Plan
from rankhoist.compiler.targets import Target, this_machine


def safe_plan(program: Program, asked: Level, workload: Workload, target: Target | None, reason: str) -> Plan:
    """Level `expand`, without any pass over what the interpreter makes; every operator has the `reason`.

    Its time is not predicted.
    """
    interpreter = Interpreter(program, Level.EXPAND, workload, {})
    outputs = interpreter.run()
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    cost = Cost(
        sum(n.work.multiply_adds * workload.of(n.rate) for n in nodes),
        sum(n.work.elements * workload.of(n.rate) for n in nodes),
        0.0,
    )
    reasons = dict.fromkeys(interpreter.outcomes, reason)
    made_for = target or this_machine()
    return Plan(Level.EXPAND, asked, workload, cost, interpreter, outputs, frozenset(), made_for, reasons, safe=True)
