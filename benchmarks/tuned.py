"""Ten rankers on one thread of a CPU: hoisted and tuned against the best of several ways to run the original.

    python -m benchmarks.tuned                                              goes on where it ended
    python -m benchmarks.tuned --dtype bfloat16 --name tuned-bfloat16       the same in bfloat16
    python -m benchmarks.tuned --only norm_linear --seconds 2 --tune 5 --out /tmp           to see that it runs

The original is called, compiled by torch.compile for its size, and run by ONNX Runtime and OpenVINO, in bfloat16 by
OpenVINO alone, in the precision that it chooses itself, each on rows that are repeated before the clock starts; a way
that does not take a model is left out, and why is in the result. All are compared with the original in float64, of the
same weights, before they are timed in turn. Shown with it: the hoisted model as `hoist` leaves it.
"""

from __future__ import annotations

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

from benchmarks import dated
from rankhoist.bench.baselines import Given, eager
from rankhoist.bench.scenarios import Scenario, scenario
from rankhoist.capture import capture
from rankhoist.compiler.targets import openvino
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.runtime.alike import error, tolerance

NAMES = (
    "cross_full", "cross_low_rank", "dot_pairs_80_10", "dot_pairs_27_4", "xdeepfm", "target_attention", "norm_linear",
    "token_attention", "causal_history", "mmoe",
)  # fmt: skip
SIZES = (100, 1000)
ORIGINALS = {
    "float32": ("original", "torch.compile", "ONNX Runtime", "OpenVINO"),
    "bfloat16": ("original", "torch.compile", "OpenVINO"),
}  # fmt: skip
OURS = ("hoisted", "tuned")
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "openvino", "rankhoist")


