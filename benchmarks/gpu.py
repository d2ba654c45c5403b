"""Nine rankers and two blocks on a GPU: hoisted and tuned against the best way to run the original, as one table.

    python -m benchmarks.gpu --out benchmarks/results/DATE-gpu.json                 on a GPU, about nine minutes
    python -m benchmarks.gpu --device cpu --only norm_linear --seconds 9 --tiny     to see that it runs

The original is called, compiled (also with reduce-overhead), recorded as a CUDA graph, and compiled and recorded; each
way is left out where it fails. The hoisted model is called warmed up, and tuned. Every row is compared with the
original before it is timed. Shown with it: launches of a call (operators on a CPU), memory that it takes beyond weights
and inputs, and what was predicted for the original's kernels over what they took. No model is begun after that time;
those left out are listed.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankhoist.bench import suite
from rankhoist.bench.baselines import eager, graphed
from rankhoist.bench.launches import launches, peak_bytes
from rankhoist.bench.scenarios import scenario
from rankhoist.bench.suite import Cell
from rankhoist.capture import capture
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.targets import target_of
from rankhoist.compiler.targets.machine import machine, name_of
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.alike import error, tolerance

NAMES = (
    "cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "target_attention", "norm_linear",
    "causal_history", "token_attention", "mmoe",
)  # fmt: skip
BLOCKS = ("mixed_tokens", "user_attention")  # in bfloat16, 1024 candidates of 15 requests
SIZES = ((1, 1000), (1, 5000), (32, 32_000))  # requests, candidates in all
DTYPES = (torch.float32, torch.bfloat16)
OURS = ("warmed up", "tuned")
TUNING = 4.0  # seconds for each size


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    parser.add_argument("--tiny", action="store_true", help="a hundredth of the candidates, and no compiling")
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32, as torch's own switch says")
    args = parser.parse_args()
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    device, end = torch.device(args.device), time.perf_counter() + args.seconds
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    print(f"{name_of(device)}, torch {torch.__version__}; milliseconds, medians")
    for dtype in DTYPES:
        for name in fnmatch.filter([*NAMES, *(BLOCKS if dtype is torch.bfloat16 else ())], args.only):
            if time.perf_counter() < end:
                rows += _scenario(name, dtype, device, args.tiny)
            else:
                left_out.append(f"{name} {dtype}")
    for requests, candidates in sorted({(r["requests"], r["candidates"]) for r in rows}):
        of_size = [r for r in rows if (r["requests"], r["candidates"]) == (requests, candidates)]
        for way in ("warmed up", "tuned"):
            own = [r["ratio"][way] for r in of_size]
            geomean = math.exp(sum(map(math.log, own)) / len(own))
            print(f"{candidates} of {requests}, {way}: geomean {geomean:.2f}x of {len(own)}, lowest {min(own):.2f}x")
    for dtype in DTYPES:
        off = [r["predicted"] for r in rows if r["predicted"] and r["dtype"] == str(dtype)]
        near = sum(0.5 <= x <= 2 for x in off)
        print(f"{dtype}: kernels of the original predicted within 0.5 and 2 in {near} of {len(off)} cells")
    print(f"no time was left for: {', '.join(left_out) or 'nothing'}")
    if args.out:
        about = {"machine": machine(), "device": name_of(device), "rows": rows, "left_out": left_out}
        args.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _scenario(name: str, dtype: torch.dtype, device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """One model in all sizes."""
    case = scenario(name)
    model = case.model(dtype=dtype).to(device)

    def sides(requests: int, candidates: int) -> Any:
        both = case.sides(requests, candidates, dtype=dtype)
        return [{key: x.to(device) for key, x in side.items()} for side in both]

    hoisted = hoist_program(capture(model, case.arguments(*sides(4, 4)), case.context_names))
    compiled, overhead = torch.compile(model, dynamic=False), torch.compile(model, mode="reduce-overhead")
    rows = []
    sizes = (suite.BLOCK["cpu" if tiny else "cuda"],) if name in BLOCKS else SIZES
    for requests, candidates in [(r, n // 100) for r, n in sizes] if tiny and name not in BLOCKS else sizes:
        warm = copy.deepcopy(hoisted).warm_up([candidates], [requests])
        tuned = copy.deepcopy(hoisted).tune([candidates], [requests], 0.2 if tiny else TUNING)
        context, candidate = sides(requests, candidates)
        offsets = Cell(case, candidates, requests).offsets
        given = case.arguments(context, candidate)
        calls: dict[str, Callable[[], Any]] = {
            "original": eager(model, case, context, candidate, offsets),
            "compiled": eager(compiled, case, context, candidate, offsets),
            "compiled, reduce-overhead": eager(overhead, case, context, candidate, offsets),
            "warmed up": partial(warm, *given, request_offsets=offsets if requests > 1 else None),
            "tuned": partial(tuned, *given, request_offsets=offsets if requests > 1 else None),
        }
        if device.type == "cuda":
            calls |= {f"{x}, recorded": partial(_recorded, calls[x], {}) for x in ("original", "compiled")}
        if tiny:
            calls = {way: call for way, call in calls.items() if "compiled" not in way}
        rows.append(_row(name, requests, candidates, calls, tuned))
    return rows


def _recorded(call: Callable[[], Any], made: dict[str, Callable[[], Any]]) -> Any:
    """Recorded at the first call."""
    if "graph" not in made:
        made["graph"] = graphed(call)
    return made["graph"]()


def _row(
    name: str, requests: int, candidates: int, calls: dict[str, Callable[[], Any]], tuned: HoistedModel
) -> dict[str, Any]:
    """Ways that are equal to the original, timed in turn."""
    problems: dict[str, str] = {}
    device, dtype = tuned.device, tuned.dtype
    with torch.inference_mode():
        truth = calls["original"]()
        for way, call in calls.items():
            try:
                apart = error(call(), truth)
                if not apart <= tolerance(dtype, device):
                    problems[way] = f"differs by {apart:.0e}"
            except Exception as problem:  # what cannot be compiled or recorded
                problems[way] = f"{type(problem).__name__}: {str(problem)[:100]}"
        timed = {way: call for way, call in calls.items() if way not in problems}
        times = {way: t.median for way, t in interleaved(timed, 1.0, warmup=2).items()}
        shown = [way for way in ("original", *OURS) if way in timed]
        launched = {way: launches(timed[way], device) for way in shown}
        peak = {way: peak_bytes(timed[way], device) for way in shown}
    best = min(t for way, t in times.items() if way not in OURS)
    won = tuned.plans.ranges.at(candidates, requests)
    ratio = {way: best / times[way] if way in times else 0.001 for way in OURS}
    off = _predicted(tuned, requests, candidates, times.get("original, recorded"))
    print(f"{name} {dtype} {requests} x {candidates // requests}: {ratio['tuned']:.2f}x by {won}", end=" ")
    print({way: round(t, 3) for way, t in times.items()}, problems, launched, peak, off, flush=True)
    return {
        "scenario": name, "dtype": str(dtype), "requests": requests, "candidates": candidates, "milliseconds": times,
        "problems": problems, "plan": str(won), "ratio": ratio, "launches": launched, "peak_bytes": peak,
        "predicted": off,
    }  # fmt: skip


def _predicted(hoisted: HoistedModel, requests: int, candidates: int, measured: float | None) -> float | None:
    """Predicted over measured milliseconds of the original's kernels, recorded."""
    target = target_of(hoisted.device, hoisted.dtype, recorded=True)
    plan = hoisted.plans.plans[hoisted.plans.original or 0]
    if measured is None or target is None or not isinstance(plan, Plan):
        return None
    return 1e3 * float(target.predicted(plan.per_call, plan.outputs, candidates, requests)) / measured


if __name__ == "__main__":
    main()
