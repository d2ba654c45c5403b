"""Rows per second of `rankhoist score`: one process, two, Ray; each checked against scores of this process.

    python benchmarks/scoring.py [--rows 1000000] [--candidates 100] [--only nested Ray ...] [--out benchmarks/results]

The demo's DCNv2, untrained, on a generated request log: users and items of the log, with their features, drawn into
requests of `--candidates` candidates on average (half to one and a half times as many). Every run is a process of its
own, as a user starts it, so its seconds include starting Python and loading the model; the speed that it reports itself
does not include the former. `killed` is ended by SIGKILL and started again; its rows must be equal, bit for bit.
Writes dated JSON and Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track
from torch import Tensor

import rankhoist
from rankhoist.compiler.targets.machine import machine
from rankhoist.lab.data import RankingData, generate_request_log
from rankhoist.lab.train import build_model

LOG_ROWS, ITEMS = 120_000, 3000  # of the demo
CHUNK = 200  # requests that are drawn at a time, and make a row group
PARTS = 20  # of a job
ARTIFACT = "ranker.rankhoist"
FILES = {  # layout -> flag -> file
    "nested": {"--requests": "nested"},
    "joined": {"--requests": "requests", "--candidates": "candidates"},
    "repeated": {"--candidates": "repeated"},
}
KILLED, SAME_AS_KILLED = "killed", "joined, two processes"
RSS_PER_MIB = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
RUNS: dict[str, tuple[str, list[str]]] = {
    "joined, one process": ("joined", []),
    "nested, one process": ("nested", []),
    "repeated, one process": ("repeated", []),
    "joined, two processes": ("joined", ["--workers", "2"]),
    "joined, Ray, two actors": ("joined", ["--ray", "--workers", "2"]),
    "joined, two processes, killed": ("joined", ["--workers", "2"]),
}
TOLERANCE = 2e-5  # of the largest score: ragged calls round differently from calls of one request


@dataclass(frozen=True)
class Requests:
    """Some requests in a row: context `[R, ...]`, candidates `[N, ...]`, offsets `[R + 1]` and the first's number."""

    first: int
    context: dict[str, Tensor]
    candidate: dict[str, Tensor]
    offsets: np.ndarray


