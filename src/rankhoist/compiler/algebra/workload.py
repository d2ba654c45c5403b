"""What a user asks of a plan: how much may be hoisted, and for how many candidates and requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from rankhoist.arguments import of_kind, whole_number
from rankhoist.compiler.graph.node import Rate
from rankhoist.errors import CaptureError, InputError

ELEMENT = 4  # bytes, about
MOST = 2**31 - 1  # candidates, or requests, of a call


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
    except (KeyError, AttributeError):
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

    def of_size(self, rate: Rate, elements: int) -> int:
        """The same for rows of so many elements: what is more than a store may hold of an item is computed in calls."""
        return self.of(rate) if rate is not Rate.ITEM or self.holds(elements) else self.candidates

    def holds(self, elements: int) -> bool:
        """Whether a store may hold so many of an item; without one, there is nothing to hold."""
        return self.item_bytes is None or elements * ELEMENT <= self.item_bytes

    def before(self, rate: Rate) -> bool:
        """Whether what has this rate is computed before any call."""
        return rate is Rate.WEIGHT or (self.stored and rate is Rate.ITEM)

    def stage(self, rate: Rate) -> str:
        """The stage that computes it: without a store, the candidate stage computes what depends on items alone."""
        return "item" if self.stored and rate is Rate.ITEM else rate.stage


def workload_of(given: Workload | None, usual: Workload) -> Workload:
    """The workload that a user asks for, else the usual one.

    Raises:
        InputError: it is none, or has a number below 1.
    """
    if given is None:
        return usual
    given = of_kind(given, Workload, "workload", "rankhoist.Workload(candidates=1000, requests=1)")
    numbers = [whole_number(n, "workload") for n in (given.candidates, given.requests)]
    if min(numbers) < 1 or max(numbers) > MOST:
        raise InputError(f"a plan is made for 1 candidate and 1 request or more, got {given}; the most is {MOST}")
    return given
