"""Demand: what of each captured value is read, so that the rest of it is not computed."""

from rankhoist.compiler.demand.narrow import narrowed

__all__ = ["narrowed"]
