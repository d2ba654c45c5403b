"""What the suite must show, computed from its records: each goal with its value and the cells that miss it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LEVELS = ["expand", "lookup", "request", "linear", "first", "full"]
SPEED = [  # of `full` against another variant, one request of 1000 candidates
    ("dot_pairs_80_10", "eager", 11.0),
    ("dot_pairs_27_4", "eager", 3.2),
    ("cross_full", "eager", 3.1),
    ("cross_full", "first", 2.0),
    ("cross_low_rank", "eager", 3.1),
    ("cross_low_rank", "first", 2.0),
    ("target_attention", "eager", 2.9),
    ("norm_linear", "eager", 3.8),
    ("industrial", "eager", 2.5),
    ("industrial", "linear", 1.3),
]
NEVER_SLOWER = 0.95  # than the better of the original and level `request`
FLOOR = 1.5
PREDICTED = 0.6, 1.6
FASTEST = 1.05
MOST = 0.9  # of the cells

Record = dict[str, Any]


def summary(records: Sequence[Record]) -> list[Record]:
    """All goals; one that no cell speaks to has `passed` None."""
    timed = [r for r in records if r["time"]]
    at_1000 = [r for r in timed if (r["requests"], r["candidates"]) == (1, 1000)]
    goals = [_speed(at_1000, *goal) for goal in SPEED]
    goals += [
        _share("equal to the original before it is timed", records, lambda r: float(r["equal"]), 1.0, None),
        _share("original or `request`, the better, / full", timed, never_slower, NEVER_SLOWER, None),
        _share("score / floor, N = 1000, dense", [r for r in at_1000 if r["dense"]], over_floor, None, FLOOR),
        _share("predicted / measured", timed, foretold, *PREDICTED, MOST),
        _share("full / fastest level", timed, against_fastest, None, FASTEST, MOST),
    ]
    return goals


def median(record: Record, variant: str) -> float:
    """Milliseconds."""
    return float(record["time"][variant]["median"])


def ratio(record: Record, slow: str, fast: str = "full") -> float:
    """How many times faster."""
    return median(record, slow) / median(record, fast)


def never_slower(record: Record) -> float:
    """The better of the plain model and level `request`, over `full`."""
    return min(ratio(record, "eager"), ratio(record, "request"))


def over_floor(record: Record) -> float:
    """The candidate stage's time over that of its matrix products alone."""
    return ratio(record, "score", "floor candidate")


def foretold(record: Record) -> float:
    """Predicted over measured time."""
    return float(record["predicted"]) / median(record, "full")


def fastest(record: Record) -> str:
    """The fastest level."""
    return min(LEVELS, key=lambda x: median(record, x))


def against_fastest(record: Record) -> float:
    """`full` over the fastest level."""
    return ratio(record, "full", fastest(record))


def cell_name(record: Record) -> str:
    """The scenario and the size of the call."""
    requests = f", R = {record['requests']}" if record["requests"] > 1 else ""
    return f"{record['scenario']} N = {record['candidates']}{requests}"


def _speed(at_1000: Sequence[Record], scenario: str, slow: str, limit: float) -> Record:
    own = [r for r in at_1000 if r["scenario"] == scenario]
    return _share(f"{scenario}: {slow} / full, N = 1000", own, lambda r: ratio(r, slow), limit, None)


def _share(
    goal: str, records: Sequence[Record], value: Callable[[Record], float], low: float | None, high: float | None,
    most: float = 1.0,
) -> Record:  # fmt: skip
    """A goal that at least the share `most` of the cells must meet: a value within bounds."""
    values = [(cell_name(r), value(r)) for r in records]
    missed = [(n, v) for n, v in values if (low is not None and v < low) or (high is not None and v > high)]
    found = [v for _, v in values]
    return {
        "goal": goal, "low": low, "high": high, "most": most, "cells": len(values),
        "worst": None if not found else max(found) if low is None else min(found),
        "passed": None if not values else len(missed) <= (1 - most) * len(values) + 1e-9,
        "missed": [{"cell": n, "value": v} for n, v in sorted(missed, key=lambda x: x[1])],
    }  # fmt: skip
