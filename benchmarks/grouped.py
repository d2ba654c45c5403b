"""A step of training on grouped batches beside one on rows: `python -m benchmarks.grouped [--only NAME] [--tune S]`.

A step is forward, loss, backward and Adam, in float32 on one thread, on 32 requests of 100 candidates; medians of the
processor's time of interleaved steps. Rows are repeated before the clock starts. Gradients are compared before anything
is timed. Memory is what a step holds at most beside what was there before it, as the profiler counts it. Writes dated
JSON and Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import dated
from rankhoist import Workload, grouped
from rankhoist.bench.scenarios import scenario
from rankhoist.compiler.targets.timing import interleaved

REQUESTS, EACH = 32, 100
GOALS = {"cross_full": 2.0, "dot_pairs_27_4": 2.5, "target_attention": 2.0, "causal_history": 10.0, "mlp": 2.0,
         "norm_linear": 3.0}  # fmt: skip
ROUNDING = 1e-3  # of the largest gradient of a parameter, in float32


def measured(name: str, seconds: float, tuned: float) -> dict[str, Any]:
    """Milliseconds and peak bytes of a step, both ways; `tuned` for so many seconds before."""
    s, total = scenario(name), REQUESTS * EACH
    context, candidate = s.sides(REQUESTS, total)
    ours, theirs = s.model().train(), s.model().train()
    step = grouped(ours, s.inputs(6, 6), context=s.context_names, workload=Workload(total, REQUESTS))
    won = step.tune(seconds=tuned).graphs.tuning.points[0].won.level if tuned else step.plan.level.name.lower()
    rows = {n: x.repeat_interleave(EACH, 0) for n, x in context.items()}
    offsets = torch.arange(0, total + 1, EACH)
    calls: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
        "rows": (theirs, lambda: theirs(*s.arguments(rows, candidate))),
        "grouped": (ours, lambda: step(*s.arguments(context, candidate), request_offsets=offsets)),
    }
    for _, call in calls.values():
        call().square().mean().backward()
    errors = [_error(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
    if max(errors) > ROUNDING:
        raise SystemExit(f"{name}: gradients differ by {max(errors):.1e} of a parameter's largest")
    steps = {way: _step(model, call) for way, (model, call) in calls.items()}
    times = {way: timing.median for way, timing in interleaved(steps, seconds, clock=time.thread_time).items()}
    memory = {way: _peak(run) for way, run in steps.items()}
    return {"name": name, "ms": times, "peak": memory, "level": won, "error": max(errors)}


def _error(a: Any, b: Any) -> float:
    if a is None or b is None:
        return 0.0
    return float(((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).nan_to_num(torch.inf))


def _step(model: nn.Module, call: Callable[[], Any]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def run() -> None:
        optimizer.zero_grad()
        call().square().mean().backward()
        optimizer.step()

    return run


def _peak(run: Callable[[], None]) -> int:
    """Bytes that a step holds at most beside those from before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    held = peak = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| scenario | rows, ms | grouped, ms | rows / grouped | aimed at | peak, grouped / rows | plan |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in results:
        ms, peak, goal = r["ms"], r["peak"], GOALS.get(r["name"])
        lines.append(
            f"| {r['name']} | {ms['rows']:.1f} | {ms['grouped']:.1f} | {ms['rows'] / ms['grouped']:.2f}x "
            f"| {f'{goal:g}x' if goal else ''} | {peak['grouped'] / max(peak['rows'], 1):.2f} | {r['level']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write down."""
    parser = dated.flags(__doc__, 20.0, "scenario")
    parser.add_argument("--only", nargs="*", default=list(GOALS))
    parser.add_argument("--tune", metavar="S", type=float, default=0.0, help="seconds to tune each for, before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name in options.only:
        results.append(measured(name, options.seconds, options.tune))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    record = dated.begun() | {"requests": REQUESTS, "each": EACH, "results": results}
    about = (
        f"a step of Adam on {REQUESTS} requests of {EACH} candidates, float32: `python -m benchmarks.grouped`. "
        f"{options.note}"
    )
    dated.write(options.out, "grouped", record, "Training once per request", about, table(results))


if __name__ == "__main__":
    main()
