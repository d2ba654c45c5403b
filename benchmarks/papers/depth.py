"""Beyond the papers: exact depth. DCNv2 of 1 to 6 cross layers, context 50 to 95 % of 1024 columns, one score.

Level `first` is what RAD can do to it, `full` is the exact rewrite of the same trained model, and rDCN, hoisted, is the
other model that RAD trains in its place. Operations and time of one request. Where does the exact rewrite of the
unmodified model reach what rDCN gets by changing it: nine tenths of what rDCN saves?
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.papers.common import Options, Record, Reproduction, main, progress, table, timed
from benchmarks.papers.models import Joined
from benchmarks.papers.subject import Subject
from rankhoist.bench.plots import COLOURS
from rankhoist.nn import RDCN, CrossNetV2

WIDTH = 1024
MORE = 10  # so many times N is counted too
VARIANTS = {"first": "first", "full": "full", "rDCN": "request"}  # and their colours
REACHED = 0.9  # of the share of operations, or time, that rDCN saves


@dataclass(frozen=True)
class Size:
    """Cross layers, shares of context in percent, candidates."""

    layers: Sequence[int]
    shares: Sequence[int]
    candidates: int


FULL = Size([1, 2, 3, 4, 5, 6], [50, 60, 70, 80, 90, 95], 1000)
REDUCED = Size([1, 3], [50, 90], 200)


class Scored(nn.Module):
    """One score of a cross network's result."""

    def __init__(self, cross: nn.Module) -> None:
        super().__init__()
        self.cross, self.head = cross, nn.Linear(WIDTH, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.head(self.cross(context, candidate))
        return out


def measure(options: Options) -> Record:
    size = REDUCED if options.reduced else FULL
    cells = [(depth, share, size.candidates) for depth in size.layers for share in size.shares]
    return {
        "width": WIDTH,
        "candidates": size.candidates,
        "cells": [_cell(*c, options) for c in progress(cells, "cells")],
    }


def _cell(depth: int, share: int, n: int, options: Options) -> Record:
    context = WIDTH * share // 100
    sides = (context,), (WIDTH - context,)
    plain = Subject.of(lambda: Scored(Joined(CrossNetV2(WIDTH, depth))), *sides)
    changed = Subject.of(lambda: Scored(RDCN(context, WIDTH - context, depth)), *sides)
    work, calls = {}, {"original": plain.original(n)}
    for m in (n, MORE * n):
        hoisted = {level: plain.at(level, m) for level in ("expand", "first", "full")} | {"rDCN": changed.at("full", m)}
        work[str(m)] = {name: h.plan.cost.multiply_adds for name, h in hoisted.items()}
        if m == n:
            calls |= {x: (changed if x == "rDCN" else plain).call(hoisted[x], n) for x in VARIANTS}
    return {"layers": depth, "share": share, "multiply_adds": work, "time": timed(calls, options)}


# -- what a record says


def measured(record: Record) -> list[str]:
    """Operations for both numbers of candidates, and time if it was taken."""
    counts = list(record["cells"][0]["multiply_adds"])
    return [*(f"operations, N = {n}" for n in counts), *([f"time, N = {counts[0]}"] if record["timed"] else [])]


def gain(cell: Record, variant: str, what: str) -> float:
    """How many times less than DCNv2 as it is."""
    if what.startswith("time"):
        return float(cell["time"]["original"]["median"] / cell["time"][variant]["median"])
    work = cell["multiply_adds"][what.rpartition(" ")[2]]
    return float(work["expand"] / work[variant])


def reaches(cell: Record, what: str) -> bool:
    """Whether `full` saves nearly as much as rDCN."""
    saved = {variant: 1 - 1 / gain(cell, variant, what) for variant in ("full", "rDCN")}
    return saved["full"] >= REACHED * saved["rDCN"]


def reached(record: Record, what: str) -> dict[int, int | None]:
    """Per depth, the smallest share of context from which on `full` reaches rDCN."""
    found: dict[int, int | None] = {}
    for depth, own in _by_depth(record).items():
        falling = itertools.takewhile(lambda c: reaches(c, what), sorted(own, key=lambda c: -c["share"]))
        found[depth] = min((c["share"] for c in falling), default=None)
    return found


def _by_depth(record: Record) -> dict[int, list[Record]]:
    cells = record["cells"]
    return {depth: [c for c in cells if c["layers"] == depth] for depth in sorted({c["layers"] for c in cells})}


def tables(record: Record) -> dict[str, str]:
    head = ["`full` reaches rDCN from context", *(f"L = {depth}" for depth in _by_depth(record))]
    rows = [
        [what, *("nowhere" if share is None else f"{share} %" for share in reached(record, what).values())]
        for what in measured(record)
    ]
    return {"reached": table(head, rows)} | {what: _gains(record, what) for what in measured(record)}


def _gains(record: Record, what: str) -> str:
    """A row per depth, a column per share."""
    cells = _by_depth(record)
    shares = [c["share"] for c in next(iter(cells.values()))]
    rows = [
        [depth, *(" / ".join(f"{gain(c, variant, what):.2f}" for variant in VARIANTS) for c in own)]
        for depth, own in cells.items()
    ]
    return table(["L: first / full / rDCN", *(f"context {share} %" for share in shares)], rows)


def draw(plt: Any, record: Record) -> Any:
    """Times less against the context's share, a picture per depth."""
    cells, rows = _by_depth(record), measured(record)
    figure, axes = plt.subplots(
        len(rows), len(cells), figsize=(2.6 * len(cells), 2.8 * len(rows)), sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, what in zip(axes, rows, strict=True):
        for ax, (depth, own) in zip(row, cells.items(), strict=True):
            for (variant, colour), marker in zip(VARIANTS.items(), "DPs", strict=True):
                values = [gain(c, variant, what) for c in own]
                ax.plot([c["share"] for c in own], values, color=COLOURS[colour], marker=marker, markersize=4,
                        label=variant)  # fmt: skip
            ax.set(title=f"L = {depth}", yscale="log", xlabel="context, % of columns")
        row[0].set(ylabel=f"DCNv2 / variant:\n{what}")
    axes[0][0].legend()
    return figure


REPRODUCTION = Reproduction("depth", "Beyond: exact depth", __doc__, measure, tables, draw)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
