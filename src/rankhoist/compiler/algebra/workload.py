"""What a user asks of a plan: how much may be hoisted, and for how many candidates and requests."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """What the plan is made for: candidates per call in all (N), and requests (R) that own them.

    `item_bytes` is how much a store may hold of each item: what depends on items alone is looked up there, not
    computed. None: there is no store.
    """

    candidates: int = 1000
    requests: int = 1
    item_bytes: int | None = field(default=None, repr=False)

    @property
    def stored(self) -> bool:
        """Whether items have a store."""
        return self.item_bytes is not None

    def of(self, rate: Rate) -> int:
        """Rows computed at `rate`; work that is done once per model, or once per item of a store, counts nothing."""
        if self.before(rate):
            return 0
        return self.requests if rate is Rate.REQUEST else self.candidates

    def before(self, rate: Rate) -> bool:
        """Whether what has this rate is computed before any call."""
        return rate is Rate.WEIGHT or (self.stored and rate is Rate.ITEM)

    def stage(self, rate: Rate) -> str:
        """The stage that computes it: without a store, the candidate stage computes what depends on items alone."""
        return "item" if self.stored and rate is Rate.ITEM else rate.stage
