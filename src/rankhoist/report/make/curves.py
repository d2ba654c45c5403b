"""What a call costs against the number of candidates: the original, and the plan that scores so many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankhoist.compiler.algebra.interpret import Level
from rankhoist.compiler.algebra.ir import Node, Workload, live_nodes
from rankhoist.compiler.plan import Plan, Plans
from rankhoist.compiler.plan.ranges import CANDIDATES
from rankhoist.compiler.plan.search import ALIKE, attempt
from rankhoist.compiler.targets.predict import predicted
from rankhoist.compiler.targets.profile import load_profile
from rankhoist.errors import ArtifactError
from rankhoist.report.text import spelled


@dataclass(frozen=True)
class Line:
    """Predicted milliseconds and multiply-adds of a call, for each number of candidates."""

    milliseconds: tuple[float, ...]
    multiply_adds: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """From `first` candidates on, up to the next span, a call is scored by a plan of `level`."""

    first: int
    plan: int
    level: str


@dataclass(frozen=True)
class Curves:
    """Cost of a call of `requests` requests against its candidates.

    Attributes:
        machine: what the times are predicted for.
        candidates: the numbers of candidates, ascending.
        original, chosen: the model as trained, and the plan that scores so many candidates.
        spans: which plan that is.
    """

    machine: str
    requests: int
    candidates: tuple[int, ...]
    original: Line
    chosen: Line
    spans: tuple[Span, ...]

    @property
    def pays_from(self) -> int | None:
        """The smallest number of candidates from which on the hoisted model is predicted to be clearly faster."""
        faster = [o > ALIKE * c for o, c in zip(self.original.milliseconds, self.chosen.milliseconds, strict=True)]
        slower = [i for i, fast in enumerate(faster) if not fast]
        first = slower[-1] + 1 if slower else 0
        return self.candidates[first] if first < len(self.candidates) else None

    @property
    def verdict(self) -> str:
        """Whether it pays, in a sentence."""
        if self.pays_from is None:
            return "Nothing pays: predicted to be no faster than the original at any number of candidates."
        return f"Predicted to be faster than the original from {spelled(self.pays_from, 'candidate')} on."

    def check(self) -> None:
        """That curves from a file are some.

        Raises:
            ArtifactError: lines of other lengths, a number out of order, times that are none.
        """
        counts = self.candidates
        rising = list(counts) == sorted({*counts}) and len(counts) > 1 and counts[0] > 0
        lines = [line for x in (self.original, self.chosen) for line in (x.milliseconds, x.multiply_adds)]
        positive = all(0 <= t < 1e12 for x in (self.original, self.chosen) for t in x.milliseconds)
        if not rising or not positive or not self.spans or any(len(line) != len(counts) for line in lines):
            raise ArtifactError("the curves of its report are none")


def make_curves(plans: Plans[Plan]) -> Curves:
    """By prediction, on this machine's profile."""
    requests = plans.main.workload.requests
    counts = CANDIDATES
    program = plans.main.interpreter.program
    expand = attempt(program, Level.EXPAND, plans.main.workload, frozenset())
    numbers = [plans.ranges.choose(n, requests) for n in counts]
    lines = {i: _line(plans.plans[i], counts, requests) for i in {*numbers}}
    picked = [(lines[i].milliseconds[k], lines[i].multiply_adds[k]) for k, i in enumerate(numbers)]
    milliseconds, multiply_adds = zip(*picked, strict=True)
    profile = load_profile()
    machine = f"{profile.processor}, {profile.threads} thread{'s' * (profile.threads > 1)}"
    original = _line(expand, counts, requests)
    return Curves(machine, requests, tuple(counts), original, Line(milliseconds, multiply_adds), _spans(plans))


def _line(plan: Plan, counts: Sequence[int], requests: int) -> Line:
    nodes = live_nodes([o for o in plan.outputs if isinstance(o, Node)])
    given = np.asarray(counts, float)
    seconds = predicted(nodes, plan.outputs, load_profile(), given, np.full_like(given, requests))
    each = [(n.rate, n.work.multiply_adds) for n in nodes if n.work.multiply_adds]
    work = [sum(madds * Workload(count, requests).of(rate) for rate, madds in each) for count in counts]
    return Line(tuple(float(s) * 1e3 for s in np.broadcast_to(seconds, given.shape)), tuple(work))


def _spans(plans: Plans[Plan]) -> tuple[Span, ...]:
    """The row of ranges for the workload's number of requests."""
    requests = plans.main.workload.requests
    row = plans.ranges.row(requests)
    starts = [(max(r.first, 1), r.plan) for r in row]
    runs = (next(group) for _, group in itertools.groupby(starts, key=lambda s: s[1]))
    return tuple(Span(first, plan, plans.plans[plan].level.name.lower()) for first, plan in runs)
