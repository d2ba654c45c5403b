"""Requests per second and latency of the server, level `full` against `expand`: `python benchmarks/serving.py`.

One server holds the demo's DCNv2 at both levels. Its scores are compared with the original first. Then, round by round,
each level in turn: a closed loop, for what the server can do at most; and an open loop at 70 % of what `expand` can do,
for the latency that users would see at the same traffic. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from served import Subject, about, server, write_result

from rankhoist.bench.plots import COLOURS, pyplot
from rankhoist.lab.loadtest import Load, Options, loadtest
from rankhoist.lab.loadtest.plot import curve

LEVELS = ("expand", "full")
SHARE = 0.7  # of what `expand` answers at most: the rate of the open loop
SHORT = {"closed": "answers per second at most", "open": "latency at the same rate"}
Measure = Callable[[str, float | None], dict[str, Any]]
BATCHING = {"on": (), "off": ("--batch-candidates", "0")}


def both(measure: Measure, rounds: int) -> dict[str, Any]:
    """Both loops of both levels."""
    closed = _in_turn(measure, rounds, None)
    rate = SHARE * _median(closed["expand"], "requests_per_second")
    return {"rate": rate, "closed": closed, "open": _in_turn(measure, rounds, rate)}


def _in_turn(measure: Measure, rounds: int, rate: float | None) -> dict[str, list[Any]]:
    runs: dict[str, list[Any]] = {level: [] for level in LEVELS}
    for _ in range(rounds):
        for level in LEVELS:
            runs[level].append(measure(level, rate))
    return runs


def measured(
    url: str, requests: Path, options: argparse.Namespace, console: Console, level: str, rate: float | None
) -> dict[str, Any]:
    """One load test: of a closed loop where there is no rate."""
    load = Load(options.in_flight if rate is None else 256, rate, options.seconds, warm_up=1.0)
    return loadtest(Options(url, level, load, requests=requests), console)


def _median(runs: list[dict[str, Any]], name: str) -> float:
    """Of a figure, or of a percentile of the latency."""
    return statistics.median(run[name] if name in run else run["latency_ms"][name] for run in runs)


def page(record: dict[str, Any], plot: str) -> str:
    """Markdown: a table for each kind of loop."""
    machine = record["machine"]
    lines = [
        "# The server under load", "",
        f"{record['date']}, {machine['processor']}, torch {machine['torch']}, granian {machine['granian']}, Python "
        f"{machine['python']}. `{record['command']}`, {record['minutes']:.1f} minutes.", "",
        f"The demo's DCNv2, {record['workers']} workers with one thread each, binary v2 over loopback. The load "
        f"generator shares the processor's cores and took {record['generator_cores']:.2f} of them at most. Scores "
        f"were compared with the original model first. Medians of {record['rounds']} rounds in turn, "
        f"{record['seconds']:g} s each; latencies in ms, in an open loop from the moment when a request was due.", "",
    ]  # fmt: skip
    for kind, text in SHORT.items():
        lines += [f"## {kind.capitalize()} loop: {text}", ""]
        lines += ["| N | batching | level | answers/s | against `expand` | p50 | p90 | p99 | errors |"]
        lines += ["|---:|---|---|" + "---:|" * 6]
        for cell in record["cells"]:
            lines += [_row(cell, kind, level) for level in LEVELS]
        lines += [""]
    return "\n".join([*lines, f"![latency by percentile]({plot})", ""])


def _row(cell: dict[str, Any], kind: str, level: str) -> str:
    runs = cell[kind][level]
    ratio = _median(runs, "requests_per_second") / _median(cell[kind]["expand"], "requests_per_second")
    latencies = " | ".join(f"{_median(runs, p):.1f}" for p in ("p50", "p90", "p99"))
    errors = sum(sum(run["errors"].values()) for run in runs)
    return (
        f"| {cell['candidates']} | {cell['batching']} | `{level}` | {_median(runs, 'requests_per_second'):.1f} | "
        f"{ratio:.2f}x | {latencies} | {errors} |"
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Latency by percentile in the open loop, a picture per cell, a line per level and round."""
    plt = pyplot()
    cells = record["cells"]
    figure, axes = plt.subplots(1, len(cells), figsize=(4.2 * len(cells), 3.4), squeeze=False, layout="constrained")
    for ax, cell in zip(axes[0], cells, strict=True):
        for level in LEVELS:
            for i, run in enumerate(cell["open"][level]):
                curve(ax, run, level if i == 0 else "", COLOURS[level])
        ax.set_title(f"N = {cell['candidates']}, batching {cell['batching']}, {cell['rate']:.0f}/s", fontsize=9)
        ax.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", metavar="N", nargs="+", type=int, default=[1000])
    parser.add_argument("--batching", nargs="+", choices=list(BATCHING), default=["on"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=16, help="connections of the closed loop (default: 16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of one loop of one level (default: 12)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    console, start = Console(), time.monotonic()
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        with console.status("building the model"):
            subject = Subject.make()
            models = subject.save(Path(folder), LEVELS)
        for batching in options.batching:
            with server(models, options.workers, *BATCHING[batching]) as running:
                for candidates in options.candidates:
                    subject.check(running.url, LEVELS, candidates)
                    subject.write_requests(Path(folder) / "requests.json", candidates)
                    measure = partial(measured, running.url, Path(folder) / "requests.json", options, console)
                    cells.append({"batching": batching, "candidates": candidates, **both(measure, options.rounds)})
    runs = [run for cell in cells for kind in SHORT for level in LEVELS for run in cell[kind][level]]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": about(),
        "command": " ".join(["python", *sys.argv]), "workers": options.workers, "rounds": options.rounds,
        "seconds": options.seconds, "minutes": (time.monotonic() - start) / 60,
        "generator_cores": max(run["generator_cores"] for run in runs), "cells": cells,
    }  # fmt: skip
    write(record, options.out / f"{record['date'][:10]}-serving")
    return 0


def write(record: dict[str, Any], stem: Path) -> None:
    """JSON, plot and table; the table is printed too."""
    plot = stem.with_suffix(".svg")
    write_result(record, page(record, plot.name), stem)
    draw(record, plot)


if __name__ == "__main__":
    raise SystemExit(main())
