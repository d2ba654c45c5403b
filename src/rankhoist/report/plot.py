"""Cost against the number of candidates, on logarithmic axes, as SVG for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankhoist.report.markup import Element, tag
from rankhoist.report.record import Curves
from rankhoist.report.text import short

WIDTH, HEIGHT = 520.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 26.0, 44.0
MARK = 2.6


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Powers of ten."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        return [10.0**i for i in range(first, last + 1)]


def plots(curves: Curves) -> list[Element]:
    """Predicted time, and multiply-adds."""
    original, chosen = curves.original, curves.chosen
    return [
        _plot(curves, "predicted time of a call, ms", original.milliseconds, chosen.milliseconds, _time),
        _plot(curves, "multiply-adds of a call", original.multiply_adds, chosen.multiply_adds, lambda v: short(int(v))),
    ]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:g}" if milliseconds >= 0.001 else f"{milliseconds:.0e}"


def _plot(
    curves: Curves, title: str, original: Sequence[float], chosen: Sequence[float], worded: Callable[[float], str]
) -> Element:
    """Two lines, and where another plan takes over."""
    above = [v for v in (*original, *chosen) if v > 0] or [1.0]
    x = Axis(curves.candidates[0], curves.candidates[-1], LEFT, WIDTH - RIGHT)
    y = Axis(min(above) / 1.5, max(above) * 1.5, HEIGHT - BOTTOM, TOP)
    return tag(
        "svg",
        tag("text", title, x=LEFT, y=14, class_="head"),
        *_axes(x, y, worded),
        *_spans(curves, x),
        *_line("original", x, y, curves.candidates, original),
        *_line("chosen", x, y, curves.candidates, chosen),
        *_points(curves, x, y, original, chosen, title),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        class_="plot",
        role="img",
        aria_label=f"{title}, against candidates per call, of the original and of the hoisted model",
    )


def _axes(x: Axis, y: Axis, worded: Callable[[float], str]) -> list[Element]:
    made = [tag("line", class_="grid", x1=x(v), x2=x(v), y1=y.start, y2=y.end) for v in x.ticks]
    made += [tag("line", class_="grid", x1=x.start, x2=x.end, y1=y(v), y2=y(v)) for v in y.ticks]
    made += [tag("text", short(int(v)), class_="tick", x=x(v), y=y.start + 16, text_anchor="middle") for v in x.ticks]
    made += [tag("text", worded(v), class_="tick", x=x.start - 7, y=y(v) + 4, text_anchor="end") for v in y.ticks]
    middle = (x.start + x.end) / 2
    return [*made, tag("text", "candidates per call, N", class_="tick", x=middle, y=HEIGHT - 8, text_anchor="middle")]


def _spans(curves: Curves, x: Axis) -> list[Element]:
    """A line where another plan takes over, with the level of the one after it."""
    made = []
    for span in curves.spans:
        at = x(max(span.first, x.low))
        if span.first > x.low:
            made.append(tag("line", class_="break", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM))
        said, upright = f"{span.level}, from {span.first:,}", f"rotate(-90 {at + 11:g} {TOP + 4:g})"
        made.append(tag("text", said, class_="tick", x=at + 11, y=TOP + 4, transform=upright, text_anchor="end"))
    return made


def _line(kind: str, x: Axis, y: Axis, counts: Sequence[int], values: Sequence[float]) -> list[Element]:
    """Squares for the original, discs for the plans: colours are not all that tells them apart."""
    places = [(x(n), y(v)) for n, v in zip(counts, values, strict=True)]
    line = tag("polyline", class_=kind, points=" ".join(f"{a:g},{b:g}" for a, b in places))
    if kind == "original":
        return [line, *(tag("rect", class_=kind, x=a - MARK, y=b - MARK, width=2 * MARK, height=2 * MARK) for a, b in places[::2])]  # fmt: skip # noqa: E501
    return [line, *(tag("circle", class_=kind, cx=a, cy=b, r=MARK) for a, b in places[::2])]


def _points(
    curves: Curves, x: Axis, y: Axis, original: Sequence[float], chosen: Sequence[float], title: str
) -> list[Element]:
    """What the mouse finds: both values of a number of candidates."""
    unit = " ms" if title.endswith("ms") else " multiply-adds"
    return [
        tag("circle", tag("title", f"{n:,} candidates: {c:,.4g}{unit} instead of {o:,.4g}"),
            class_="spot", cx=x(n), cy=y(c), r=8)
        for n, o, c in zip(curves.candidates, original, chosen, strict=True)
    ]  # fmt: skip
