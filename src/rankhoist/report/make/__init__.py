"""Make a report of plans: the only part of `report` that knows them.

* `operators` attributes the plan's work to the operators of the captured graph;
* `graph` says who reads whom, and what the plan did with each result;
* `curves` predicts what calls of other sizes cost;
* `laws` says where each law was applied, and why it was not;
* `items` says what a store keeps of an item, and what is computed at each rate.
"""

from __future__ import annotations

from rankhoist.compiler.plan import Plan, Plans, single
from rankhoist.report.make.curves import make_curves
from rankhoist.report.make.graph import make_graph
from rankhoist.report.make.items import make_items
from rankhoist.report.make.laws import make_laws
from rankhoist.report.make.operators import make_operators
from rankhoist.report.report import Report

__all__ = ["make_report"]


def make_report(plans: Plans[Plan] | Plan, with_store: Plans[Plan] | None = None) -> Report:
    """The report of the main plan, for the workload it was made for; and of the one for a store of items."""
    plans = plans if isinstance(plans, Plans) else single(plans)
    plan = plans.main
    curves = None if plan.safe else make_curves(plans)
    operators, laws = tuple(make_operators(plan)), tuple(make_laws(plan))
    items = None if with_store is None else make_items(with_store, plan)
    opaque = tuple(plan.interpreter.program.modules)
    asked = plan.asked.name.lower()
    return Report(asked, plan.workload, operators, make_graph(plan), curves, laws, items=items, opaque=opaque)
