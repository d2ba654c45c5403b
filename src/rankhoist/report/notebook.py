"""What a notebook shows of a report and of a hoisted model."""

from __future__ import annotations

from rankhoist.report.markup import html, tag
from rankhoist.report.page import to_html
from rankhoist.report.record import Record
from rankhoist.report.summary import headline, summary

HEIGHT = "42rem"


def of_report(report: Record) -> str:
    """The page of `to_html`, in a frame of its own: its style and script reach nothing of the notebook's."""
    frame = f"width: 100%; height: {HEIGHT}; border: 1px solid #8884"
    return html(tag("iframe", srcdoc=to_html(report), sandbox="allow-scripts", style=frame, title="rankhoist report"))


def of_model(report: Record, plans: str) -> str:
    """What is saved in a sentence, and which plan scores how many candidates."""
    advice = "report() shows where the work went, operator by operator."
    return html(tag("div", tag("p", tag("b", headline(summary(report)))), tag("pre", plans), tag("p", advice)))
