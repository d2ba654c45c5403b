"""The report as one page: no network, no other file, and nothing in it runs but its own script.

The policy in its head allows the one style and the one script of this file by their hashes, so that a name that got
past the escaping would still be text.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from string import Template
from typing import Any

from rankhoist.report import sections
from rankhoist.report.certificate import Certificate
from rankhoist.report.markup import Element, clean, html, source_hash, tag
from rankhoist.report.outline import Box, Group, Subject, whole, with_sources
from rankhoist.report.record import Record
from rankhoist.report.sections import CHOICES
from rankhoist.report.summary import headline, summary
from rankhoist.report.svg import MEANINGS, NAMES, SIGNS, part, picture
from rankhoist.report.text import spelled

OLDER = "This file was saved by an older version and holds no graph: save the model again to see it here."


def to_html(report: Record, certificate: Certificate | None = None) -> str:
    """The page."""
    found = summary(report)
    style, script = part("picture.css") + part("page.css"), part("page.js")
    drawn, data = _pictures(report)
    subject = Subject.of(report)
    sentence = headline(found)
    allowed = f"style-src {source_hash(style)}; script-src {source_hash(script)}"
    return Template(part("page.html")).substitute(
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; {allowed}",
        style=style,
        script=script,
        title=html(tag("title", f"rankhoist: {sentence}")),
        headline=html(tag("h1", sentence)),
        subtitle=html(tag("p", _subtitle(report), class_="soft")),
        glance=html(sections.tiles(found), sections.whole_bar(found)),
        legend=html(sections.legend()),
        pictures=html(*drawn),
        costs=html(
            *(sections.costs(report.curves) if report.curves else [tag("p", OLDER)]), *sections.tuned(report.tuning)
        ),
        modules=html(sections.modules(report)),
        blocking=html(sections.blocking(subject, found)),
        items=html(*sections.items(report.items)),
        opaque=html(*sections.opaque(report.opaque)),
        choices=html(*sections.choices(subject)),
        certificate=html(*sections.certificate(certificate)),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _subtitle(report: Record) -> str:
    n, r = (spelled(count, word) for count, word in zip(_sizes(report), ("candidate", "request"), strict=True))
    return f"level {report.level}, {spelled(len(report.operators), 'operator')}, planned for {n} of {r} per call"


def _sizes(report: Record) -> tuple[int, int]:
    return report.workload.candidates, report.workload.requests


# -- pictures and what the script knows of them


def _pictures(report: Record) -> tuple[list[Element], dict[str, Any]]:
    """A picture for the model and for everything that opens, and their boxes and vertices as data."""
    if report.graph is None:
        return [tag("p", OLDER)], {}
    subject = Subject.of(report)
    names = {"": "model"}
    waiting: list[tuple[str, str, Group]] = [("p0", "", whole(subject))]
    drawn: list[Element] = []
    known: dict[str, Any] = {}
    boxes: dict[str, Any] = {}
    while waiting:
        key, parent, group = waiting.pop(0)
        title = group.title or group.path or names[""]
        known[key] = {"title": clean(title), "parent": parent}
        own = with_sources(subject, group)
        drawn.append(tag("div", picture(subject, own, key), id=key, class_="sheet", hidden="" if parent else None))
        for i, box in enumerate(own):
            opens = None
            if box.opens is not None:
                opens = f"p{len(known) + len(waiting)}"
                waiting.append((opens, key, box.opens))
            boxes[f"{key}-{i}"] = _box(subject, box, opens)
    vertices = [_vertex(subject, i) for i in range(len(subject.vertices))]
    words = {"names": NAMES, "meanings": MEANINGS, "signs": SIGNS, "choices": CHOICES}
    return drawn, {"pictures": known, "boxes": boxes, "vertices": vertices, **words}


def _box(subject: Subject, box: Box, opens: str | None) -> dict[str, Any]:
    return {
        "title": clean(box.title), "path": clean(box.path), "rate": box.rate, "vertices": box.vertices, "opens": opens,
        "outside": box.outside,
        "call": [asdict(a) for a in subject.amounts(box.vertices)] if len(box.vertices) > 1 else None,
    }  # fmt: skip


def _vertex(subject: Subject, number: int) -> dict[str, Any]:
    vertex, work = subject.vertices[number], subject.operator(number)
    told: dict[str, Any] = {
        "name": clean(vertex.name), "kind": vertex.kind, "operator": clean(vertex.operator),
        "module": clean(vertex.module), "rate": subject.rate([number]), "rates": vertex.rates,
        "shape": clean(" × ".join(vertex.shape)), "dtype": clean(vertex.dtype), "choice": vertex.choice,
        "rule": clean(vertex.rule), "weights": [clean(w) for w in vertex.weights], "reads": vertex.reads,
    }  # fmt: skip
    if work is not None:
        amounts = {name: asdict(getattr(work, name)) for name in ("before", "request", "candidate")}
        told |= {"level": work.level, "reason": work.reason and clean(work.reason), **amounts}
    return told
