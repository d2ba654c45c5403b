"""What `tune` measured, as plain data, and as lines of text."""

from __future__ import annotations

from dataclasses import dataclass

from rankhoist.errors import ArtifactError
from rankhoist.report.text import table


@dataclass(frozen=True)
class Trial:
    """One plan, run by one backend, on all rows or on so many at a time.

    Attributes:
        plan, level: its number and its level; `original` is the model as it is.
        backend: what ran it.
        milliseconds, low, high: of a call, the median and the quartiles; None where it was not timed.
        calls: so many.
        problem: why it was not timed.
        chunk: rows that its candidate stage took at a time at most; 0 for all of them.
    """

    plan: int
    level: str
    backend: str
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    calls: int = 0
    problem: str = ""
    chunk: int = 0

    @property
    def name(self) -> str:
        """`full (plan 0) by onnx`; by PyTorch's own operators where nothing is said."""
        plan = "the original" if self.level == "original" else f"{self.level} (plan {self.plan})"
        chunks = f" in chunks of {self.chunk} rows" if self.chunk else ""
        return plan + chunks + (f" by {self.backend}" if self.backend != "eager" else "")


@dataclass(frozen=True)
class Point:
    """Calls of one size, `candidates` of `requests` requests in all: what was tried, the fastest first."""

    requests: int
    candidates: int
    trials: tuple[Trial, ...]

    @property
    def won(self) -> Trial:
        """What scores calls of about this size now."""
        return self.trials[0]

    @property
    def original(self) -> Trial | None:
        """The fastest way to run the model as it is; None in an older file."""
        return next((t for t in self.trials if t.level == "original" and t.milliseconds), None)


@dataclass(frozen=True)
class Tuning:
    """A run of `tune`: on which machine, in which dtype, when, in how many seconds, and what it found."""

    machine: str
    dtype: str
    torch: str
    date: str
    seconds: float
    points: tuple[Point, ...]

    def check(self) -> None:
        """That one from a file is one.

        Raises:
            ArtifactError: nothing was timed at a point.
        """
        if not self.points or any(not p.trials or not p.trials[0].milliseconds for p in self.points):
            raise ArtifactError("a point of its tuning was not timed")


HEADER = ("fastest", "requests", "candidates", "ms", "original", "ratio")


def lines(tuning: Tuning) -> list[str]:
    """All of it, as text."""
    tried = [f"  {p.candidates:,} of {p.requests:,}: {others(p)}" for p in tuning.points if len(p.trials) > 1]
    return [title(tuning), *table(HEADER, [row(p) for p in tuning.points], left=1), "tried as well:", *tried]


def title(tuning: Tuning) -> str:
    """Where and when, and what the numbers are."""
    return (
        f"Tuned on {tuning.machine} ({tuning.dtype}, torch {tuning.torch}), {tuning.date}, in {tuning.seconds:.0f} s; "
        "milliseconds of whole calls, medians:"
    )


def row(point: Point) -> list[str]:
    """A point in the columns of `HEADER`."""
    won, original = point.won, point.original
    before = original.milliseconds if original is not None else None
    times = f"{before / won.milliseconds:.2f}x" if before and won.milliseconds else "."
    sizes = [f"{point.requests:,}", f"{point.candidates:,}"]
    return [won.name, *sizes, _number(won.milliseconds), _number(before), times]


def others(point: Point) -> str:
    """What did not win there, and how long it took, or why it was not timed."""
    return ", ".join(f"{t.name} {_number(t.milliseconds) if t.milliseconds else t.problem}" for t in point.trials[1:])


def _number(milliseconds: float | None) -> str:
    return f"{milliseconds:.3g}" if milliseconds else "."
