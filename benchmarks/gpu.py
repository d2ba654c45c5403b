"""Nine rankers and two blocks on a GPU: hoisted and tuned against the best way to run the original, as one table.

    python -m benchmarks.gpu --dtype float32 --out benchmarks/results/DATE-gpu-float32.json    on a GPU, minutes
    python -m benchmarks.gpu --device cpu --only norm_linear --seconds 9 --tiny                to see that it runs

The original is called, compiled, recorded as a CUDA graph, and compiled and recorded; each way is left out where it
fails. The hoisted model is called warmed up, and tuned; over the same tensors again and again, as what was recorded of
the original is, and tuned also over others each time, which it copies to where its graphs read. Every row is compared
with the original before it is timed. Shown with it: launches of a call (operators on a CPU), also of a quarter of the
requests, memory that it takes beyond weights and inputs, and what was predicted for the original's kernels over what
they took.

Each model has a process of its own. All of them hoist and compile side by side; when they are ready, or when half of
the time is over, one after another is timed, while the others wait. What fails is recorded, and the next one begins;
none is begun after that time, and those left out are listed. The file, and a table beside it (`.md`), are written
after each model.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rankhoist.bench import suite
from rankhoist.bench.baselines import Call, Given, eager, graphed
from rankhoist.bench.launches import kernels, launches, peak_bytes
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
    "causal_history", "token_attention", "target_attention", "cross_full", "cross_low_rank", "dot_pairs_80_10",
    "dot_pairs_27_4", "mmoe", "norm_linear",
)  # fmt: skip
BLOCKS = ("mixed_tokens", "user_attention")  # in bfloat16, 1024 candidates of 15 requests
SIZES = ((1, 1000), (1, 5000), (32, 32_000))  # requests, candidates in all
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = ("warmed up", "tuned", "other tensors")
TIMING = 0.8  # seconds for each size


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--compiling", type=float, default=30.0, help="seconds to compile a size's stages (default: 30)"
    )
    parser.add_argument("--tuning", type=float, default=1.5, help="seconds for each size (default: 1.5)")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    parser.add_argument("--tiny", action="store_true", help="a hundredth of the candidates, and no compiling")
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32, as torch's own switch says")
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    device, results = torch.device(args.device), Results()
    print(f"{name_of(device)}, torch {torch.__version__}; milliseconds, medians")
    workers = [
        Worker(name, dtype, args)
        for name in fnmatch.filter([*NAMES, *BLOCKS], args.only)
        for dtype in (DTYPES if name not in BLOCKS else ["bfloat16"])
        if args.dtype in (dtype, "both")
    ]
    half = end - args.seconds / 2
    for worker in sorted(workers, key=lambda own: not own.ready(half)):
        worker.timed(results, end)
        _write(args.out, device, results)
    print(_summary(results))


@dataclass
class Results:
    """What was measured, what failed, and for what no time was left."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Worker:
    """A process for one model in one dtype."""

    def __init__(self, name: str, dtype: str, args: argparse.Namespace) -> None:
        self.about = f"{name} {dtype}"
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, DTYPES[dtype], args, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self, until: float) -> bool:
        """Whether it is before that time."""
        return self._connection.poll(max(until - time.perf_counter(), 0))

    def timed(self, results: Results, end: float) -> None:
        """Let it time its cells, and take what it finds."""
        try:
            if not self.ready(end):
                results.left_out.append(self.about)
                return
            self._connection.recv()
            self._connection.send(end - time.perf_counter())
            while (found := self._connection.recv()) is not None:
                kind, own = found
                getattr(results, kind).append(own)
                print(_told(own) if kind == "rows" else f"{kind}: {own}", flush=True)
        except EOFError:
            results.failed.append(f"{self.about}: its process ended")
        finally:
            self._process.join(1)
            self._process.kill()