def drawn(data: RankingData, rows: int, candidates: int) -> Iterator[Requests]:
    """Requests with `rows` candidates in all, the same in every call."""
    random, first = np.random.default_rng(0), 0
    while rows:
        counts = random.integers(candidates // 2, candidates + candidates // 2 + 1, CHUNK)
        ends = np.minimum(counts.cumsum(), rows)
        counts = np.diff(ends, prepend=0)[: int(np.searchsorted(ends, ends[-1])) + 1]
        of_context, of_candidates = (random.integers(0, len(data.labels), n) for n in (len(counts), counts.sum()))
        context, candidate = (data.rows(torch.from_numpy(x)) for x in (of_context, of_candidates))
        yield Requests(
            first, {n: context[n] for n in data.context}, {n: candidate[n] for n in data.candidate},
            np.concatenate([[0], counts.cumsum()]),
        )  # fmt: skip
        first, rows = first + len(counts), rows - int(counts.sum())


def arrow(rows: Tensor) -> pa.Array:
    """`[N]` or `[N, T]` as a column."""
    flat = pa.array(rows.reshape(-1).numpy())
    return flat if rows.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def tables(part: Requests, start: int) -> dict[str, pa.Table]:
    """The files' rows: `requests` and `candidates` of the layout `joined`, `nested` and `repeated`."""
    counts = np.diff(part.offsets)
    ids = pa.array(np.arange(part.first, part.first + len(counts)))
    owner = pa.array(np.repeat(np.arange(len(counts)), counts))
    context = {name: arrow(rows) for name, rows in part.context.items()}
    candidate = {"row": pa.array(np.arange(start, start + len(owner)))}
    candidate |= {name: arrow(rows) for name, rows in part.candidate.items()}
    offsets = pa.array(part.offsets, pa.int32())
    lists = {name: pa.ListArray.from_arrays(offsets, column) for name, column in candidate.items()}
    repeated = {name: column.take(owner) for name, column in context.items()}
    return {
        "requests": pa.table({"request_id": ids} | context),
        "candidates": pa.table({"request_id": ids.take(owner)} | candidate),
        "nested": pa.table({"request_id": ids} | context | lists),
        "repeated": pa.table({"request_id": ids.take(owner)} | repeated | candidate),
    }


def prepared(folder: Path, rows: int, candidates: int, layouts: set[str]) -> tuple[np.ndarray, float]:
    """Write the artifact and the files; returns the scores of this process, a call for each request, and seconds."""
    data = generate_request_log(LOG_ROWS, items=ITEMS)
    model = build_model("dcnv2", data).eval()
    workload = rankhoist.Workload(candidates)
    hoisted = rankhoist.hoist(model, (data.example(64),), context=list(data.context), workload=workload)
    hoisted.save(folder / ARTIFACT)
    wanted = {name for layout in layouts for name in FILES[layout].values()}
    writers: dict[str, pq.ParquetWriter] = {}
    scores: list[Tensor] = []
    start, seconds = 0, 0.0
    for part in track(drawn(data, rows, candidates), "writing files", total=rows // candidates // CHUNK):
        for name, table in tables(part, start).items():
            if name in wanted:
                if name not in writers:
                    writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema)
                writers[name].write_table(table)
        begun = time.perf_counter()
        for r, (low, high) in enumerate(itertools.pairwise(part.offsets.tolist())):
            state = hoisted.prepare({n: t[r : r + 1] for n, t in part.context.items()}, candidates=high - low)
            scores.append(hoisted.score(state, {n: t[low:high] for n, t in part.candidate.items()}))
        seconds += time.perf_counter() - begun
        start += int(part.offsets[-1])
    for writer in writers.values():
        writer.close()
    return torch.cat(scores).numpy(), seconds


def measured(name: str, folder: Path, truth: np.ndarray) -> dict[str, Any]:
    """One run, from the start of its process to its end, and whether its rows are right."""
    layout, flags = RUNS[name]
    out = folder / name.replace(", ", "-").replace(" ", "-")
    files = [word for flag, file in FILES[layout].items() for word in (flag, str(folder / f"{file}.parquet"))]
    command = [sys.executable, "-m", "rankhoist", "score", str(folder / ARTIFACT), *files, *flags]
    command += ["--keep", "row", "--part-rows", str(len(truth) // PARTS), "--out", str(out)]
    begun = time.perf_counter()
    parts_before = _killed(command, out) if KILLED in name else 0
    said, peak = _finished(command)
    seconds = time.perf_counter() - begun
    table = pq.read_table(out, columns=["row", "scores"])
    own = table["scores"].to_numpy()
    right = len(table) == len(truth) and bool((table["row"].to_numpy() == np.arange(len(truth))).all())
    error = float(np.abs(own - truth).max() / np.abs(truth).max()) if right else float("inf")
    found = re.search(r"scored in ([\d.]+) s", said)
    assert found, said
    return {
        "run": name, "rows": len(table), "seconds": seconds, "scoring_seconds": float(found[1]),
        "rows_per_second": len(table) / seconds, "peak_mib": peak, "parts_before": parts_before,
        "worst_difference": error, "equal": error <= TOLERANCE,
        "sha256": hashlib.sha256(own.tobytes()).hexdigest(),
    }  # fmt: skip


def _finished(command: list[str]) -> tuple[str, float]:
    """What a command prints, and the peak memory of the largest of its processes in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return said, usage.ru_maxrss / RSS_PER_MIB


def _killed(command: list[str], out: Path) -> int:
    """Start a job and kill it when about half of its parts are there; returns how many are."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("part-*"))) < PARTS // 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the job ended before it was killed"
    return len(list(out.glob("part-*")))


def page(record: dict[str, Any]) -> str:
    """The Markdown."""
    about = record["machine"]
    lines = [
        f"# Offline scoring, {record['date'][:10]}", "",
        f"`{record['command']}`", "",
        f"{about['processor']}, torch {about['torch']}, Python {about['python']}. The demo's DCNv2, untrained: "
        f"{record['rows']:,} candidates, {record['candidates']} per request on average; one torch thread per "
        "process. Seconds are those of the whole command, the start of Python and the loading of the model included; "
        "\"scoring\" is what the command reports, without the former. In this process, a call per request, no files: "
        f"{record['rows'] / record['seconds_in_process']:,.0f} rows/s.", "",
        "| run | rows/s | seconds | scoring | peak memory of a process, MiB | worst difference | equal |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for r in record["runs"]:
        lines.append(
            f"| {r['run']} | {r['rows_per_second']:,.0f} | {r['seconds']:.1f} | {r['scoring_seconds']:.1f} | "
            f"{r['peak_mib']:,.0f} | {r['worst_difference']:.1e} | {'yes' if r['equal'] else 'NO'} |"
        )
    lines += ["", "Worst difference: of a score, as a share of the largest score, from scores of this process.", ""]
    for r in record["runs"]:
        if KILLED in r["run"]:
            lines += [
                f"Killed when {r['parts_before']} parts were there and started again: the same scores, bit for bit, as "
                f"those of \"{SAME_AS_KILLED}\": {'yes' if record['killed_is_same'] else 'NO or not compared'}.", "",
            ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="candidates in all (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=100, help="of a request, on average (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[""], help="runs with one of these words in their names")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name for name in RUNS if any(word in name for word in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        layouts = {RUNS[name][0] for name in chosen}
        truth, seconds = prepared(Path(folder), options.rows, options.candidates, layouts)
        runs = [measured(name, Path(folder), truth) for name in track(chosen, "runs")]
    digests = {run["run"]: run["sha256"] for run in runs}
    killed = [digests[name] for name in digests if KILLED in name]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine(),
        "command": " ".join(["python", *sys.argv]), "rows": options.rows, "candidates": options.candidates,
        "seconds_in_process": seconds, "runs": runs,
        "killed_is_same": bool(killed) and killed == [digests.get(SAME_AS_KILLED)],
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{record['date'][:10]}-scoring"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = page(record)
    stem.with_suffix(".md").write_text(text)
    print(text)
    return 0 if all(run["equal"] for run in runs) else 1


if __name__ == "__main__":
    raise SystemExit(main())
