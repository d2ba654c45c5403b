"""The report: what a plan does with every captured operator, added up per module and in all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankhoist.compiler.algebra.ir import Workload
from rankhoist.compiler.plan import Plan, Plans, single
from rankhoist.errors import ArtifactError
from rankhoist.report.certificate import Certificate
from rankhoist.report.make.curves import Curves, make_curves
from rankhoist.report.make.graph import Graph, make_graph
from rankhoist.report.make.operators import Amount, Operator, operators
from rankhoist.report.plain import decoded
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
    """What a plan does with every captured operator, for one workload; `str(report)` is a table.

    `graph` and `curves` are None in a file of an older version.
    """

    level: str
    workload: Workload
    operators: tuple[Operator, ...]
    graph: Graph | None = None
    curves: Curves | None = None

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
            **dataclasses.asdict(self),
            "modules": [dataclasses.asdict(m) for m in self.modules()],
            "total": dataclasses.asdict(self.total()),
            "blocking": [{"name": o.name, "reason": o.reason} for o in self.blocking()],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`.

        Raises:
            ArtifactError: the data is none that `to_dict` makes.
        """
        report: Report = decoded(Report, data)
        if min(report.workload.candidates, report.workload.requests) < 1:
            raise ArtifactError(f"its report is for {report.workload}")
        for part in (report.graph, report.curves):
            if part is not None:
                part.check()
        return report

    # -- as a page, a picture and text

    def to_html(self, certificate: Certificate | None = None) -> str:
        """One page that needs nothing else: the picture of the graph, costs, tables, and the certificate if given."""
        from rankhoist.report.page import to_html  # which draws reports, and so imports this

        return to_html(self, certificate)

    def to_svg(self) -> str:
        """The picture alone, for documents.

        Raises:
            ArtifactError: the report is of a file of an older version, which holds no graph.
        """
        from rankhoist.report.svg import to_svg

        return to_svg(self)

    def save_html(self, path: str | os.PathLike[str], certificate: Certificate | None = None) -> None:
        """`to_html` as a file."""
        Path(path).write_text(self.to_html(certificate), encoding="utf-8")

    def save_svg(self, path: str | os.PathLike[str]) -> None:
        """`to_svg` as a file."""
        Path(path).write_text(self.to_svg(), encoding="utf-8")

    def __str__(self) -> str:
        n, r = self.workload.candidates, self.workload.requests
        title = f"level {self.level}, planned for {n} candidates of {r} request{'s' if r > 1 else ''} per call"
        return "\n".join(
            [
                title,
                *self._plan_lines(),
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

    def _plan_lines(self) -> list[str]:
        if self.curves is None:
            return []
        plans = (f"from {s.first:,} level {s.level}" for s in self.curves.spans)
        return [f"{self.curves.verdict} Plans by candidates: {', '.join(plans)}."]

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


def make_report(plans: Plans[Plan] | Plan) -> Report:
    """The report of the main plan, for the workload it was made for."""
    plans = plans if isinstance(plans, Plans) else single(plans)
    plan = plans.main
    return Report(
        plan.asked.name.lower(), plan.workload, tuple(operators(plan)), make_graph(plan), make_curves(plans)
    )  # fmt: skip
