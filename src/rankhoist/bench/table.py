"""The Markdown page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankhoist.bench.goals import (
    LEVELS,
    Record,
    against_fastest,
    cell_name,
    fastest,
    foretold,
    median,
    never_slower,
    over_floor,
    ratio,
)

BASELINES = ["eager", "compile", "onnx", "vmap"]
GRAPHS = ["eager graph", "full graph"]  # only on a CUDA device
WHAT = """\
`eager` is the original on repeated rows (for one request a view; otherwise repeated before the clock starts),
`compile` the same through `torch.compile`, `onnx` in ONNX Runtime, `vmap` maps it over candidates with the context
unbatched. A level's time is that of one call, context work included: `prepare` and `score` are its two halves at
`full`. Below `full` a model is hoisted for just this size; `full` is one model for all sizes, hoisted for one
request of 1000. N counts the candidates of all R requests. The floor is the time of the matrix products of the plan
alone, each in its fastest orientation. Peak memory is what a call takes at a time beyond its inputs and weights, by
torch's own allocator."""


def page(record: dict[str, Any], plots: Sequence[str] = ()) -> str:
    """All of it: what was run, the goals, times, ratios, plots."""
    about, cells = record["machine"], record["cells"]
    timed = [r for r in cells if r["time"]]
    return "\n".join([
        f"# Benchmarks: {record['selection']}", "",
        f"{record['date']}, {about['processor']}, {about['threads']} thread(s), torch {about['torch']}, "
        f"Python {about['python']}, {record['dtype']} on {record['device']}, levels run by {record['backend']}, "
        f"plans by {record['profile']}, {record['minutes']:.0f} minutes. `{record['command']}`", "", WHAT, "",
        "## Goals", "", *_goals(record["goals"]),
        "## Milliseconds", "", "Medians of interleaved calls; for the original and `full` with quartiles.", "",
        *_times(timed), "",
        "## Ratios", "", *_ratios(timed), "",
        *_left_out(cells),
        *(f"![{name}]({name})\n" for name in plots),
    ])  # fmt: skip


def _goals(goals: Sequence[Record]) -> list[str]:
    lines = ["| goal | asked | worst | cells | met | missed by |", "|---|---|---:|---:|---|---|"]
    for g in goals:
        met = {None: "not measured", True: "yes", False: "**no**"}[g["passed"]]
        missed = "; ".join(f"{m['cell']} ({m['value']:.2f})" for m in g["missed"])
        worst = "-" if g["worst"] is None else f"{g['worst']:.2f}"
        lines.append(f"| {g['goal']} | {_asked(g)} | {worst} | {g['cells']} | {met} | {missed} |")
    return [*lines, ""]


def _asked(g: Record) -> str:
    low, high = g["low"], g["high"]
    bounds = f"{low} to {high}" if None not in (low, high) else f"at least {low}" if high is None else f"at most {high}"
    return bounds if g["most"] == 1 else f"{bounds} in {100 * g['most']:.0f} % of cells"


def _times(timed: Sequence[Record]) -> list[str]:
    columns = [*BASELINES, *LEVELS, "prepare", "score", "floor request", "floor candidate"]
    columns += [x for x in GRAPHS if any(x in r["time"] for r in timed)]
    lines = [_head(["scenario", "R", "N", *columns])]
    for r in timed:
        cells = [_time(r, x) for x in columns]
        lines.append(f"| {r['scenario']} | {r['requests']} | {r['candidates']} | " + " | ".join(cells) + " |")
    return lines


def _time(r: Record, variant: str) -> str:
    found = r["time"].get(variant)
    if found is None:
        return "-"
    spread = f" ({found['low']:.3g} to {found['high']:.3g})" if variant in ("eager", "full") else ""
    return f"{found['median']:.3g}{spread}"


def _ratios(timed: Sequence[Record]) -> list[str]:
    head = ["eager / full", "best of eager, compile, onnx / full", "expand / full", "first / full",
            "better of eager, request / full", "plan", "fastest level", "full / fastest", "score / floor",
            "predicted / measured", "multiply-adds: expand / full", "state, KiB", "peak MiB: eager", "full",
            "worst error", "hoisting, s"]  # fmt: skip
    lines = [_head(["scenario", "R", "N", *head])]
    for r in timed:
        work = r["multiply_adds"]["expand"] / max(r["multiply_adds"]["full"], 1)
        floor = f"{over_floor(r):.2f}" if median(r, "floor candidate") > 1e-3 else "-"
        cells = [
            f"{ratio(r, 'eager'):.2f}", f"{ratio(r, min(_baselines(r), key=lambda x: median(r, x))):.2f}",
            *(f"{ratio(r, x):.2f}" for x in ("expand", "first")), f"{never_slower(r):.2f}",
            f"{r['plan']['level']} ({r['plan']['number'] + 1} of {r['plan']['of']})", fastest(r),
            f"{against_fastest(r):.2f}", floor, f"{foretold(r):.2f}", f"{work:.2f}", f"{r['state_bytes'] / 1024:.0f}",
            *(f"{r['peak_bytes'][x] / 2**20:.1f}" for x in ("eager", "full")), f"{max(r['errors'].values()):.0e}",
            f"{r['hoisting_seconds']['capture']:.1f} + {r['hoisting_seconds']['full']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {r['scenario']} | {r['requests']} | {r['candidates']} | " + " | ".join(cells) + " |")
    return lines


def _baselines(r: Record) -> list[str]:
    """Those that were timed and do all work for every candidate."""
    return [x for x in BASELINES if x in r["time"] and x != "vmap"]


def _head(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) - 1)


def _left_out(cells: Sequence[Record]) -> list[str]:
    """What a dash stands for, and cells that were refused."""
    reasons: dict[str, list[str]] = {}
    for r in cells:
        for variant, reason in r["skipped"].items():
            reasons.setdefault(f"`{variant}`: {reason}", []).append(cell_name(r))
    lines = [f"- {reason} ({len(names)} cells, {names[0]} the first)" for reason, names in reasons.items()]
    lines += [f"- {cell_name(r)}: not equal, so not timed: {r['errors']}" for r in cells if not r["equal"]]
    return ["## Left out, and why", "", *lines, ""] if lines else []
