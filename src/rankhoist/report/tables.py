"""The report as text: the plans, a table of operators, one of modules, and what stays per candidate."""

from __future__ import annotations

from rankhoist.report import tuning
from rankhoist.report.record import Module, Operator, Record
from rankhoist.report.text import ratio, short, shorten, spelled, table

BLOCKING_SHOWN = 10
REASONS_SHOWN = 3  # of each law

FOOTNOTE = """\
"before" is the original per candidate; "request" and "each" are the hoisted model per request and per candidate.
"(elsewhere)": what is left of its work counts in another line, that of an equal operator or of a later one that
evaluates the sum of products which it is kept as; products count for the matrix operator that they come from.
Work on weights alone is done once per model and is not counted. Bytes are those written."""


def to_text(report: Record) -> str:
    """All of it, in lines."""
    n, r = report.workload.candidates, report.workload.requests
    title = f"level {report.level}, planned for {n} candidates of {r} request{'s' if r > 1 else ''} per call"
    return "\n".join(
        [
            title,
            *plan_lines(report),
            *(
                f"{path} is kept as it is (opaque): verify tests that its rows are independent"
                for path in report.opaque
            ),
            *(["", *tuning.lines(report.tuning)] if report.tuning is not None else []),
            "",
            *_operator_lines(report),
            "",
            *_module_lines(report),
            "",
            *_blocking_lines(report),
            "",
            *_item_lines(report),
            *_law_lines(report),
            FOOTNOTE,
        ]
    )


def plan_lines(report: Record) -> list[str]:
    """From how many candidates on it is faster than the original, and by which plans."""
    if report.curves is None:
        return []
    plans = (f"from {s.first:,} level {s.level}" for s in report.curves.spans)
    return [f"{report.curves.verdict} Plans by candidates: {', '.join(plans)}."]


def _operator_lines(report: Record) -> list[str]:
    header = "operator|calls|module|rate|moved by|mul-adds before|request|each|bytes before|request|each"
    shown = [o for o in report.operators if o.works]
    folded = len(report.operators) - len(shown)
    lines = table(header.split("|"), [_operator_row(o) for o in shown], left=5)
    return [*lines, f"and {folded} without work (views, and work on weights alone)"] if folded else lines


def _module_lines(report: Record) -> list[str]:
    header = "module|mul-adds before|after|ratio|bytes before|after|ratio"
    rows = [_module_row(shorten(m.path or "(model)"), m) for m in report.modules()]
    return table(header.split("|"), [*rows, _module_row("all, per call", report.total())], left=1)


def _blocking_lines(report: Record) -> list[str]:
    stayed = report.blocking()
    lines = [
        f"  {shorten(o.name)}{f' in {shorten(o.module)}' if o.module else ''}: "
        f"{short(o.candidate.multiply_adds, zero='no')} mul-adds, {short(o.candidate.bytes)} bytes: {o.reason}"
        for o in stayed[:BLOCKING_SHOWN]
    ]
    more = len(stayed) - len(lines)
    return ["still computed per candidate:", *lines, *([f"  and {more} cheaper ones"] if more else [])]


def _item_lines(report: Record) -> list[str]:
    """The four rates of a call whose items have a store."""
    found = report.items
    if found is None:
        return []
    rows = [
        [rate, once, short(amount.multiply_adds), short(amount.bytes)]
        for rate, once, amount in (
            ("request", "per request", found.request),
            ("item", "per item, before all calls", found.item),
            ("pair", "per candidate", found.pair),
        )
    ]
    rows.insert(0, ["weight", "per model, before all calls", ".", "."])
    kept = [f"{shorten(k.name)} [{', '.join(k.shape)}] {k.dtype}, {k.bytes:,} bytes" for k in found.kept]
    return [
        f"with a store of items: {found.bytes:,} bytes of each, predicted {found.milliseconds:.3g} ms per call, "
        f"{found.milliseconds_without:.3g} without",
        *table(["rate", "computed once", "mul-adds", "bytes"], rows, left=2),
        *(f"  keeps {line}" for line in kept),
        "",
    ]


def _law_lines(report: Record) -> list[str]:
    """A line for each law, and one for each of the reasons why it was not applied."""
    lines = ["laws, how many operators each moved, and what others lacked:"] if report.laws else []
    for law in report.laws:
        guarded = ", for calls where it holds; another plan scores the others" if law.conditional else ""
        lines.append(f"  {law.name} (level {law.level}): {spelled(len(law.applied), 'operator')}{guarded}")
        reasons = list(law.declined.items())
        lines += [f"    not for {count}: {reason}" for reason, count in reasons[:REASONS_SHOWN]]
        lines += [f"    and {len(reasons) - REASONS_SHOWN} more reasons"] if len(reasons) > REASONS_SHOWN else []
    return [*lines, ""] if lines else []


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
