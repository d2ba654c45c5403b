"""Benchmarks: timing that compares, and what a result must state."""

from rankhoist.bench.timing import Timing, interleaved, machine

__all__ = ["Timing", "interleaved", "machine"]
