"""The original as it is, as a plan: what nothing may be slower than, and what a mistake of ours leaves."""

from __future__ import annotations

from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.plan.attempt import counted, total_cost
from rankhoist.compiler.plan.plan import Plan
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.rules import all_rules


def safe_plan(task: Task, reason: str) -> Plan:
    """Level `expand`, without any pass over what the interpreter makes, in place of what could not be made; every
    operator has the `reason`.

    Its time is not predicted.
    """
    level, workload = Level.EXPAND, task.workload
    interpreter = Interpreter(task.program, level, workload, {})
    outputs = interpreter.run()
    cost = counted(live_nodes([o for o in outputs if isinstance(o, Node)]), workload, 0.0)
    reasons = dict.fromkeys(interpreter.outcomes, reason)
    return Plan(level, task.level, workload, cost, interpreter, outputs, frozenset(), task.target, reasons, safe=True)


def as_it_is(plan: Plan) -> Plan:
    """The original, operator by operator over all rows, beside another plan of it and over the same builder; copies, of
    which nobody sees that they are some, are left out.
    """
    program, workload = plan.interpreter.program.captured, plan.workload
    interpreter = Interpreter(program, Level.EXPAND, workload, all_rules(), memo=Memo(plan.interpreter.b))
    outputs = interpreter.run()
    cost = total_cost(outputs, workload, {}, plan.target)
    return Plan(Level.EXPAND, plan.asked, workload, cost, interpreter, outputs, frozenset(), plan.target)
