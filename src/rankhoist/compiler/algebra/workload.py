"""What a user asks of a plan: how much may be hoisted, and for how many candidates and requests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from rankhoist.compiler.graph.node import Rate
from rankhoist.errors import CaptureError


class Level(IntEnum):
    """What may be hoisted; every level includes those below it."""

    EXPAND = 0
    LOOKUP = 1
    REQUEST = 2
    LINEAR = 3
    FIRST = 4
    FULL = 5


def parse_level(level: str) -> Level:
    """A level by name."""
    try:
        return Level[level.upper()]
    except KeyError:
        raise CaptureError(f"unknown level {level!r}; levels are {', '.join(x.name.lower() for x in Level)}") from None


@dataclass(frozen=True)
class Workload:
    """What the plan is made for: candidates per call in all (N), and requests (R) that own them."""

    candidates: int = 1000
    requests: int = 1

    def of(self, rate: Rate) -> int:
        """Rows computed at `rate`; weight-rate work is done once per model and counts nothing."""
        if rate is Rate.WEIGHT:
            return 0
        return self.requests if rate is Rate.REQUEST else self.candidates
