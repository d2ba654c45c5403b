"""Plan: which forms to keep and which to evaluate, for a workload and a machine, by predicted time."""

from rankhoist.compiler.plan.choice import Range, Ranges, Way
from rankhoist.compiler.plan.items import plans_with_store
from rankhoist.compiler.plan.plan import Cost, Plan, PlanSummary
from rankhoist.compiler.plan.plans import Plans, single
from rankhoist.compiler.plan.ranges import make_plans
from rankhoist.compiler.plan.safe import safe_plan
from rankhoist.compiler.plan.search import make_plan
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.plan.watch import watched

__all__ = [
    "Cost",
    "Plan",
    "PlanSummary",
    "Plans",
    "Range",
    "Ranges",
    "Task",
    "Way",
    "make_plan",
    "make_plans",
    "plans_with_store",
    "safe_plan",
    "single",
    "watched",
]