def _work(name: str, dtype: torch.dtype, args: argparse.Namespace, parent: Connection) -> None:
    """Get all cells of a model ready, wait for the turn, and time them."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # there are processes enough
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    cells: list[Timed] = []
    failed: list[str] = []
    try:
        for about, made in _cells(name, dtype, torch.device(args.device), args):
            try:
                cells.append(made())
            except Exception as problem:  # whatever it is, others are measured
                failed.append(f"{about}: {in_one_line(problem)}")
    except Exception as problem:  # of the model itself: none of its cells can be measured
        failed.append(f"{name} {dtype}: {in_one_line(problem)}")
    if args.device != "cpu":
        torch.cuda.empty_cache()
    parent.send("ready")
    left = parent.recv()
    end = time.perf_counter() + left
    for own in failed:
        parent.send(("failed", own))
    for cell in cells:
        if time.perf_counter() > end:
            parent.send(("left_out", cell.about))
            continue
        try:
            parent.send(("rows", cell.row(args.tuning)))
        except Exception as problem:
            parent.send(("failed", f"{cell.about}: {in_one_line(problem)}"))
    parent.send(None)


def _summary(results: Results) -> str:
    lines, rows = [], results.rows
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
    lines.append(f"failed: {'; '.join(results.failed) or 'nothing'}")
    return "\n".join([*lines, f"no time was left for: {', '.join(results.left_out) or 'nothing'}"])


def _write(out: Path | None, device: torch.device, results: Results) -> None:
    if out is None:
        return
    about = {"machine": machine(), "device": name_of(device), **vars(results)}
    out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# {name_of(device)}, torch {torch.__version__}, {date.today()}", "",
        "Milliseconds, medians. Launches: of a call of all requests (of a quarter of them). Peak MiB: of called ones,"
        " beyond weights and inputs. Predicted: over measured, kernels of the original.", "",
        "| scenario | dtype | R x N | best original | warmed up | tuned | other tensors | best / warmed up | "
        "best / tuned | best / other tensors | launches | peak MiB, original -> ours | predicted |", "|" + "---|" * 13,
        *map(_line, results.rows), "", *(f"* {line}" for line in _summary(results).splitlines()),
    ]  # fmt: skip
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    times, launched, peak = row["milliseconds"], row["launches"], row["peak_bytes"]
    way = min((way for way in times if way not in OURS), key=times.__getitem__)
    fewer = "" if row["fewer_launches"] is None else f" ({row['fewer_launches']})"
    ours = [f"{times[own]:.3f}" if own in times else "-" for own in OURS]
    memory = [f"{peak[own] / 2**20:.0f}" if own in peak else "-" for own in ("original", "ours")]
    cells = [
        row["scenario"], row["dtype"].removeprefix("torch."), f"{row['requests']} x {row['candidates']}",
        f"{times[way]:.3f} ({way})", *ours, *(f"{row['ratio'][own]:.2f}x" for own in OURS),
        f"{launched.get('warmed up', '-')}{fewer}", " -> ".join(memory),
        "-" if row["predicted"] is None else f"{row['predicted']:.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cells(
    name: str, dtype: torch.dtype, device: torch.device, args: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Timed]]]:
    """One model in all sizes: what each is called, and what gets it ready."""
    case = scenario(name)
    model = case.model(dtype=dtype).to(device)
    few = [{key: x.to(device) for key, x in side.items()} for side in case.sides(4, 4, dtype=dtype)]
    hoisted = hoist_program(capture(model, case.arguments(*few), case.context_names))
    sizes = (suite.BLOCK["cpu" if args.tiny else "cuda"],) if name in BLOCKS else SIZES
    for requests, candidates in [(r, n // 100) for r, n in sizes] if args.tiny and name not in BLOCKS else sizes:
        about = f"{name} {str(dtype).removeprefix('torch.')} {requests} x {candidates}"
        yield about, partial(Timed, about, case, model, hoisted, (requests, candidates), args)


class Timed:
    """A model called with one size: every way that is equal to the original, compiled and recorded, to be timed."""

    def __init__(
        self, about: str, case: Scenario, model: torch.nn.Module, hoisted: HoistedModel, size: tuple[int, int],
        args: argparse.Namespace,
    ) -> None:  # fmt: skip
        self.about, self.case, (self.requests, self.candidates) = about, case, size
        self.device, self.dtype, self.compiles = hoisted.device, hoisted.dtype, args.compiling > 0
        self.warm = copy.deepcopy(hoisted).warm_up([self.candidates], [self.requests])
        self.tuned = copy.deepcopy(hoisted)
        self._tune(max(args.compiling, 1.0))
        context, candidate = (
            {key: x.to(self.device) for key, x in side.items()} for side in case.sides(*size, dtype=self.dtype)
        )
        given = Given(case, context, candidate, Cell(case, self.candidates, self.requests).offsets)
        self.problems: dict[str, str] = {}
        with torch.inference_mode():
            self.calls = self._equal(self._ways(model, given, args.tiny))
            for call in self.calls.values():  # what comes again and again is recorded then
                for _ in range(3):
                    call()
            asked = {way: call for way, call in self.calls.items() if way in ("original", "warmed up")}
            self.launches = {way: launches(call, self.device) for way, call in asked.items()}
            called = {"original": self.calls["original"], "ours": given.hoisted(hoisted)}  # a recording has its memory
            self.peak = {way: peak_bytes(call, self.device) for way, call in called.items()}
            self.fewer = self._of_fewer(given) if self.requests >= 8 else None

    def _tune(self, seconds: float) -> None:
        backends = None if self.compiles else ["graphs"] if self.device.type == "cuda" else []
        self.tuned.tune([self.candidates], [self.requests], seconds, backends=backends)

    def _ways(self, model: torch.nn.Module, given: Given, tiny: bool) -> dict[str, Call]:
        calls: dict[str, Call] = {
            "original": eager(model, given),
            "warmed up": given.hoisted(self.warm),
            "tuned": given.hoisted(self.tuned),
            "other tensors": self._of_others(given),
        }
        if not tiny:
            calls["compiled"] = eager(torch.compile(model, dynamic=False), given)
        if self.device.type == "cuda":
            calls |= {f"{x}, recorded": partial(_recorded, calls[x], {}) for x in ("original", "compiled")}
        return calls

    def _of_others(self, given: Given) -> Call:
        """The tuned model, called with other tensors each time: one that is called with the same copies nothing."""
        bounds = given.request_offsets

        def call() -> Any:
            context, candidate = (
                {n: x.view(x.shape) for n, x in own.items()} for own in (given.context, given.candidate)
            )
            return self.tuned(*self.case.arguments(context, candidate), request_offsets=bounds)

        return call

    def _equal(self, calls: dict[str, Call]) -> dict[str, Call]:
        """Those that score as the original does; what the others do is told."""
        truth = calls["original"]()
        for way, call in calls.items():
            try:
                apart = error(call(), truth)
                if not apart <= tolerance(self.dtype, self.device):
                    self.problems[way] = f"differs by {apart:.0e}"
            except Exception as problem:  # what cannot be compiled or recorded
                self.problems[way] = in_one_line(problem)
        return {way: call for way, call in calls.items() if way not in self.problems}

    def _of_fewer(self, given: Given) -> int:
        """Launches of a call of a quarter of the requests."""
        requests, candidates = self.requests // 4, self.candidates // 4
        context, candidate = (
            {name: x[:count] for name, x in side.items()}
            for side, count in ((given.context, requests), (given.candidate, candidates))
        )
        self.warm.warm_up([candidates], [requests])
        less = self.case.arguments(context, candidate)
        return launches(partial(self.warm, *less, request_offsets=even(candidates, requests)), self.device)

    def row(self, tuning: float) -> dict[str, Any]:
        """All ways in turn, after what is tuned was tuned alone on the machine."""
        self._tune(tuning)
        with torch.inference_mode():
            truth = self.calls["original"]()
            ours = [way for way in OURS if way in self.calls for _ in range(5)]
            apart = max(error(self.calls[way](), truth) for way in ours)
            if not apart <= tolerance(self.dtype, self.device):
                raise AssertionError(f"it differs by {apart:.0e}")
            times = {way: t.median for way, t in interleaved(self.calls, TIMING, warmup=2).items()}
            shown = [way for way in ("original, recorded", "warmed up") if way in self.calls]
            taken = {way: kernels(self.calls[way], self.device) for way in shown}
        best = min(t for way, t in times.items() if way not in OURS)
        return {
            "scenario": self.case.name, "dtype": str(self.dtype), "requests": self.requests,
            "candidates": self.candidates, "milliseconds": times, "problems": self.problems,
            "plans": {"warmed up": self._plan(self.warm), "tuned": self._plan(self.tuned)},
            "ratio": {way: best / times[way] if way in times else 0.001 for way in OURS},
            "launches": self.launches, "fewer_launches": self.fewer, "peak_bytes": self.peak,
            "predicted": self._predicted(times.get("original, recorded")), "kernels": taken,
            "tuning": str(self.tuned.report().tuning),
        }  # fmt: skip

    def _plan(self, model: HoistedModel) -> str:
        return str(model.plans.ranges.at(self.candidates, self.requests))

    def _predicted(self, measured: float | None) -> float | None:
        """Predicted over measured milliseconds of the original's kernels, recorded."""
        target = target_of(self.device, self.dtype, recorded=True)
        plan = self.tuned.plans.plans[self.tuned.plans.original or 0]
        if measured is None or target is None or not isinstance(plan, Plan):
            return None
        seconds = target.predicted(plan.per_call, plan.outputs, self.candidates, self.requests)
        return 1e3 * float(seconds) / measured


def _told(row: dict[str, Any]) -> str:
    """A row in one line."""
    times = {way: round(t, 3) for way, t in row["milliseconds"].items()}
    cell = f"{row['scenario']} {row['dtype']} {row['requests']} x {row['candidates'] // row['requests']}"
    ratios = " ".join(f"{ratio:.2f}x {way}" for way, ratio in row["ratio"].items())
    return f"{cell}: {ratios} {row['plans']} {times} {row['problems']} {row['launches']} {row['predicted']}"


def _recorded(call: Call, made: dict[str, Call]) -> Any:
    """Recorded at the first call."""
    if "graph" not in made:
        made["graph"] = graphed(call)
    return made["graph"]()


if __name__ == "__main__":
    main()
