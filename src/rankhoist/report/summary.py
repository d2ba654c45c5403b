"""What a report comes to: one sentence, what is per request, what is per candidate, what blocks the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rankhoist.report.record import Amount, Operator, Record
from rankhoist.report.text import percent, spaced, spelled


@dataclass(frozen=True)
class Reason:
    """Why work stays per candidate: how much, in how many operators, and in which modules, most work first."""

    text: str
    work: int
    operators: int
    modules: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Summary:
    """Work of one call, in multiply-adds; in bytes written where the model multiplies nothing.

    Attributes:
        unit: `multiply-adds` or `bytes`.
        before: of the original.
        request: of the request stage.
        item, pair: of the candidate stage, in operators that read candidate inputs alone, and in the others.
        reasons: why that stays, most work first.
    """

    candidates: int
    requests: int
    unit: str
    before: int
    request: int
    item: int
    pair: int
    reasons: tuple[Reason, ...]

    @property
    def after(self) -> int:
        return self.request + self.item + self.pair

    @property
    def candidate(self) -> int:
        return self.item + self.pair


def summary(report: Record) -> Summary:
    """Add a report up."""
    n, r = report.workload.candidates, report.workload.requests
    total = report.total()
    unit = "multiply_adds" if total.before.multiply_adds else "bytes"

    def work(amount: Amount) -> int:
        found: int = getattr(amount, unit)
        return found

    stayed = report.blocking()
    item = sum(work(o.candidate) for o in stayed if _alone(o)) * n
    pair = sum(work(o.candidate) for o in stayed if not _alone(o)) * n
    by_reason: dict[str, list[tuple[str, int]]] = {}
    for o in stayed:
        by_reason.setdefault(o.reason or "", []).append((o.module, work(o.candidate) * n))
    reasons = sorted((_reason(text, places) for text, places in by_reason.items()), key=lambda x: -x.work)
    request = sum(work(o.request) for o in report.operators) * r
    return Summary(n, r, unit.replace("_", "-"), work(total.before), request, item, pair, tuple(reasons))


def _reason(text: str, places: list[tuple[str, int]]) -> Reason:
    """`places` are the module and the work of each operator."""
    modules: Counter[str] = Counter()
    for module, work in places:
        modules[module] += work
    return Reason(text, modules.total(), len(places), tuple(modules.most_common()))


def _alone(operator: Operator) -> bool:
    return "pair" not in operator.rates and "request" not in operator.rates


def headline(found: Summary) -> str:
    """What is saved, in one sentence."""
    calls = spelled(found.candidates, "candidate")
    if found.requests > 1:
        calls += f" of {found.requests:,} requests"
    if found.after >= found.before:
        return f"{calls}: {spaced(found.before)} {found.unit}, and hoisting saves none of them."
    left = max(found.before - found.candidate, 0)
    return (
        f"{calls}: {spaced(found.after)} {found.unit} instead of {spaced(found.before)}; "
        f"{percent(left, found.before)} of the work no longer runs per candidate."
    )
