"""Where the boxes of a picture stand: a column per rate, a row per step from the inputs; linear in boxes and edges.

Columns by rate are what the picture is for: what is left runs once per request, what is right once per candidate. That
is why no library draws it: the usual layered drawing places boxes by their neighbours and would mix the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankhoist.report.outline import Box

LANES = ("weight", "request", "split", "pair", "item")
WIDTH = 168  # of a box
GAP, ROW_GAP = 14, 24  # between boxes of a row, and between rows
MARGIN, HEAD = 14, 46  # around a lane, and above the first row
ABREAST = 3  # boxes of one lane and row; more go below
TRACK = 7  # between lines that run side by side


@dataclass(frozen=True)
class Place:
    """A box's upper left corner, and its height."""

    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Lane:
    """A column: the boxes of one rate."""

    rate: str
    x: float
    width: float


@dataclass(frozen=True)
class Edge:
    """From box to box as a line of points; a long one runs beside the boxes that it passes."""

    source: int
    target: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layout:
    """Places by number of box."""

    width: float
    height: float
    lanes: tuple[Lane, ...]
    places: tuple[Place, ...]
    edges: tuple[Edge, ...]


def laid_out(boxes: Sequence[Box], heights: Sequence[float]) -> Layout:
    """Lanes, places and edges of boxes that are so high."""
    rows = _rows(boxes)
    cells: dict[tuple[int, str], list[int]] = {}
    for number, row in enumerate(rows):
        cells.setdefault((row, boxes[number].rate), []).append(number)
    tracks = _tracks(boxes, rows)
    abreast = {rate: max(min(len(c), ABREAST) for (_, r), c in cells.items() if r == rate) for _, rate in cells}
    lanes: list[Lane] = []
    x = 0.0
    for rate in (rate for rate in LANES if rate in abreast):
        beside = TRACK * len({t for r, t in tracks.values() if r == rate})
        width = abreast[rate] * (WIDTH + GAP) - GAP + 2 * MARGIN + beside
        lanes.append(Lane(rate, x, width))
        x += width
    places, height = _places(cells, lanes, abreast, heights)
    edges = [_edge(s, t, places, rows, lanes, tracks) for t, box in enumerate(boxes) for s in box.reads]
    return Layout(x, height, tuple(lanes), tuple(places), tuple(edges))


def _rows(boxes: Sequence[Box]) -> list[int]:
    """The longest way from the inputs; what reads nothing stands just above its first reader."""
    rows: list[int] = []
    for box in boxes:
        rows.append(1 + max((rows[r] for r in box.reads), default=-1))
    first: dict[int, int] = {}
    for number, box in enumerate(boxes):
        for r in box.reads:
            first[r] = min(first.get(r, rows[number]), rows[number])
    return [
        row if box.reads else max(first.get(i, 1) - 1, 0) for i, (box, row) in enumerate(zip(boxes, rows, strict=True))
    ]


def _tracks(boxes: Sequence[Box], rows: Sequence[int]) -> dict[int, tuple[str, int]]:
    """Source of long edges -> the lane beside whose boxes they run, and a track there that is free for so long."""
    ends: dict[int, int] = {}
    for target, box in enumerate(boxes):
        for source in box.reads:
            if rows[target] - rows[source] > 1:
                ends[source] = max(ends.get(source, 0), rows[target])
    busy: dict[str, list[int]] = {}  # lane -> the row up to which each of its tracks is taken
    found: dict[int, tuple[str, int]] = {}
    for source in sorted(ends, key=lambda s: rows[s]):
        lane = busy.setdefault(boxes[source].rate, [])
        track = next((i for i, until in enumerate(lane) if until <= rows[source]), len(lane))
        lane[track : track + 1] = [ends[source]]
        found[source] = boxes[source].rate, track
    return found


def _places(
    cells: dict[tuple[int, str], list[int]], lanes: Sequence[Lane], abreast: dict[str, int], heights: Sequence[float]
) -> tuple[list[Place], float]:
    """Boxes of a row and a lane side by side, in the middle of the space for them."""
    left = {lane.rate: lane.x + lane.width - MARGIN - abreast[lane.rate] * (WIDTH + GAP) + GAP for lane in lanes}
    places: dict[int, Place] = {}
    top = float(HEAD)
    for row in sorted({row for row, _ in cells}):
        bottom = top
        for rate, numbers in ((rate, own) for (at, rate), own in cells.items() if at == row):
            y = top
            for line in (numbers[i : i + ABREAST] for i in range(0, len(numbers), ABREAST)):
                x = left[rate] + (abreast[rate] - len(line)) * (WIDTH + GAP) / 2
                for i, number in enumerate(line):
                    places[number] = Place(x + i * (WIDTH + GAP), y, heights[number])
                y += max(heights[number] for number in line) + GAP
            bottom = max(bottom, y - GAP)
        top = bottom + ROW_GAP
    return [places[i] for i in range(len(heights))], top - ROW_GAP + MARGIN


def _edge(
    source: int, target: int, places: Sequence[Place], rows: Sequence[int], lanes: Sequence[Lane],
    tracks: dict[int, tuple[str, int]],
) -> Edge:  # fmt: skip
    a, b = places[source], places[target]
    start, end = (a.x + WIDTH / 2, a.y + a.height), (b.x + WIDTH / 2, b.y)
    if rows[target] - rows[source] <= 1:
        return Edge(source, target, (start, end))
    rate, track = tracks[source]
    x = next(lane.x for lane in lanes if lane.rate == rate) + MARGIN / 2 + TRACK * track
    return Edge(source, target, (start, (x, start[1] + ROW_GAP / 2), (x, end[1] - ROW_GAP / 2), end))
