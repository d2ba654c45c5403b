"""A picture of boxes as SVG: for the page, and as a file of its own for documents."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from rankhoist.errors import ArtifactError
from rankhoist.report.layout import WIDTH, Edge, Lane, Place, laid_out
from rankhoist.report.markup import Element, tag, xml
from rankhoist.report.outline import Box, Subject, shown, whole
from rankhoist.report.record import Record
from rankhoist.report.text import short, shorten

SIGNS = {"weight": "■", "request": "●", "split": "◐", "pair": "◆", "item": "▲"}
NAMES = {"weight": "weights", "request": "request", "split": "split", "pair": "candidate", "item": "item"}
MEANINGS = {
    "weight": "once per model",
    "request": "once per request",
    "split": "a part of it once per request",
    "pair": "per candidate, reads both sides",
    "item": "per candidate, reads it alone",
}
TALL, LOW, FLAT = 58, 38, 26  # boxes with multiply-adds, without, and without a path either
TITLE, PATH = 19, 26  # characters that a box has room for
FOOT = 30  # below a picture that stands alone


def picture(subject: Subject, boxes: Sequence[Box], name: str = "") -> Element:
    """Boxes, laid out; `name` makes the numbers of its boxes known to a page (`data-box`)."""
    amounts = [_before_and_after(subject, box) for box in boxes]
    heights = [TALL if max(a) else LOW if box.path else FLAT for box, a in zip(boxes, amounts, strict=True)]
    layout = laid_out(boxes, heights)
    largest = max((before for before, _ in amounts), default=0)
    numbers = [f"{name}-{i}" if name else None for i in range(len(boxes))]
    drawn = [_box(subject, *given, largest) for given in zip(boxes, layout.places, amounts, numbers, strict=True)]
    return tag(
        "svg",
        tag("g", *(_lane(lane, layout.height) for lane in layout.lanes)),
        tag("g", *(_edge(edge, numbers) for edge in layout.edges), class_="edges", aria_hidden="true"),
        tag("g", *drawn),
        xmlns="http://www.w3.org/2000/svg",
        class_="picture",
        viewBox=f"0 0 {layout.width:g} {layout.height:g}",
        width=layout.width,
        height=layout.height,
        role="group",
        aria_label="the model's operators, by how often they run",
    )


def to_svg(report: Record) -> str:
    """The picture of a whole model as an SVG file.

    Raises:
        ArtifactError: the report holds no graph.
    """
    if report.graph is None:
        raise ArtifactError("a report saved by an older version holds no graph; save the model again")
    subject = Subject.of(report)
    boxes = shown(subject, whole(subject))
    made = picture(subject, boxes)
    width, height = (float(made.get(side, "0")) for side in ("width", "height"))
    note = "dashed: kept as a sum of products · bar: multiply-adds of the original, and what is left of them"
    made.append(tag("text", note, x=14, y=height + 18, class_="path"))
    made.set("height", f"{height + FOOT:g}")
    made.set("viewBox", f"0 0 {max(width, 560):g} {height + FOOT:g}")
    made.set("width", f"{max(width, 560):g}")
    made.insert(0, tag("style", part("picture.css")))
    made.insert(1, tag("rect", class_="paper", width="100%", height="100%"))
    return xml(made) + "\n"


def part(name: str) -> str:
    """A file beside this one."""
    return resources.files("rankhoist.report").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def _lane(lane: Lane, height: float) -> Element:
    return tag(
        "g",
        tag("rect", x=lane.x + 2, y=2, width=lane.width - 4, height=height - 4, rx=10),
        tag("text", f"{SIGNS[lane.rate]} {NAMES[lane.rate]}", x=lane.x + 14, y=20, class_="head"),
        tag("text", MEANINGS[lane.rate], x=lane.x + 14, y=36, class_="path"),
        class_=f"lane {lane.rate}",
    )


def _edge(edge: Edge, numbers: Sequence[str | None]) -> Element:
    """A line of points, its corners rounded by curves that leave and arrive upright."""
    points = edge.points
    line = f"M{points[0][0]:g} {points[0][1]:g}"
    for (_, y0), (x1, y1), i in zip(points, points[1:], range(len(points)), strict=False):
        x0, middle = points[i][0], (y0 + y1) / 2
        line += f"V{y1:g}" if x0 == x1 else f"C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
    return tag("path", d=line, data_from=numbers[edge.source], data_to=numbers[edge.target])


def _before_and_after(subject: Subject, box: Box) -> tuple[int, int]:
    """Multiply-adds of one call; those of a box from outside belong to another picture."""
    if box.outside:
        return 0, 0
    before, request, candidate = subject.amounts(box.vertices)
    return before.multiply_adds, (request + candidate).multiply_adds


def _box(subject: Subject, box: Box, place: Place, amounts: tuple[int, int], key: str | None, largest: int) -> Element:
    opens = box.opens is not None
    choices = set() if opens or box.outside else {subject.vertices[v].choice for v in box.vertices} - {""}
    words = f"{short(amounts[0], '0')} → {short(amounts[1], '0')} mul-adds" if max(amounts) else ""
    said = ". ".join(filter(None, [f"{box.title} {box.path}", f"{NAMES[box.rate]}: {MEANINGS[box.rate]}", words]))
    made = tag(
        "g",
        *([] if key else [tag("title", said)]),  # which a page shows beside the picture
        *_outline(box.rate, place.height, opens),
        tag("text", f"{SIGNS[box.rate]} {shorten(box.title, TITLE - 3 * opens)}", x=10, y=17, class_="name"),
        tag("text", shorten(box.path, PATH), x=10, y=31, class_="path"),
        class_=" ".join(["box", box.rate, *sorted(choices), *(["outside"] if box.outside else [])]),
        transform=f"translate({place.x:g} {place.y:g})",
        data_box=key,
        tabindex="0" if key else None,
        role="button" if key else None,
        aria_label=said,
    )
    if words:
        made.append(tag("text", words, x=10, y=45, class_="work"))
        made.extend(_bars(amounts, largest))
    if opens:
        made.append(tag("text", "+", x=WIDTH - 18, y=19, class_="plus"))
    return made


def _bars(amounts: tuple[int, int], largest: int) -> list[Element]:
    """Multiply-adds before and after, on the scale of the picture's largest box."""
    room = WIDTH - 20
    widths = [max(min(room * a / max(largest, 1), room), 1.0 if a else 0.0) for a in amounts]
    return [
        tag("rect", class_=kind, x=10, y=TALL - 8, width=width, height=4)
        for kind, width in zip(("before", "after"), widths, strict=True)
    ]


def _outline(rate: str, h: float, opens: bool) -> list[Element]:
    """Each rate has its own shape: round on the side of the request, cut corners for what reads items alone."""
    w, r = WIDTH, 14
    square = f"M0 0H{w}V{h}H0Z"
    turn = f"A{r} {r} 0 0 1"
    round_left = f"H{r}{turn} 0 {h - r}V{r}{turn} {r} 0Z"
    shapes = {
        "weight": square,
        "request": f"M{r} 0H{w - r}{turn} {w} {r}V{h - r}{turn} {w - r} {h}{round_left}",
        "split": f"M{r} 0H{w}V{h}{round_left}",
        "pair": square,
        "item": f"M9 0H{w - 9}L{w} 9V{h - 9}L{w - 9} {h}H9L0 {h - 9}V9Z",
    }
    made = [tag("path", d=shapes[rate], class_="shape")]
    if rate == "split":
        made.append(tag("path", d=f"M{w / 2 + 10:g} 1H{w - 1}V{h - 1}H{w / 2 - 10:g}Z", class_="other"))
    if opens:  # like a pile
        made.insert(0, tag("path", d=shapes[rate], class_="shape", transform="translate(4 4)"))
    return made
