"""Answers per second and latency of a server with a catalogue of items, against one that is sent all features.

    python benchmarks/catalogue_serving.py [--candidates 1000] [--rounds 3] [--seconds 6] [--out benchmarks/results]

One server, two workers, holds the demo's DCNv2 twice: hoisted as it is served without a catalogue (`features`), and
with its candidates' inputs marked as the items' and a catalogue of 2000 items (`catalogue`). Both score the same
requests: the scores are compared first. Then, in turn: a closed loop, for what the server can do at most; and an open
loop at 70 % of what `features` can do. Figures are medians of the rounds; processor time is that of the workers, which
says what a request costs also where the machine does other work. Writes dated JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rankhoist_client import Client, v2
from rich.console import Console
from served import TOLERANCE, Subject, about, server, write_result
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.hoist import hoist_program
from rankhoist.lab.loadtest import Load, Options, loadtest

NAMES = ("features", "catalogue")
ITEMS, REQUESTS, SHARE = 2000, 16, 0.7
ID = "item"


class Case:
    """The two artifacts, the items' file, and requests for both."""

    def __init__(self, folder: Path, candidates: int) -> None:
        subject = Subject.make()
        data, self.model, self.folder = subject.data, subject.model, folder
        context = list(data.context)
        items = [name for name in data.example(1) if name not in context]
        for name, marked in zip(NAMES, (None, items), strict=True):
            program = capture(self.model, (data.example(64),), context, item=marked)
            hoist_program(program).save(folder / f"{name}.rankhoist")
        self.items = data.request(data.draw_row(0), ITEMS).candidates
        columns = {name: _column(x) for name, x in self.items.items()}
        pq.write_table(pa.table({ID: pa.array(range(ITEMS)), **columns}), folder / "items.parquet")
        random = np.random.default_rng(0)
        self.requests = [
            (data.request(data.draw_row(seed), 1).context, torch.from_numpy(random.integers(0, ITEMS, candidates)))
            for seed in range(REQUESTS)
        ]

    def sides(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """The candidates of a request, as one of the two takes them."""
        return {ID: rows} if name == "catalogue" else {n: x[rows] for n, x in self.items.items()}

    def write(self, name: str) -> tuple[Path, int]:
        """Requests for a load test; and the bytes of one in the binary protocol."""
        path, sent = self.folder / f"{name}.json", []
        for context, rows in self.requests:
            sides = {"context": context, "candidates": self.sides(name, rows)}
            sent.append({side: {n: x.tolist() for n, x in given.items()} for side, given in sides.items()})
        path.write_text(json.dumps(sent))
        context, rows = self.requests[0]
        whole = {n: x.numpy() for n, x in {**context, **self.sides(name, rows)}.items()}
        return path, len(v2.write_request(whole)[0])

    def check(self, url: str) -> None:
        """Scores of both are those of the model as trained."""
        with Client(url) as client, torch.inference_mode():
            for context, rows in self.requests[:3]:
                whole = {n: x.expand(len(rows), *x.shape[1:]) for n, x in context.items()}
                expected = self.model({**whole, **self.sides("features", rows)})
                for name in NAMES:
                    given = [{n: x.numpy() for n, x in side.items()} for side in (context, self.sides(name, rows))]
                    scores = torch.from_numpy(client.rank(name, *given).scores.copy())
                    error = float((scores - expected).abs().max() / expected.abs().max())
                    assert error < TOLERANCE, f"{name}: scores differ by {error:.0e}, so nothing is timed"


def _column(x: Tensor) -> pa.Array:
    flat = pa.array(x.reshape(-1).numpy())
    return flat if x.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, x.shape[1])


def measured(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Both loops of both, in turn."""
    folder, console = case.folder, Console()
    models = {name: folder / f"{name}.rankhoist" for name in NAMES}
    flags = ("--catalogue", f"catalogue={folder / 'items.parquet'}", "--item-id", ID)
    requests = {name: case.write(name) for name in NAMES}
    loops: dict[str, dict[str, list[Any]]] = {kind: {name: [] for name in NAMES} for kind in ("closed", "open")}
    with server(models, options.workers, *flags) as running:
        case.check(running.url)
        rate = None
        for kind, runs in loops.items():
            for _ in range(options.rounds):
                for name in NAMES:
                    load = Load(16 if rate is None else 256, rate, options.seconds, warm_up=1.0)
                    own = Options(running.url, name, load, requests=requests[name][0])
                    before = busy(running.pid)
                    found = loadtest(own, console)
                    answers = found["requests_per_second"] * (load.seconds + load.warm_up)
                    runs[name].append(found | {"processor_ms": 1e3 * (busy(running.pid) - before) / answers})
            if kind == "closed":
                rate = SHARE * median(runs["features"], "requests_per_second")
    return {"bytes": {name: size for name, (_, size) in requests.items()}, "rate": rate, **loops}


def busy(pid: int) -> float:
    """Seconds of processor time that a server's workers have taken so far."""
    times = [worker.cpu_times() for worker in psutil.Process(pid).children()]
    return sum(t.user + t.system for t in times)


def median(runs: list[dict[str, Any]], name: str) -> float:
    """Of a figure, or of a percentile of the latency."""
    return statistics.median(run[name] if name in run else run["latency_ms"][name] for run in runs)


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    machine = record["machine"]
    lines = [
        "# A server with a catalogue of items", "",
        f"{record['date']}, {machine['processor']}, torch {machine['torch']}, granian {machine['granian']}, Python "
        f"{machine['python']}. `{record['command']}`, {record['minutes']:.1f} minutes. The demo's DCNv2, "
        f"N = {record['candidates']} of {ITEMS} items, {record['workers']} workers with one thread each, binary v2 "
        f"over loopback; the load generator shares the processor's cores. {record['note']} Medians of "
        f"{record['rounds']} rounds in turn, {record['seconds']:g} s each; latencies in ms, of the open loop at "
        f"{record['rate']:.0f} requests per second.", "",
        "| sent | bytes of a request | its processor ms | answers/s | against `features` | p50 | p99 | errors |",
        "|---|" + "---:|" * 7,
    ]  # fmt: skip
    most = median(record["closed"]["features"], "requests_per_second")
    for name in NAMES:
        closed, opened = record["closed"][name], record["open"][name]
        best = median(closed, "requests_per_second")
        errors = sum(sum(run["errors"].values()) for run in closed + opened)
        latency = " | ".join(f"{median(opened, p):.1f}" for p in ("p50", "p99"))
        each = f"{record['bytes'][name]:,} | {median(closed, 'processor_ms'):.2f}"
        lines.append(f"| {name} | {each} | {best:.0f} | {best / most:.2f}x | {latency} | {errors} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of one loop of one of both (default: 6)")
    parser.add_argument("--note", default="Other work ran on them, too.", help="what else did (default: %(default)s)")
    parser.add_argument("--name", default="catalogue-serving", help="of the result (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options, start = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Case(Path(folder), options.candidates), options)
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": about(),
        "command": " ".join(["python", *sys.argv]), "candidates": options.candidates, "workers": options.workers,
        "rounds": options.rounds, "seconds": options.seconds, "note": options.note,
        "minutes": (time.monotonic() - start) / 60, **found,
    }  # fmt: skip
    stem = options.out / f"{record['date'][:10]}-{options.name}"
    write_result(record, page(record), stem)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
