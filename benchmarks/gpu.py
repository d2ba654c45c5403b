"""Nine rankers on a GPU: the hoisted model after `tune` against the best way to run the original, as one table.

    python -m benchmarks.gpu --out benchmarks/results/DATE-gpu.json            on a GPU, about nine minutes
    python -m benchmarks.gpu --device cpu --only norm_linear --seconds 30      to see that it runs

The original is called, compiled, recorded as a CUDA graph, and both; each way is left out where it fails. Every row is
compared with the original before it is timed. No model is begun after that time; those left out are listed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankhoist.bench.baselines import eager, graphed
from rankhoist.bench.scenarios import scenario
from rankhoist.bench.suite import Cell
from rankhoist.capture import capture
from rankhoist.compiler.targets.machine import machine, name_of
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.alike import TOLERANCE, error

NAMES = (
    "cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "target_attention", "norm_linear",
    "causal_history", "token_attention", "mmoe",
)  # fmt: skip
SIZES = ((1, 1000), (1, 5000), (32, 32_000))  # requests, candidates in all
DTYPES = (torch.float32, torch.bfloat16)
TUNING = 4.0  # seconds for each size


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    args = parser.parse_args()
    device, end = torch.device(args.device), time.perf_counter() + args.seconds
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    print(f"{name_of(device)}, torch {torch.__version__}; milliseconds, medians")
    for dtype in DTYPES:
        for name in fnmatch.filter(NAMES, args.only):
            if time.perf_counter() < end:
                rows += _scenario(name, dtype, device)
            else:
                left_out.append(f"{name} {dtype}")
    for requests, candidates in SIZES:
        own = [r["ratio"] for r in rows if (r["requests"], r["candidates"]) == (requests, candidates)]
        if own:
            geomean = math.exp(sum(map(math.log, own)) / len(own))
            print(f"{candidates} of {requests}: geomean {geomean:.2f}x over {len(own)}, lowest {min(own):.2f}x")
    print(f"no time was left for: {', '.join(left_out) or 'nothing'}")
    if args.out:
        about = {"machine": machine(), "device": name_of(device), "rows": rows, "left_out": left_out}
        args.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _scenario(name: str, dtype: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """One model in all sizes."""
    case = scenario(name)
    model = case.model(dtype=dtype).to(device)

    def sides(requests: int, candidates: int) -> Any:
        both = case.sides(requests, candidates, dtype=dtype)
        return [{key: x.to(device) for key, x in side.items()} for side in both]

    hoisted = hoist_program(capture(model, case.arguments(*sides(4, 4)), case.context_names))
    compiled = torch.compile(model, dynamic=False)
    rows = []
    for requests, candidates in SIZES:
        hoisted.tune([candidates], [requests], TUNING)
        context, candidate = sides(requests, candidates)
        offsets = Cell(case, candidates, requests).offsets
        given = case.arguments(context, candidate)
        calls: dict[str, Callable[[], Any]] = {
            "original": eager(model, case, context, candidate, offsets),
            "compiled": eager(compiled, case, context, candidate, offsets),
            "hoisted": partial(hoisted, *given, request_offsets=offsets if requests > 1 else None),
        }
        if device.type == "cuda":
            calls |= {f"{x}, recorded": partial(_recorded, calls[x], {}) for x in ("original", "compiled", "hoisted")}
        rows.append(_row(name, dtype, requests, candidates, calls, hoisted))
    return rows


def _recorded(call: Callable[[], Any], made: dict[str, Callable[[], Any]]) -> Any:
    """Recorded at the first call."""
    if "graph" not in made:
        made["graph"] = graphed(call)
    return made["graph"]()


def _row(
    name: str, dtype: torch.dtype, requests: int, candidates: int, calls: dict[str, Callable[[], Any]],
    hoisted: HoistedModel,
) -> dict[str, Any]:  # fmt: skip
    """Ways that are equal to the original, timed in turn."""
    problems: dict[str, str] = {}
    with torch.inference_mode():
        truth = calls["original"]()
        for way, call in calls.items():
            try:
                apart = error(call(), truth)
                if not apart <= TOLERANCE[dtype]:
                    problems[way] = f"differs by {apart:.0e}"
            except Exception as problem:  # what cannot be compiled or recorded
                problems[way] = f"{type(problem).__name__}: {str(problem)[:100]}"
        timed = {way: call for way, call in calls.items() if way not in problems}
        times = {way: t.median for way, t in interleaved(timed, 1.0, warmup=2).items()}
    best = min(t for way, t in times.items() if "hoisted" not in way)
    won = hoisted.plans.ranges.at(candidates, requests)
    ratio = best / times["hoisted"] if "hoisted" in times else 0.001
    print(f"{name} {dtype} {requests} x {candidates // requests}: {ratio:.2f}x by {won}", end=" ")
    print({way: round(t, 3) for way, t in times.items()}, problems, flush=True)
    return {
        "scenario": name, "dtype": str(dtype), "requests": requests, "candidates": candidates, "milliseconds": times,
        "problems": problems, "plan": str(won), "ratio": ratio,
    }  # fmt: skip


if __name__ == "__main__":
    main()