def main() -> None:
    """Measure what is not there yet, print, write."""
    parser = dated.flags("Rankers, tuned, against the original's best way on one thread.", 10.0, "size")
    parser.add_argument("--dtype", choices=list(ORIGINALS), default="float32", help="of the model and its inputs")
    parser.add_argument("--only", metavar="GLOB", default="*", help="scenarios")
    parser.add_argument("--tune", type=float, default=40.0, help="seconds per scenario (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no scenario is begun")
    parser.add_argument("--name", default="tuned", help="of the result, after its date (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    libraries = tuple(name for name in PACKAGES if _installed(name))
    start, record = time.monotonic(), dated.begun(*libraries) | {"dtype": args.dtype, "rows": []}
    file = dated.path_of(args.out, args.name, record)
    if file.exists():
        record["rows"] = json.loads(file.read_text())["rows"]
    record["note"] = args.note
    if args.dtype == "bfloat16" and "openvino" in libraries:
        record["note"] += f" OpenVINO chose to compute in {openvino_precision()}."
    done = {row["scenario"] for row in record["rows"]}
    for name in fnmatch.filter(NAMES, args.only):
        if name in done or time.monotonic() - start > args.limit:
            continue
        record["rows"] += measured(scenario(name), getattr(torch, args.dtype), args.tune, args.seconds)
        title = "The original's best way against the hoisted model, tuned"
        dated.write(args.out, args.name, record, title, about(record), table(record), libraries)
    print(table(record))


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def measured(case: Scenario, dtype: torch.dtype, tuning: float, seconds: float) -> list[dict[str, Any]]:
    """One model in all sizes."""
    model = case.model().to(dtype)
    plain = hoist_program(capture(model, in_dtype(case.inputs(4, 4), dtype), case.context_names))
    tuned = copy.deepcopy(plain).tune(SIZES, [1], tuning)
    truth = copy.deepcopy(model).double()
    rows = []
    for candidates in SIZES:
        context, candidate = in_dtype(case.sides(1, candidates), dtype)
        given = Given(case, context, candidate, [0, candidates])
        call = eager(model, given)
        makers: dict[str, Callable[[], Callable[[], Any]]] = {
            "original": lambda call=call: call,
            "torch.compile": lambda call=call: partial(torch.compile(model, dynamic=False), *call.args),
            "ONNX Runtime": lambda call=call: in_onnx_runtime(model, call.args),
            "OpenVINO": lambda call=call: in_openvino(model, call.args),
            "hoisted": lambda given=given: given.hoisted(plain),
            "tuned": lambda given=given: given.hoisted(tuned),
        }
        exact = eager(truth, Given(case, *in_dtype((context, candidate), torch.float64), [0, candidates]))
        ways = (*ORIGINALS[str(dtype).removeprefix("torch.")], *OURS)
        row = timed({way: makers[way] for way in ways}, exact, tolerance(dtype, torch.device("cpu")), seconds)
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
    makers: dict[str, Callable[[], Callable[[], Any]]], exact: Callable[[], Any], equal: float, seconds: float
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
                if apart <= equal:
                    calls[way] = call
                else:
                    problems[way] = f"differs by {apart:.0e} of the scale"
            except Exception as problem:  # whatever a compiler or an exporter does not take
                problems[way] = f"{type(problem).__name__}: {str(problem).strip()[:200]}"
        times = interleaved(calls, seconds, clock=time.process_time)  # OpenVINO may have a thread of its own
    medians = {way: t.median for way, t in times.items()}
    best = min(medians[way] for way in medians if way not in OURS)
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


def in_openvino(model: torch.nn.Module, args: Sequence[Any]) -> Callable[[], list[torch.Tensor]]:
    """The original in OpenVINO, for so many rows, on one thread and else as it comes; bfloat16 is given as float32, in
    which the weights are the same.
    """
    package, own = openvino.imported(), {p.dtype for p in model.parameters()}
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if own == {torch.float32} else {}
    args = in_dtype(pytree.tree_map(torch.Tensor.contiguous, tuple(args)), torch.float32)
    shapes = [tuple(x.shape) for x in pytree.tree_leaves(args)]
    converted = package.convert_model(copy.deepcopy(model).float(), example_input=args, input=shapes)
    compiled = package.Core().compile_model(converted, "CPU", {"INFERENCE_NUM_THREADS": 1, **precision})
    request, arrays = compiled.create_infer_request(), [x.numpy() for x in pytree.tree_leaves(args)]

    def call() -> list[torch.Tensor]:
        request.infer(arrays, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(x.data) for x in request.output_tensors]

    return call


def openvino_precision() -> str:
    """What it computes in on this machine, if nothing is said."""
    return str(openvino.imported().Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name())


def in_dtype(values: Any, dtype: torch.dtype) -> Any:
    """Tensors of numbers in a dtype, ids as they are."""
    return pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def about(record: dict[str, Any]) -> str:
    """What was measured."""
    return (
        f"{record['dtype']}, one request; milliseconds of this process, medians of calls in turn, each way compared "
        "with the original in float64 before. Ratios are the best of the original's ways over ours. "
        + record["note"].strip()
    )


def geomean(ratios: Sequence[float]) -> str:
    """Of some ratios, and the lowest."""
    mean = math.exp(sum(map(math.log, ratios)) / max(len(ratios), 1))
    return f"geomean {mean:.2f}x of {len(ratios)}, lowest {min(ratios, default=math.nan):.2f}x"


def but_for_openvino(row: dict[str, Any], way: str) -> float:
    """The ratio where OpenVINO's run of the original is left out, as it was before it was a backend."""
    times = row["milliseconds"]
    return float(min(times[w] for w in times if w not in (*OURS, "OpenVINO")) / times[way])


def table(record: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows, ways = record["rows"], [*ORIGINALS[record["dtype"]], *OURS]
    lines = [
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
            own = [r for r in rows if r["candidates"] == candidates and way in r["ratios"]]
            told = geomean([r["ratios"][way] for r in own])
            if record["dtype"] == "float32":
                told += f"; but for OpenVINO's original {geomean([but_for_openvino(r, way) for r in own])}"
            lines.append(f"* N = {candidates}, {way}: {told}")
    left = [f"* {r['scenario']}, N = {r['candidates']}: {w}: {p}" for r in rows for w, p in r["problems"].items()]
    return "\n".join([*lines, *(["", "Left out:", "", *left] if left else []), ""])


if __name__ == "__main__":
    main()
