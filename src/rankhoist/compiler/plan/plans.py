"""The plans of a model, and which of them scores a call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch

from rankhoist.compiler.plan.choice import EVERYWHERE, Ranges, Way
from rankhoist.compiler.plan.plan import Plan, PlanSummary
from rankhoist.compiler.plan.safe import as_it_is
from rankhoist.compiler.targets import CPU
from rankhoist.compiler.targets.backends import here

P = TypeVar("P", bound=PlanSummary, covariant=True)


@dataclass(frozen=True)
class Plans(Generic[P]):
    """Plans of one program over one builder, the first made for `workload`, and where each is used.

    Some are used nowhere by prediction: `tune` tries them, too.

    Attributes:
        original: the number of the plan that is the original, operator by operator; None in an older file.
        otherwise: the number of the plan for calls for which the condition of another does not hold; None where none
            has a condition.
        predicted: where each is used by prediction, if `ranges` were measured.
        target: the name of what `ranges` are for.
        elsewhere: where each is used on other targets, by name.
    """

    plans: tuple[P, ...]
    ranges: Ranges
    original: int | None = None
    predicted: Ranges | None = None
    target: str = CPU.name
    elsewhere: Mapping[str, Ranges] = field(default_factory=dict)
    otherwise: int | None = None

    @property
    def main(self) -> P:
        """The plan for the workload asked for."""
        return self.plans[0]

    def at(self, candidates: int | None, requests: int) -> Way:
        """What scores a call; None stands for as many candidates per request as it was made for."""
        made_for = self.main.workload
        expected = made_for.candidates * requests // made_for.requests if candidates is None else candidates
        return self.ranges.at(expected, requests)

    def absent(self, device: torch.device) -> list[str]:
        """The backends that score some calls, and that this machine lacks."""
        return sorted(backend for backend in {way.backend for way in self.ranges.ways} if not here(backend, device))

    def without(self, backends: Collection[str]) -> Plans[P]:
        """The same, but what one of `backends` won is scored as was predicted."""
        otherwise = self.predicted or self.ranges.on("")
        return replace(self, ranges=self.ranges.without(backends, otherwise)) if backends else self

    def for_all(self, plan: int) -> int:
        """The plan for calls for which the condition of a plan does not hold."""
        assert self.otherwise is not None, f"plan {plan} has a condition, and so there is one without"
        return self.otherwise

    def fits(self, plan: int, candidates: int, requests: int) -> bool:
        """Whether a plan scores such calls: by their size, or because the condition of another did not hold."""
        return plan in (self.ranges.choose(candidates, requests), self.otherwise)

    def one_per_plan(self, requests: int) -> list[int]:
        """A number of candidates for every plan that so many requests use: 2 or more if it can be, one is special."""
        row = self.ranges.row(requests)
        last = [*(r.first - 1 for r in row[1:]), max(row[-1].first, 2)]
        counts = {r.way: min(max(r.first, 2), end) for r, end in zip(row, last, strict=True)}
        usual = self.main.workload.candidates
        there = self.ranges.at(usual, requests)
        return list((counts | {there: usual}).values())

    def __str__(self) -> str:
        """Break-even points: how many candidates are scored by the plan of which level."""
        lines = []
        for requests, row in zip(self.ranges.requests, self.ranges.candidates, strict=True):
            names = [f"{first or 1}+: {self.plans[way.plan].level.name.lower()} ({way})" for first, way in row]
            lines.append(f"{requests} request{'s' * (requests > 1)}, candidates " + ", ".join(names))
        if self.otherwise is not None:
            level = self.plans[self.otherwise].level.name.lower()
            lines.append(f"where the condition of a plan does not hold: {level} (plan {self.otherwise})")
        return "\n".join(lines)


def single(plan: Plan) -> Plans[Plan]:
    """One plan for every call; the original beside it where it holds on a condition."""
    if plan.conditional:
        return Plans((plan, as_it_is(plan)), EVERYWHERE, 1, None, plan.target.name, otherwise=1)
    return Plans((plan,), EVERYWHERE, 0 if plan.safe else None, None, plan.target.name)
