"""Every level of every scenario, timed in turn: `python benchmarks/levels.py [--candidates N ...] [--seconds S]`.

Equality is checked before anything is timed. Writes a dated JSON and a Markdown table to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rankhoist import Workload
from rankhoist.algebra.interpret import Level
from rankhoist.bench import SCENARIOS, Scenario, interleaved, machine
from rankhoist.capture import capture
from rankhoist.hoist import hoist_program

LEVELS = [level.name.lower() for level in Level]
TOLERANCE = 1e-4  # float32, relative to the output's scale; the certificate's rule is stricter and has its own command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[100, 1000], help="N (default: 100 1000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="timing per scenario and N (default: 4)")
    parser.add_argument("--only", nargs="+", default=[s.name for s in SCENARIOS], help="scenarios by name")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells = [(s, n) for s in SCENARIOS if s.name in options.only for n in options.candidates]
    rows = [measure(s, n, options.seconds) for s, n in track(cells, "scenarios")]
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine(),
        "command": " ".join(["python", *sys.argv]), "dtype": "float32", "rows": rows,
    }  # fmt: skip
    write(record, options.out)
    return 0


def measure(case: Scenario, candidates: int, seconds: float) -> dict[str, Any]:
    """Work and time of every level, and the original model called on repeated rows."""
    model = case.model()
    context, candidate = case.inputs(1, candidates)
    started = time.perf_counter()
    example = case.inputs(4, 4)
    program = capture(model, example, ["context"])
    hoisted = {x: hoist_program(program, workload=Workload(candidates), level=x) for x in LEVELS}
    hoisting = time.perf_counter() - started
    with torch.inference_mode():
        expanded = context.expand(candidates, *context.shape[1:])
        truth = model(expanded, candidate)
        scale = truth.abs().max().item()
        errors = {x: (h(context, candidate) - truth).abs().max().item() / scale for x, h in hoisted.items()}
        wrong = {x: e for x, e in errors.items() if not e <= TOLERANCE}
        if wrong:
            raise SystemExit(f"{case.name}, N = {candidates}: not equal, so not timed: {wrong}")
        calls = {"original": partial(model, expanded, candidate)}
        calls |= {x: partial(h, context, candidate) for x, h in hoisted.items()}
        times = interleaved(calls, seconds)
    return {
        "scenario": case.name, "candidates": candidates, "hoisting_seconds": hoisting, "errors": errors,
        "multiply_adds": {x: h.plan.cost.multiply_adds for x, h in hoisted.items()},
        "time": {x: asdict(t) for x, t in times.items()},
    }  # fmt: skip


def write(record: dict[str, Any], folder: Path) -> None:
    """The dated JSON and the table."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{record['date'][:10]}-levels"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record)
    stem.with_suffix(".md").write_text(text)
    print(text)


def table(record: dict[str, Any]) -> str:
    """Markdown: median milliseconds (quartiles) per level, ratios of time and of multiply-adds."""
    about = record["machine"]
    lines = [
        "# Every level of every scenario", "",
        f"{record['date']}, {about['processor']}, {about['threads']} thread(s), torch {about['torch']}, "
        f"Python {about['python']}, {record['dtype']}, one request. Median of interleaved calls in ms. "
        f"`{record['command']}`", "",
        "| scenario | N | original | " + " | ".join(LEVELS) + " | full: time | full: multiply-adds | worst error |",
        "|---|" + "---:|" * (len(LEVELS) + 5),
    ]  # fmt: skip
    for row in record["rows"]:
        times, madds = row["time"], row["multiply_adds"]
        cells = [f"{times[x]['median']:.2f}" for x in ("original", *LEVELS)]
        ratio = times["expand"]["median"] / times["full"]["median"]
        work = madds["expand"] / max(madds["full"], 1)
        cells += [f"{ratio:.2f}x", f"{work:.2f}x", f"{max(row['errors'].values()):.0e}"]
        lines.append(f"| {row['scenario']} | {row['candidates']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
