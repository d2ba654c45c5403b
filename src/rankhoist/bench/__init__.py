"""Benchmarks: models to compare on, and timing that compares."""

from rankhoist.bench.scenarios import SCENARIOS, Scenario, scenario
from rankhoist.compiler.targets.timing import Timing, interleaved

__all__ = ["SCENARIOS", "Scenario", "Timing", "interleaved", "scenario"]
