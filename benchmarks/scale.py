"""How hoisting and calls grow with fields, depth, candidates and requests: `python benchmarks/scale.py [--quick]`.

Each point is a process of its own, so that its peak memory is its own. Writes dated JSON, Markdown and a plot.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from rankhoist.bench import interleaved
from rankhoist.bench.models import CrossLayers, DisentangledFields, layers
from rankhoist.bench.plots import COLOURS, pyplot
from rankhoist.bench.scenarios import Ids, Scenario
from rankhoist.capture import capture
from rankhoist.compiler.targets.machine import machine
from rankhoist.hoist import hoist_program

IDS, WIDTH = 100, 16
AXES = {
    "fields": [10, 30, 100, 300, 1000],
    "depth": [1, 2, 4, 8],
    "candidates": [10, 100, 1000, 5000, 20_000],
    "requests": [1, 4, 16, 64],
    "pieces": [1, 2, 3, 4],
}
QUICK = {
    "fields": [10, 30, 100], "depth": [1, 2], "candidates": [10, 100, 1000], "requests": [1, 4, 16], "pieces": [1, 2],
}  # fmt: skip
MEASURED = {
    "capture_seconds": "capture, s", "plan_seconds": "plan and emit, s", "hoisting_cpu_seconds": "both, CPU s",
    "prepare": "prepare, ms", "score": "score, ms",
    "eager": "original, ms", "state_kib": "state, KiB", "peak_mib": "peak memory, MiB",
}  # fmt: skip
RSS_PER_MIB = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
STEEP = 1.3  # a power above this, over the last three points, is named


@dataclass(frozen=True)
class Point:
    """A model and a call: nine fields of ten are context.

    `pieces` is 0, or the number of layers of another model: 13 + 5 fields of which pieces look at each other, so that
    its forms would grow with every layer.
    """

    fields: int = 100
    depth: int = 3
    candidates: int = 1000
    requests: int = 1
    pieces: int = 0


class IdRanker(nn.Module):
    """Ids, each an input of its own, through embeddings into a low-rank cross network and layers."""

    def __init__(self, context: int, fields: int, depth: int) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({f"field_{i}": nn.Embedding(IDS, WIDTH) for i in range(fields)})
        self.names = list(self.tables)
        self.context = context
        self.cross, self.top = CrossLayers(WIDTH * fields, depth, 256, rank=64), layers(256, 128, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        x = [self.tables[name](features[name]) for name in self.names]
        out: Tensor = self.top(torch.relu(self.cross(torch.cat(x[: self.context], 1), torch.cat(x[self.context :], 1))))
        return out


def subject(point: Point) -> Scenario:
    """The model of a point."""
    if point.pieces:
        model = functools.partial(DisentangledFields, 18, WIDTH, heads=2, depth=point.pieces)
        return Scenario("pieces", model, (13, WIDTH), (5, WIDTH))
    context = point.fields * 9 // 10
    names = [f"field_{i}" for i in range(point.fields)]
    sides = ({name: Ids(IDS) for name in own} for own in (names[:context], names[context:]))
    return Scenario("ids", lambda: IdRanker(context, point.fields, point.depth), *sides, one_dict=True)


def measure(point: Point) -> dict[str, Any]:
    """Hoisting time, times of a call, state and peak memory of one point; runs in a process of its own."""
    torch.set_num_threads(1)
    case = subject(point)
    model = case.model()
    context, candidate = case.sides(point.requests, point.candidates)
    start, started = time.perf_counter(), time.process_time()
    program = capture(model, case.inputs(4, 4), case.context_names)
    middle = time.perf_counter()
    hoisted = hoist_program(program)
    end, ended = time.perf_counter(), time.process_time()
    offsets = [point.candidates * r // point.requests for r in range(point.requests + 1)]
    counts = torch.tensor(offsets).diff()
    rows = {name: x.repeat_interleave(counts, 0) for name, x in context.items()}
    with torch.inference_mode():
        state = hoisted.prepare(context, point.candidates)
        expected, actual = model(*case.arguments(rows, candidate)), hoisted.score(state, candidate, offsets)
        error = float((actual - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{point}: differs by {error:.0e}, so not timed"
        times = interleaved({
            "eager": lambda: model(*case.arguments(rows, candidate)),
            "prepare": lambda: hoisted.prepare(context, point.candidates),
            "score": lambda: hoisted.score(state, candidate, offsets),
        }, seconds=2.0, rounds=5)  # fmt: skip
    return {
        **asdict(point), "capture_seconds": middle - start, "plan_seconds": end - middle,
        "hoisting_cpu_seconds": ended - started,
        **{name: t.median for name, t in times.items()}, "state_kib": state.bytes / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_PER_MIB,
        "error": error, "spread": {name: [t.low, t.high] for name, t in times.items()},
    }  # fmt: skip


def powers(rows: list[dict[str, Any]], axis: str) -> dict[str, float]:
    """The power of growth of each quantity over the last three points (slope of logarithms): 1 is linear."""
    sizes = np.log([row[axis] for row in rows[-3:]])
    return {m: float(np.polyfit(sizes, np.log([max(row[m], 1e-9) for row in rows[-3:]]), 1)[0]) for m in MEASURED}


def page(record: dict[str, Any], plot: str) -> str:
    """Markdown: a table per axis, and what grows faster than in proportion."""
    about = record["machine"]
    lines = [
        "# How hoisting and calls grow", "",
        f"{record['date']}, {about['processor']}, 1 thread, torch {about['torch']}, Python {about['python']}, float32. "
        f"`{record['command']}`", "",
        f"Unless an axis says otherwise: {asdict(Point())}; nine fields of ten are context, each an id of its own with "
        f"an embedding of {WIDTH}, into a cross network of rank 64. With `pieces`: so many layers of disentangled "
        "self-attention over 13 + 5 fields, whose heads are split off by a bare view. One model, hoisted for one "
        "request of 1000 candidates. Peak memory is that of the whole process, torch included.", "",
        f"![growth]({plot})", "",
    ]  # fmt: skip
    for axis, rows in record["axes"].items():
        lines += [f"## {axis.capitalize()}", "", f"| {axis} | " + " | ".join(MEASURED.values()) + " |"]
        lines += ["|" + "---:|" * (len(MEASURED) + 1)]
        lines += [f"| {row[axis]} | " + " | ".join(f"{row[m]:.3g}" for m in MEASURED) + " |" for row in rows]
        found = powers(rows, axis)
        lines += ["| power | " + " | ".join(f"{found[m]:.2f}" for m in MEASURED) + " |", ""]
        steep = [f"{MEASURED[m]} ({p:.2f})" for m, p in found.items() if p > STEEP]
        lines += [f"Faster than in proportion at the end: {', '.join(steep) or 'nothing'}.", ""]
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """A column per axis: seconds of hoisting above, milliseconds of calls in the middle, memory below."""
    plt = pyplot()
    bands = {
        "time, s": ["capture_seconds", "plan_seconds", "hoisting_cpu_seconds"],
        "time, ms": ["eager", "prepare", "score"],
        "memory": ["state_kib", "peak_mib"],
    }  # fmt: skip
    columns = len(record["axes"])
    figure, axes = plt.subplots(len(bands), columns, figsize=(3.3 * columns, 8), squeeze=False, layout="constrained")
    colours = [COLOURS[x] for x in ("eager", "linear", "full")]
    for column, (axis, rows) in enumerate(record["axes"].items()):
        for ax, (label, names) in zip(axes[:, column], bands.items(), strict=True):
            for name, colour, marker in zip(names, colours, "os^", strict=False):
                points = [r[axis] for r in rows], [r[name] for r in rows]
                ax.plot(*points, color=colour, marker=marker, label=MEASURED[name])
            ax.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
            ax.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only: about three minutes")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else AXES
    points = {axis: [Point(**{axis: size}) for size in sizes[axis]] for axis in options.axes}
    found: dict[Point, Any] = {}
    context = multiprocessing.get_context("spawn")
    for point in track(list(dict.fromkeys(p for own in points.values() for p in own)), "points"):
        with ProcessPoolExecutor(1, context) as alone:
            found[point] = alone.submit(measure, point).result()
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine(),
        "command": " ".join(["python", *sys.argv]),
        "axes": {axis: [found[p] for p in own] for axis, own in points.items()},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{record['date'][:10]}-scale{'-quick' if options.quick else ''}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, stem.with_suffix(".svg"))
    text = page(record, stem.with_suffix(".svg").name)
    stem.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
