"""Ten rankers on one thread of a CPU: hoisted and tuned against the best of three ways to run the original.

    python -m benchmarks.tuned --out benchmarks/results/DATE-tuned          goes on where it ended
    python -m benchmarks.tuned --only norm_linear --seconds 2 --tune 5      to see that it runs

The original is called, compiled by torch.compile for its size, and run by ONNX Runtime, each on rows that are repeated
before the clock starts; a way that does not take a model is left out, and why is in the result. All are compared with
the original in float64 before they are timed in turn. Shown with it: the hoisted model as `hoist` leaves it.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils import _pytree as pytree

from rankhoist.bench.baselines import eager
from rankhoist.bench.scenarios import Scenario, scenario
from rankhoist.capture import capture
from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.runtime.alike import error

NAMES = (
    "cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "xdeepfm", "target_attention", "norm_linear",
    "token_attention", "causal_history", "mmoe",
)  # fmt: skip
SIZES = (100, 1000)
ORIGINALS = ("original", "torch.compile", "ONNX Runtime")
OURS = ("hoisted", "tuned")
EQUAL = 1e-4  # of the scale: float32
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "rankhoist")


def main() -> None:
    """Measure what is not there yet, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing per size (default: %(default)s)")
    parser.add_argument("--tune", type=float, default=40.0, help="seconds per scenario (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no scenario is begun")
    parser.add_argument("--note", default="", help="what else is to be known of the run")
    parser.add_argument("--out", type=Path, help="the result, as NAME.json and NAME.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, file = time.monotonic(), args.out and args.out.with_suffix(".json")
    record = json.loads(file.read_text()) if file and file.exists() else {"rows": []}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    record |= {"machine": machine(), "versions": versions, "note": args.note or record.get("note", "")}
    done = {row["scenario"] for row in record["rows"]}
    for name in fnmatch.filter(NAMES, args.only):
        if name in done or time.monotonic() - start > args.limit:
            continue
        record["rows"] += measured(scenario(name), args.tune, args.seconds)
        if file:
            file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(page(record), encoding="utf-8")
    print(page(record))


def measured(case: Scenario, tuning: float, seconds: float) -> list[dict[str, Any]]:
    """One model in all sizes."""
    model = case.model()
    plain = hoist_program(capture(model, case.inputs(4, 4), case.context_names))
    tuned = copy.deepcopy(plain).tune(SIZES, [1], tuning)
    truth = copy.deepcopy(model).double()
    rows = []
    for candidates in SIZES:
        context, candidate = case.sides(1, candidates)
        offsets, given = [0, candidates], case.arguments(context, candidate)
        call = eager(model, case, context, candidate, offsets)
        makers: dict[str, Callable[[], Callable[[], Any]]] = {
            "original": lambda call=call: call,
            "torch.compile": lambda call=call: partial(torch.compile(model, dynamic=False), *call.args),
            "ONNX Runtime": lambda call=call: in_onnx_runtime(model, call.args),
            "hoisted": lambda given=given: partial(plain, *given),
            "tuned": lambda given=given: partial(tuned, *given),
        }
        exact = eager(truth, case, *({n: doubled(x) for n, x in s.items()} for s in (context, candidate)), offsets)
        row = timed(makers, exact, seconds)
        plan = tuned.plans.ranges.at(candidates, 1)
        rows.append(
            {
                "scenario": case.name,
                "candidates": candidates,
                "plan": plan.plan,
                "backend": plan.backend,
                "chunk": plan.chunk,
            }
            | row
        )
        print(rows[-1], flush=True)
    return rows


def timed(
    makers: dict[str, Callable[[], Callable[[], Any]]], exact: Callable[[], Any], seconds: float
) -> dict[str, Any]:
    """Ways that are equal to the original in float64, in turn; of the others, why they are left out."""
    calls: dict[str, Callable[[], Any]] = {}
    problems: dict[str, str] = {}
    with torch.no_grad():
        truth = exact()
        for way, make in makers.items():
            try:
                call = make()
                apart = error(call(), truth)
                if apart <= EQUAL:
                    calls[way] = call
                else:
                    problems[way] = f"differs by {apart:.0e} of the scale"
            except Exception as problem:  # whatever a compiler or an exporter does not take
                problems[way] = f"{type(problem).__name__}: {str(problem).strip()[:200]}"
        times = interleaved(calls, seconds, clock=time.thread_time)  # all ways run in this thread
    medians = {way: t.median for way, t in times.items()}
    best = min(medians[way] for way in ORIGINALS if way in medians)
    ratios = {way: best / medians[way] for way in OURS if way in medians}
    return {
        "milliseconds": medians,
        "calls": min(t.calls for t in times.values()),
        "ratios": ratios,
        "problems": problems,
    }


def in_onnx_runtime(model: torch.nn.Module, args: Sequence[Any]) -> Callable[[], list[torch.Tensor]]:
    """The original in ONNX Runtime, for so many rows, on one thread; inputs are arrays before the clock starts."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    args = pytree.tree_map(torch.Tensor.contiguous, tuple(args))
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(model, args, path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    arrays = [x.numpy() for x in pytree.tree_leaves(args)]
    names = [x.name for x in session.get_inputs()]
    feed = dict(zip(names, arrays, strict=True))
    return lambda: [torch.from_numpy(x) for x in session.run(None, feed)]


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Numbers in float64, ids as they are."""
    return x.double() if x.is_floating_point() else x


def page(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    m, rows = record["machine"], record["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    ways = [*ORIGINALS, *OURS]
    lines = [
        "# The original's best way against the hoisted model, tuned",
        "",
        f"{m['processor']}, {m['threads']} thread, {versions}. Float32, one request; milliseconds of this thread, "
        "medians of calls in turn, each way compared with the original in float64 before. Ratios are the best of the "
        "original's three ways over ours.",
        *(["", record["note"]] if record["note"] else []),
        "",
        f"| scenario | N | {' | '.join(ways)} | best original / hoisted | / tuned | tuned: plan, backend |",
        "|---|---:|" + "---:|" * (len(ways) + 2) + "---|",
    ]
    for r in rows:
        ms = " | ".join(f"{r['milliseconds'][w]:.3g}" if w in r["milliseconds"] else "-" for w in ways)
        ratios = " | ".join(f"{r['ratios'][w]:.2f}x" if w in r["ratios"] else "-" for w in OURS)
        way = f"{r['plan']}, {r['backend']}" + (f", {r['chunk']} rows at a time" if r["chunk"] else "")
        lines.append(f"| {r['scenario']} | {r['candidates']} | {ms} | {ratios} | {way} |")
    lines.append("")
    for candidates in SIZES:
        for way in OURS:
            own = [r["ratios"][way] for r in rows if r["candidates"] == candidates and way in r["ratios"]]
            if own:
                geomean = math.exp(sum(map(math.log, own)) / len(own))
                lines.append(f"* N = {candidates}, {way}: geomean {geomean:.2f}x of {len(own)}, lowest {min(own):.2f}x")
    left = [f"* {r['scenario']}, N = {r['candidates']}: {w}: {p}" for r in rows for w, p in r["problems"].items()]
    return "\n".join([*lines, *(["", "Left out:", "", *left] if left else []), ""])


if __name__ == "__main__":
    main()
