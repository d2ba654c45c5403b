"""The parts of the page that are words and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rankhoist.report import tuning
from rankhoist.report.certificate import Certificate, shown
from rankhoist.report.markup import Element, table, tag
from rankhoist.report.outline import Subject, short_operator
from rankhoist.report.plot import plots
from rankhoist.report.record import Curves, Items, Module, Record
from rankhoist.report.summary import Reason, Summary
from rankhoist.report.svg import MEANINGS, NAMES, SIGNS
from rankhoist.report.text import percent, ratio, short, spaced, spelled
from rankhoist.report.tuning import Tuning

FIRST = 12  # rows of a long table; the others unfold
REASONS = 3
BAR = 240.0


# -- at a glance


def tiles(found: Summary) -> Element:
    """What is per request, what is per candidate, what blocks the rest."""
    request = [
        tag("p", f"{spaced(found.request)} {found.unit}", class_="number"),
        tag(
            "p", f"{percent(found.request, found.after)} of what is left to do in a call, paid once for all candidates."
        ),
    ]
    alone = f", of them {percent(found.item, found.candidate)} on candidate inputs alone (▲)" if found.item else ""
    each = spaced(found.candidate // found.candidates)
    candidate = [
        tag("p", f"{spaced(found.candidate)} {found.unit}", class_="number"),
        tag("p", f"{each} for each of {spelled(found.candidates, 'candidate')}{alone}."),
    ]
    blocks = [_block(found, reason) for reason in found.reasons[:REASONS] if reason.work]
    more = len(found.reasons) - len(blocks)
    rest = [tag("ol", *blocks), *([tag("p", f"and {spelled(more, 'other reason')}, listed below")] if more > 0 else [])]
    return tag(
        "div",
        _tile("request", f"{SIGNS['request']} once per request", request),
        _tile("pair", f"{SIGNS['pair']} per candidate", candidate),
        _tile(
            "blocks", "what blocks the rest", rest if blocks else [tag("p", "nothing: no work stays per candidate.")]
        ),
        class_="tiles",
    )


def _block(found: Summary, reason: Reason) -> Element:
    places = [f"{name or '(model)'} {percent(work, found.candidate)}" for name, work in reason.modules[:REASONS]]
    more = ", …" if len(reason.modules) > REASONS else ""
    words = f" {reason.text}, in {spelled(reason.operators, 'operator')}: {', '.join(places)}{more}"
    return tag("li", tag("b", percent(reason.work, found.candidate)), words)


def _tile(kind: str, title: str, inside: Iterable[Element]) -> Element:
    return tag("section", tag("h3", title), *inside, class_=f"tile {kind}")


def whole_bar(found: Summary) -> Element:
    """Before and after as two bars on one scale."""
    largest = max(found.before, found.after, 1)
    after = [("request", found.request), ("item", found.item), ("pair", found.pair)]
    x, rects = 0.0, []
    for kind, amount in after:
        width = 1000 * amount / largest
        said = tag("title", f"{NAMES[kind]}: {amount:,}")
        rects.append(tag("rect", said, class_=kind, x=x, y=26, width=width, height=18))
        x += width
    parts = " + ".join(f"{SIGNS[kind]} {NAMES[kind]} {spaced(amount)}" for kind, amount in after if amount)
    before = tag("rect", class_="before", x=0, y=0, width=1000 * found.before / largest, height=18)
    bars = tag("svg", before, *rects, viewBox="0 0 1000 44", preserveAspectRatio="none", class_="whole",
               role="img", aria_label=f"{found.unit} before and after")  # fmt: skip
    return tag(
        "figure",
        tag("figcaption", f"original: {spaced(found.before)}, all of it per candidate"),
        bars,
        tag("figcaption", f"hoisted: {spaced(found.after)}" + (f" = {parts}" if parts else "")),
    )


def legend() -> Element:
    """Colours, signs and shapes."""
    entries = [tag("li", tag("span", SIGNS[r], class_=f"key {r}"), f" {NAMES[r]}: {MEANINGS[r]}") for r in SIGNS]
    entries.append(tag("li", tag("span", class_="key pushed"), " dashed: pushed on, kept as a sum of products"))
    entries.append(tag("li", tag("span", class_="key materialised"), " thick: materialised, evaluated at once"))
    return tag("ul", *entries, class_="legend")


# -- cost against N


def costs(curves: Curves) -> list[Element]:
    """Plots, and the break-even points in words."""
    plans = [tag("li", f"from {s.first:,}: level {s.level} (plan {s.plan})") for s in curves.spans]
    requests = spelled(curves.requests, "request")
    return [
        tag("p", tag("b", curves.verdict), f" {requests} per call, by the profile of {curves.machine}."),
        tag("div", *plots(curves), class_="plots"),
        tag("p", "■ original   ● hoisted; a dotted line is a break-even point, where another plan takes over:"),
        tag("ol", *plans, class_="spans"),
    ]


def tuned(found: Tuning | None) -> list[Element]:
    """What was measured, in place of predictions."""
    if found is None:
        return []
    tried = [tag("li", f"{p.candidates:,} of {p.requests:,}: {tuning.others(p)}") for p in found.points]
    return [
        tag("p", tuning.title(found)),
        _folded(tuning.HEADER, [tuning.row(p) for p in found.points], words=1),
        tag("details", tag("summary", "tried as well"), tag("ul", *tried)),
    ]


# -- tables


def modules(report: Record) -> Element:
    """Work before and after by module, the largest first."""
    found = [m for m in report.modules() if m.before or m.after]
    found.sort(key=lambda m: (m.before.multiply_adds, m.before.bytes), reverse=True)
    largest = max((max(m.before.multiply_adds, m.after.multiply_adds) for m in found), default=0)
    header = ["module", "multiply-adds", "before", "after", "ratio", "bytes before", "after", "ratio"]
    return _folded(header, [_module(m, largest) for m in found], words=2)


def _module(m: Module, largest: int) -> list[Element | str]:
    madds, written = ((m.before.multiply_adds, m.after.multiply_adds), (m.before.bytes, m.after.bytes))
    bars = [
        tag("rect", class_=kind, x=0, y=y, width=BAR * amount / max(largest, 1), height=6)
        for kind, y, amount in zip(("before", "after"), (0, 8), madds, strict=True)
    ]
    picture = tag("svg", *bars, viewBox=f"0 0 {BAR:g} 14", class_="bars", aria_hidden="true")
    return [m.path or "(model)", picture, *(cell for p in (madds, written) for cell in (*map(short, p), ratio(*p)))]


def blocking(subject: Subject, found: Summary) -> Element:
    """What still runs per candidate, most expensive first."""
    numbers = {v.name: i for i, v in enumerate(subject.vertices)}
    header = ["operator", "module", "why it stays", "mul-adds each", "share", "bytes each"]
    unit = found.unit.replace("-", "_")
    total = found.candidate / found.candidates
    rows: list[list[Element | str]] = []
    for o in subject.report.blocking():
        share = percent(getattr(o.candidate, unit), total)
        name = _link(o, numbers.get(o.name))
        rows.append([name, o.module, o.reason or "", short(o.candidate.multiply_adds), share, short(o.candidate.bytes)])
    return _folded(header, rows, words=3)


def items(found: Items | None) -> list[Element]:
    """Calls whose items have a store: what is computed at each rate, and what is kept of an item."""
    if found is None:
        return []
    rates = [("request", "per request", found.request), ("item", "per item, before all calls", found.item),
             ("pair", "per candidate: what remains", found.pair)]  # fmt: skip
    work: list[list[Element | str]] = [
        [tag("span", SIGNS[rate], class_=f"key {rate}"), once, short(a.multiply_adds), short(a.bytes)]
        for rate, once, a in rates
    ]
    kept: list[list[Element | str]] = [
        [k.name, " × ".join(k.shape) or "1 value", k.dtype, f"{k.bytes:,}", percent(k.bytes, found.bytes)]
        for k in found.kept
    ]
    said = (
        f"A store keeps {found.bytes:,} bytes of each item, of {found.room:,} that it may. A call is predicted to take "
        f"{found.milliseconds:.3g} ms with it, and {found.milliseconds_without:.3g} ms without."
    )
    inside = [
        tag("h2", "With a store of items"),
        tag("p", said),
        _folded(["", "computed once", "multiply-adds", "bytes"], work, words=2),
        tag("p", "What it keeps, and a call looks up:"),
        _folded(["value", "of an item", "dtype", "bytes", "share"], kept, words=3),
    ]
    return [tag("section", *inside, id="items")]


def opaque(paths: Sequence[str]) -> list[Element]:
    """Modules that are kept as they are."""
    if not paths:
        return []
    said = (
        "These modules are called as they are, by the hoisted model as by the original. That they compute every row by "
        "itself is what the caller said: rankhoist.verify tests it, and nothing proves it. A file holds their weights, "
        "and needs the modules again to be loaded."
    )
    listed = tag("ul", *(tag("li", path) for path in paths))
    return [tag("section", tag("h2", "Kept as they are"), tag("p", said), listed, id="opaque")]


def choices(subject: Subject) -> list[Element]:
    """What was pushed on and what was materialised, and why."""
    rows: dict[str, list[list[Element | str]]] = {"pushed": [], "materialised": []}
    for i, v in enumerate(subject.vertices):
        if v.choice:
            rows[v.choice].append([_link(v, i), short_operator(v.operator), v.module, v.rule])
    made = []
    for choice, own in rows.items():
        words = f" {spelled(len(own), 'operator')}: {CHOICES[choice]}."
        made.append(tag("p", tag("span", class_=f"key {choice}"), " ", tag("b", choice), words))
        if own:
            made.append(_folded(["operator", "calls", "module", "law"], own, words=4))
    return made


CHOICES = {
    "pushed": "its result stays a sum of products, whose parts run at their own rates; a later operator evaluates it",
    "materialised": "evaluated at once, which is predicted to be faster here than to pass the sum of products on",
    "": "",
}


def _link(named: object, number: int | None) -> Element | str:
    """A name that shows its operator in the picture."""
    name = str(getattr(named, "name", ""))
    return name if number is None else tag("button", name, type="button", class_="show", data_vertex=number)


def _folded(header: Sequence[str], rows: Sequence[Sequence[Element | str]], words: int) -> Element:
    made = [table(header, rows[:FIRST], words)]
    if len(rows) > FIRST:
        summary = tag("summary", f"{spelled(len(rows) - FIRST, 'more row')}")
        made.append(tag("details", summary, table(header, rows[FIRST:], words)))
    return tag("div", *made)


# -- the certificate


def certificate(found: Certificate | None) -> list[Element]:
    """What was compared, and how close it came."""
    if found is None:
        advice = "No certificate came with this report: rankhoist.verify(hoisted, model) makes one."
        return [tag("p", advice)]
    return shown(found)
