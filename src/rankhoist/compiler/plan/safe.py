"""The original as it is, as a plan: what nothing may be slower than, and what a mistake of ours leaves."""

from __future__ import annotations

from rankhoist.capture import Program
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.plan.search import Plan, counted, total_cost
from rankhoist.compiler.targets import Target, this_machine


def safe_plan(program: Program, asked: Level, workload: Workload, target: Target | None, reason: str) -> Plan:
    """Level `expand`, without any pass over what the interpreter makes, in place of what could not be made; every
    operator has the `reason`.

    Its time is not predicted.
    """
    interpreter = Interpreter(program, Level.EXPAND, workload, {})
    outputs = interpreter.run()
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    cost = counted(nodes, workload, 0.0)
    reasons = dict.fromkeys(interpreter.outcomes, reason)
    made_for = target or this_machine()
    return Plan(Level.EXPAND, asked, workload, cost, interpreter, outputs, frozenset(), made_for, reasons, safe=True)


def as_it_is(plan: Plan) -> Plan:
    """The original, operator by operator over all rows, beside another plan of it and over the same builder."""
    program, workload = plan.interpreter.program.captured, plan.workload
    interpreter = Interpreter(program, Level.EXPAND, workload, {}, memo=Memo(plan.interpreter.b))
    outputs = interpreter.run()
    cost = total_cost(outputs, workload, {}, plan.target)
    return Plan(Level.EXPAND, plan.asked, workload, cost, interpreter, outputs, frozenset(), plan.target)
