"""Where each law of the compiler was applied in a plan, and why it was not where an operator has it."""

from __future__ import annotations

from collections import Counter

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.rules import CONDITIONAL, all_rules, law_names
from rankhoist.report.record import LawUse


def make_laws(plan: Plan) -> list[LawUse]:
    """Those that some operator of the program has, in the order in which they are tried."""
    operators = {n.name: n.target for n in plan.interpreter.program.captured.graph.nodes}
    applied: dict[str, list[str]] = {}
    declined: dict[str, Counter[str]] = {}
    for name, outcome in plan.interpreter.outcomes.items():
        if name not in operators:
            continue  # a part of an operand, which no captured operator is
        applied.setdefault(outcome.law, []).append(name)
        reasons = dict(outcome.declined)
        reasons |= {
            row.name: "switched off" for row in all_rules().get(operators[name], ()) if row.name in plan.without
        }
        for law, reason in reasons.items():
            declined.setdefault(law, Counter())[reason] += 1
    levels: dict[str, Level] = {}
    for rows in all_rules().values():
        for row in rows:
            levels[row.name] = min(levels.get(row.name, row.level), row.level)
    return [
        LawUse(
            law, levels[law].name.lower(), tuple(applied.get(law, ())),
            dict(declined.get(law, Counter()).most_common()), law in CONDITIONAL,
        )
        for law in law_names()
        if law in applied or law in declined
    ]  # fmt: skip
