"""Nine rankers and two blocks on a GPU: hoisted and tuned against the best way to run the original, as one table.

    python -m benchmarks.gpu --dtype float32 --out benchmarks/results/DATE-gpu-float32.json    on a GPU, nine minutes
    python -m benchmarks.gpu --device cpu --only norm_linear --seconds 9 --tiny                to see that it runs

The original is called, compiled, recorded as a CUDA graph, and compiled and recorded; each way is left out where it
fails. The hoisted model is called warmed up, and tuned. Every row is compared with the original before it is timed.
Shown with it: launches of a call (operators on a CPU), also of a quarter of the requests, memory that it takes beyond
weights and inputs, and what was predicted for the original's kernels over what they took. What fails is recorded, and
the next one begins; none is begun after that time, and those left out are listed. The file, and a table beside it
(`.md`), are written after each model.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankhoist.bench import suite
from rankhoist.bench.baselines import Given, eager, graphed
from rankhoist.bench.launches import launches, peak_bytes
from rankhoist.bench.scenarios import Scenario, scenario
from rankhoist.bench.suite import Cell
from rankhoist.capture import capture
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.targets import target_of
from rankhoist.compiler.targets.machine import machine, name_of
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.mistakes import in_one_line
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.alike import error, tolerance
from rankhoist.runtime.offsets import even

NAMES = (
    "cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "target_attention", "norm_linear",
    "causal_history", "token_attention", "mmoe",
)  # fmt: skip
BLOCKS = ("mixed_tokens", "user_attention")  # in bfloat16, 1024 candidates of 15 requests
SIZES = ((1, 1000), (1, 5000), (32, 32_000))  # requests, candidates in all
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = ("warmed up", "tuned")
TUNING = 3.0  # seconds for each size


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    parser.add_argument("--tiny", action="store_true", help="a hundredth of the candidates, and no compiling")
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32, as torch's own switch says")
    args = parser.parse_args()
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    device, end = torch.device(args.device), time.perf_counter() + args.seconds
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    left_out: list[str] = []
    print(f"{name_of(device)}, torch {torch.__version__}; milliseconds, medians")
    for dtype in [own for name, own in DTYPES.items() if args.dtype in (name, "both")]:
        for name in fnmatch.filter([*NAMES, *(BLOCKS if dtype is torch.bfloat16 else ())], args.only):
            try:
                for about, cell in _cells(name, dtype, device, args.tiny):
                    if time.perf_counter() < end:
                        _tried(cell, about, rows, failed)
                    else:
                        left_out.append(about)
            except Exception as problem:  # of the model itself: none of its cells can be measured
                failed.append(f"{name} {dtype}: {in_one_line(problem)}")
            _write(args.out, device, rows, failed, left_out)
    print(_summary(rows, failed, left_out))


def _tried(cell: Callable[[], dict[str, Any]], about: str, rows: list[dict[str, Any]], failed: list[str]) -> None:
    """A cell, or why there is none."""
    try:
        rows.append(cell())
    except Exception as problem:  # whatever it is, others are measured
        failed.append(f"{about}: {in_one_line(problem)}")
        print(failed[-1], flush=True)


def _summary(rows: list[dict[str, Any]], failed: list[str], left_out: list[str]) -> str:
    lines = []
    for requests, candidates in sorted({(r["requests"], r["candidates"]) for r in rows}):
        of_size = [r for r in rows if (r["requests"], r["candidates"]) == (requests, candidates)]
        for way in OURS:
            own = [r["ratio"][way] for r in of_size]
            geomean = math.exp(sum(map(math.log, own)) / len(own))
            lines.append(
                f"{candidates} of {requests}, {way}: geomean {geomean:.2f}x of {len(own)}, lowest {min(own):.2f}x"
            )
    for name, dtype in DTYPES.items():
        off = [r["predicted"] for r in rows if r["predicted"] and r["dtype"] == str(dtype)]
        near = sum(0.5 <= x <= 2 for x in off)
        lines.append(f"{name}: kernels of the original predicted within 0.5 and 2 in {near} of {len(off)} cells")
    lines.append(f"failed: {'; '.join(failed) or 'nothing'}")
    return "\n".join([*lines, f"no time was left for: {', '.join(left_out) or 'nothing'}"])


def _write(
    out: Path | None, device: torch.device, rows: list[dict[str, Any]], failed: list[str], left_out: list[str]
) -> None:
    if out is None:
        return
    about = {"machine": machine(), "device": name_of(device), "rows": rows, "failed": failed, "left_out": left_out}
    out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# {name_of(device)}, torch {torch.__version__}, {date.today()}", "",
        "Milliseconds, medians. Launches: of a call of all requests (of a quarter of them). Peak MiB: beyond weights"
        " and inputs. Predicted: over measured, kernels of the original.", "",
        "| scenario | dtype | R x N | best original | warmed up | tuned | best / warmed up | best / tuned | launches | "
        "peak MiB, original -> ours | predicted |", "|" + "---|" * 11,
        *map(_line, rows), "", *(f"* {line}" for line in _summary(rows, failed, left_out).splitlines()),
    ]  # fmt: skip
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    times, launched, peak = row["milliseconds"], row["launches"], row["peak_bytes"]
    way = min((way for way in times if way not in OURS), key=times.__getitem__)
    fewer = "" if row["fewer_launches"] is None else f" ({row['fewer_launches']})"
    ours = [f"{times[own]:.3f}" if own in times else "-" for own in OURS]
    memory = [f"{peak[own] / 2**20:.0f}" if own in peak else "-" for own in ("original", "warmed up")]
    cells = [
        row["scenario"], row["dtype"].removeprefix("torch."), f"{row['requests']} x {row['candidates']}",
        f"{times[way]:.3f} ({way})", *ours, *(f"{row['ratio'][own]:.2f}x" for own in OURS),
        f"{launched.get('warmed up', '-')}{fewer}", " -> ".join(memory),
        "-" if row["predicted"] is None else f"{row['predicted']:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cells(
    name: str, dtype: torch.dtype, device: torch.device, tiny: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """One model in all sizes: what each is called, and what measures it."""
    case = scenario(name)
    model = case.model(dtype=dtype).to(device)
    few = [{key: x.to(device) for key, x in side.items()} for side in case.sides(4, 4, dtype=dtype)]
    hoisted = hoist_program(capture(model, case.arguments(*few), case.context_names))
    sizes = (suite.BLOCK["cpu" if tiny else "cuda"],) if name in BLOCKS else SIZES
    for requests, candidates in [(r, n // 100) for r, n in sizes] if tiny and name not in BLOCKS else sizes:
        yield (
            f"{name} {dtype} {requests} x {candidates}",
            partial(_cell, name, case, model, hoisted, (requests, candidates), dtype, tiny),
        )


def _cell(
    name: str, case: Scenario, model: torch.nn.Module, hoisted: HoistedModel, size: tuple[int, int],
    dtype: torch.dtype, tiny: bool,
) -> dict[str, Any]:  # fmt: skip
    device, (requests, candidates) = hoisted.device, size
    warm = copy.deepcopy(hoisted).warm_up([candidates], [requests])
    tuned = copy.deepcopy(hoisted).tune([candidates], [requests], 0.2 if tiny else TUNING)
    context, candidate = (
        {key: x.to(device) for key, x in side.items()} for side in case.sides(requests, candidates, dtype=dtype)
    )
    given = Given(case, context, candidate, Cell(case, candidates, requests).offsets)
    calls: dict[str, Callable[[], Any]] = {
        "original": eager(model, given),
        "warmed up": given.hoisted(warm),
        "tuned": given.hoisted(tuned),
    }
    if not tiny:
        calls["compiled"] = eager(torch.compile(model, dynamic=False), given)
    if device.type == "cuda":
        calls |= {f"{x}, recorded": partial(_recorded, calls[x], {}) for x in ("original", "compiled") if x in calls}
    row = _row(name, requests, candidates, calls, tuned)
    row["fewer_launches"] = None
    if requests >= 8:
        part = even(candidates // 4, requests // 4)
        less = case.arguments(*({k: x[:n] for k, x in side.items()} for side, n in
                                ((context, requests // 4), (candidate, candidates // 4))))  # fmt: skip
        warm.warm_up([candidates // 4], [requests // 4])
        row["fewer_launches"] = launches(partial(warm, *less, request_offsets=part), device)
    return row


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
