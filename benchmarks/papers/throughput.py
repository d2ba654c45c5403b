"""RAD, Figure 2: requests per second of DLRM-style models as context or candidate fields grow.

Closed loop, a fixed number of requests in flight, one process with one thread, which serves them one after the other.
"vanilla" is level `expand`; "rank-aware" is level `first`, pairs and the layer that reads them; `full` is beside them.
Variants take turns. Fields are 128 wide; the layers are those of `flops.py`.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.papers import models
from benchmarks.papers.common import Options, Record, Reproduction, main, percent, progress, table
from benchmarks.papers.load import Call, closed_loop
from benchmarks.papers.subject import Subject, counted
from rankhoist.bench.plots import COLOURS, MARKERS

LEVELS = {"vanilla": "expand", "rank-aware": "first", "full": "full"}
N, IN_FLIGHT, ROUNDS = 500, 4, 5
# RAD gives the ends of both ranges and five gains each; we take five even steps.
GAINS = {"context": [13, 25, 83, 84, 105], "candidate": [13, 21, 12, 14, 7]}
POINTS = {"context": [(k, 4) for k in (8, 12, 16, 20, 24)], "candidate": [(8, m) for m in (4, 9, 14, 19, 24)]}


def measure(options: Options) -> Record:
    n = 100 if options.reduced else N
    chosen = {axis: own[::4] if options.reduced else own for axis, own in POINTS.items()}
    cells = dict.fromkeys(point for own in chosen.values() for point in own)
    points = [_point(k, m, n, options) for k, m in progress(cells, "models")]
    return {"candidates": n, "in_flight": IN_FLIGHT, "points": points}


def _point(k: int, m: int, n: int, options: Options) -> Record:
    """One model: requests per second and multiply-adds of every variant."""
    subject = Subject.of(lambda: models.dlrm(k, m), (k, models.WIDTH), (m, models.WIDTH))
    hoisted = {name: subject.at(level, n) for name, level in LEVELS.items()}
    rates = {} if options.counts else _rates({x: subject.call(h, n) for x, h in hoisted.items()}, options)
    work = {name: counted(h) for name, h in hoisted.items()}
    return {"context": k, "candidate": m, "multiply_adds": {x: w.of(n) for x, w in work.items()}, "rates": rates}


def _rates(calls: dict[str, Call], options: Options) -> Record:
    """Per variant: requests per second, the median of rounds in turn, and the lowest and highest."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            found[name].append(closed_loop(call, options.seconds / 2, IN_FLIGHT))
    return {name: {"median": statistics.median(own), "low": min(own), "high": max(own)} for name, own in found.items()}


def series(record: Record, axis: str) -> list[Record]:
    """The points of one curve."""
    return [p for p in record["points"] if (p["context"], p["candidate"]) in POINTS[axis]]


def gain(point: Record, variant: str, what: str = "rates") -> float:
    """Share by which a variant answers more requests than vanilla; of multiply-adds, by which vanilla needs more."""
    if what == "rates":
        return float(point["rates"][variant]["median"] / point["rates"]["vanilla"]["median"] - 1)
    return float(point[what]["vanilla"] / point[what][variant] - 1)


def tables(record: Record) -> dict[str, str]:
    return {f"{axis} fields": _table(record, axis) for axis in POINTS}


def _table(record: Record, axis: str) -> str:
    head = ["K", "M", "published gain", "rank-aware", "`full`", "requests/s: vanilla", "rank-aware", "`full`",
            "fewer multiply-adds: rank-aware", "`full`"]  # fmt: skip
    rows = []
    for point in series(record, axis):
        published = GAINS[axis][POINTS[axis].index((point["context"], point["candidate"]))]
        rates, new = point["rates"], list(LEVELS)[1:]
        gains = [percent(gain(point, x)) if rates else "-" for x in new]
        shown = [f"{rates[x]['median']:.1f}" if rates else "-" for x in LEVELS]
        work = [f"{1 + gain(point, x, 'multiply_adds'):.2f}x" for x in new]
        rows.append([point["context"], point["candidate"], f"+{published} %", *gains, *shown, *work])
    return table(head, rows, left=0)


def draw(plt: Any, record: Record) -> Any:
    """Requests per second against K, and against M."""
    if not record["timed"]:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, axis in zip(axes, POINTS, strict=True):
        own = series(record, axis)
        for variant, level in LEVELS.items():
            middle, low, high = ([p["rates"][variant][x] for p in own] for x in ("median", "low", "high"))
            ax.plot([p[axis] for p in own], middle, color=COLOURS[level], marker=MARKERS[level], label=variant)
            ax.fill_between([p[axis] for p in own], low, high, color=COLOURS[level], alpha=0.2)
        other = "M = 4" if axis == "context" else "K = 8"
        ax.set(xlabel=f"{axis} fields ({other})", ylabel="requests per second", ylim=(0, None))
        ax.legend()
    return figure


REPRODUCTION = Reproduction("throughput", "RAD, Figure 2: throughput", __doc__, measure, tables, draw)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
