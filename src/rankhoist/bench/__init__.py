"""Benchmarks: timing that compares, and what a result must state."""

from rankhoist.bench.scenarios import SCENARIOS, Scenario, scenario
from rankhoist.bench.timing import Timing, interleaved, machine

__all__ = ["SCENARIOS", "Scenario", "Timing", "interleaved", "machine", "scenario"]
