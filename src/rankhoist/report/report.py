"""The report: what a plan does with every captured operator, added up per module and in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rankhoist.algebra.ir import Workload
from rankhoist.plan import Plan
from rankhoist.report.operators import Amount, Operator, operators
from rankhoist.report.text import ratio, short, shorten, table

BLOCKING_SHOWN = 10

FOOTNOTE = """\
"before" is the original per candidate; "request" and "each" are the hoisted model per request and per candidate.
"(elsewhere)": what is left of its work counts in another line, that of an equal operator or of a later one that
evaluates the sum of products which it is kept as; products count for the matrix operator that they come from.
Work on weights alone is done once per model and is not counted. Bytes are those written."""


@dataclass(frozen=True)
class Module:
    """Work of one call of the workload in all operators of one module."""

    path: str
    before: Amount
    after: Amount


@dataclass(frozen=True)
class Report:
    """What a plan does with every captured operator, for one workload; `str(report)` is a table."""

    level: str
    workload: Workload
    operators: tuple[Operator, ...]

    def before(self, operator: Operator) -> Amount:
        """Work of an operator in one call of the original."""
        return operator.before * self.workload.candidates

    def after(self, operator: Operator) -> Amount:
        """Work of an operator in one call of the hoisted model, both stages."""
        return operator.request * self.workload.requests + operator.candidate * self.workload.candidates

    def modules(self) -> list[Module]:
        """Totals per module, in the order of their first operators."""
        paths = dict.fromkeys(o.module for o in self.operators if o.works)
        return [self._sum(path, (o for o in self.operators if o.module == path)) for path in paths]

    def total(self) -> Module:
        """The whole model."""
        return self._sum("", self.operators)

    def _sum(self, path: str, chosen: Iterable[Operator]) -> Module:
        own = list(chosen)
        return Module(path, sum(map(self.before, own), Amount()), sum(map(self.after, own), Amount()))

    def blocking(self) -> list[Operator]:
        """The operators with work left per candidate, most expensive first; each has a `reason`."""
        stayed = [o for o in self.operators if o.candidate]
        return sorted(stayed, key=lambda o: (o.candidate.multiply_adds, o.candidate.bytes), reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "level": self.level,
            "workload": dataclasses.asdict(self.workload),
            "operators": [dataclasses.asdict(o) for o in self.operators],
            "modules": [dataclasses.asdict(m) for m in self.modules()],
            "total": dataclasses.asdict(self.total()),
            "blocking": [{"name": o.name, "reason": o.reason} for o in self.blocking()],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        return Report(data["level"], Workload(**data["workload"]), tuple(map(_operator, data["operators"])))

    # -- as text

    def __str__(self) -> str:
        n, r = self.workload.candidates, self.workload.requests
        title = f"level {self.level}, planned for {n} candidates of {r} request{'s' if r > 1 else ''} per call"
        return "\n".join(
            [
                title,
                "",
                *self._operator_lines(),
                "",
                *self._module_lines(),
                "",
                *self._blocking_lines(),
                "",
                FOOTNOTE,
            ]
        )

    def _operator_lines(self) -> list[str]:
        header = "operator|calls|module|rate|moved by|mul-adds before|request|each|bytes before|request|each"
        shown = [o for o in self.operators if o.works]
        folded = len(self.operators) - len(shown)
        lines = table(header.split("|"), [_operator_row(o) for o in shown], left=5)
        return [*lines, f"and {folded} without work (views, and work on weights alone)"] if folded else lines

    def _module_lines(self) -> list[str]:
        header = "module|mul-adds before|after|ratio|bytes before|after|ratio"
        rows = [_module_row(shorten(m.path or "(model)"), m) for m in self.modules()]
        return table(header.split("|"), [*rows, _module_row("all, per call", self.total())], left=1)

    def _blocking_lines(self) -> list[str]:
        stayed = self.blocking()
        lines = [
            f"  {shorten(o.name)}{f' in {shorten(o.module)}' if o.module else ''}: "
            f"{short(o.candidate.multiply_adds, zero='no')} mul-adds, {short(o.candidate.bytes)} bytes: {o.reason}"
            for o in stayed[:BLOCKING_SHOWN]
        ]
        more = len(stayed) - len(lines)
        return ["still computed per candidate:", *lines, *([f"  and {more} cheaper ones"] if more else [])]


def _operator(data: dict[str, Any]) -> Operator:
    amounts = {name: Amount(**data[name]) for name in ("before", "request", "candidate")}
    return Operator(**{**data, **amounts, "rates": tuple(data["rates"])})


def _operator_row(o: Operator) -> list[str]:
    amounts = (o.before, o.request, o.candidate)
    return [
        shorten(o.name),
        shorten(o.operator.removeprefix("aten.").removesuffix(".default")),
        shorten(o.module),
        " + ".join(o.rates),
        " ".join([*([o.level] if o.level else []), *(["(elsewhere)"] if o.elsewhere else [])]),
        *(short(a.multiply_adds) for a in amounts),
        *(short(a.bytes) for a in amounts),
    ]


def _module_row(name: str, m: Module) -> list[str]:
    madds, written = ((m.before.multiply_adds, m.after.multiply_adds), (m.before.bytes, m.after.bytes))
    return [name, *(cell for pair in (madds, written) for cell in (*map(short, pair), ratio(*pair)))]


def make_report(plan: Plan) -> Report:
    """The report of a plan, for the workload it was made for."""
    return Report(plan.asked.name.lower(), plan.workload, tuple(operators(plan)))
