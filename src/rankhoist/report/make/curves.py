"""What a call costs against the number of candidates: the original, and the plan that scores so many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Plan, Plans
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.ranges import CANDIDATES
from rankhoist.report.record import Curves, Line, Span


def make_curves(plans: Plans[Plan]) -> Curves:
    """By prediction, for the target of the plans."""
    main, counts = plans.main, CANDIDATES
    requests = main.workload.requests
    expand = attempt(replace(main.task, level=Level.EXPAND))
    numbers = [plans.ranges.choose(n, requests) for n in counts]
    lines = {i: _line(plans.plans[i], counts, requests) for i in {*numbers}}
    picked = [(lines[i].milliseconds[k], lines[i].multiply_adds[k]) for k, i in enumerate(numbers)]
    milliseconds, multiply_adds = zip(*picked, strict=True)
    original, chosen = _line(expand, counts, requests), Line(milliseconds, multiply_adds)
    return Curves(main.target.profile.machine, requests, tuple(counts), original, chosen, _spans(plans))


def _line(plan: Plan, counts: Sequence[int], requests: int) -> Line:
    nodes = plan.per_call
    given = np.asarray(counts, float)
    seconds = plan.target.predicted(nodes, plan.results, given, np.full_like(given, requests))
    each = [(n.rate, n.work.multiply_adds) for n in nodes if n.work.multiply_adds]
    work = [sum(madds * Workload(count, requests).of(rate) for rate, madds in each) for count in counts]
    return Line(tuple(float(s) * 1e3 for s in np.broadcast_to(seconds, given.shape)), tuple(work))


def _spans(plans: Plans[Plan]) -> tuple[Span, ...]:
    """The row of ranges for the workload's number of requests."""
    requests = plans.main.workload.requests
    row = plans.ranges.row(requests)
    starts = [(max(first, 1), way.plan) for first, way in row]
    runs = (next(group) for _, group in itertools.groupby(starts, key=lambda s: s[1]))
    return tuple(Span(first, plan, plans.plans[plan].level.name.lower()) for first, plan in runs)
