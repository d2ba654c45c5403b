"""Plan: which forms to keep and which to evaluate, for a workload."""

from rankhoist.plan.search import Plan, make_plan

__all__ = ["Plan", "make_plan"]
