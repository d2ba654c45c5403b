"""Every public model of the tests at every level: equality, multiply-adds per request, and what stayed per candidate.

    python benchmarks/zoo.py [--fields narrow|mid|wide] [--candidates N] [--only NAME] [--out benchmarks/results]

Counts are those of the compiler's cost model for one request of N candidates; no speed is measured here.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from rankhoist import HoistedModel, Workload
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.targets.machine import machine
from rankhoist.hoist import hoist_program

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import conftest  # noqa: F401  (before deepctr_torch, which it keeps off the network)
from public_models import SCALES, Case, cases, outputs

LEVELS = [level.name.lower() for level in Level]
PACKAGES = ["torch", "deepctr-torch", "torch-rechub", "rankhoist"]
ROWS = 7
OFFSETS = [0, 3, 3, ROWS]


@dataclass(frozen=True)
class Result:
    """One model.

    Attributes:
        error: worst |hoisted - original| over all levels, relative to the largest score.
        multiply_adds: by level, for one request.
        reasons: why operators stayed as they were at level `full`, with counts.
        seconds: export, and search at level `full`.
    """

    model: str
    dtype: str
    error: float
    multiply_adds: dict[str, int]
    reasons: dict[str, int]
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times more multiply-adds the plain model does."""
        return self.multiply_adds["expand"] / max(self.multiply_adds["full"], 1)


# -- one model


def measure(case: Case, candidates: int) -> Result:
    """Hoist a model at every level and compare it with the original."""
    model = case.model()
    start = time.perf_counter()
    program = case.captured(model)
    workload = Workload(candidates)
    full = hoist_program(program, workload=workload)
    seconds = time.perf_counter() - start
    hoisted = {level: hoist_program(program, workload=workload, level=level) for level in LEVELS[:-1]} | {"full": full}
    return Result(
        case.name,
        str(case.dtype).removeprefix("torch."),
        max(error for h in hoisted.values() for error in errors(case, model, h)),
        {level: h.plan.cost.multiply_adds for level, h in hoisted.items()},
        dict(collections.Counter(full.plan.reasons.values()).most_common()),
        seconds,
    )


def errors(case: Case, model: Any, hoisted: HoistedModel) -> Iterator[float]:
    """For one request, and for three of which one is empty."""
    context, candidate = case.rows(3, seed=1), case.rows(ROWS, seed=2)
    for first, offsets in ((2, [0, ROWS]), (0, OFFSETS)):
        own = {n: t[first:] for n, t in context.items()}
        owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), torch.tensor(offsets).diff())
        expected = model(*case.original_inputs(case.repeated(own, candidate, owner)))
        actual = hoisted(*case.hoisted_inputs(own, candidate), request_offsets=offsets)
        if pytree.tree_structure(actual) != pytree.tree_structure(expected):
            raise AssertionError(f"{case.name}: the result has another structure")
        for a, b in zip(outputs(actual), outputs(expected), strict=True):
            yield float("inf") if a.shape != b.shape else float((a - b).abs().max() / b.abs().max())


# -- the tables


def markdown(results: Sequence[Result], about: dict[str, Any]) -> str:
    """The page: what was run, the table of counts, and the reasons."""
    head = ["model", "dtype", "worst error", *LEVELS, "expand / full", "hoisting, s"]
    lines = [
        f"# Public models at every level, {about['date']}",
        "",
        f"`{about['command']}`",
        "",
        f"Thousands of multiply-adds for one request of {about['candidates']} candidates, by the compiler's own count. "
        f"Fields: {about['fields']}. "
        "The worst error is over all levels, one request and three ragged ones, relative to the largest score.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * (len(head) - 2),
        *(_row(r) for r in results),
        "",
        "## What stayed as it was at level full, and why",
        "",
        "| model | reasons (operators) |",
        "|---|---|",
        *(f"| {r.model} | {_reasons(r)} |" for r in results),
        "",
        "## Machine",
        "",
        *(f"- {k}: {v}" for k, v in (about["machine"] | about["versions"]).items()),
    ]
    return "\n".join(lines) + "\n"


def _row(r: Result) -> str:
    counts = [f"{r.multiply_adds[level] / 1e3:,.0f}" for level in LEVELS]
    return f"| {r.model} | {r.dtype} | {r.error:.0e} | {' | '.join(counts)} | {r.ratio:.1f}x | {r.seconds:.1f} |"


def _reasons(r: Result) -> str:
    return "; ".join(f"{reason.replace('|', '/')} ({count})" for reason, count in r.reasons.items()) or "none"


# -- the command


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fields", choices=SCALES, default="narrow", help="id fields: 5+3, 8+5 or 16+10")
    parser.add_argument("--candidates", type=int, default=1000, help="candidates of one request")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results are written")
    return parser.parse_args(given)


def main(given: Sequence[str]) -> int:
    """Run, show progress, write both files."""
    a = arguments(given)
    scale = SCALES[a.fields]
    chosen = [case for case in cases(scale) if a.only in case.name]
    if not chosen:
        print(f"no model's name contains {a.only!r}", file=sys.stderr)
        return 2
    results = []
    for number, case in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {case.name}", end=" ", file=sys.stderr, flush=True)
        results.append(measure(case, a.candidates))
        print(f"{results[-1].ratio:.1f}x, error {results[-1].error:.0e}", file=sys.stderr, flush=True)
    about = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/zoo.py", *given]),
        "fields": f"{a.fields}, {scale.context} context and {scale.candidate} candidate ids, embeddings of "
        f"{scale.embedding}, layers of {2 * scale.width} and {scale.width}",
        "candidates": a.candidates,
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    page = markdown(results, about)
    print(page)
    a.out.mkdir(parents=True, exist_ok=True)
    name = a.out / f"{about['date']}-zoo-{a.fields}"
    name.with_suffix(".md").write_text(page)
    rows = [asdict(r) | {"ratio": round(r.ratio, 2)} for r in results]
    name.with_suffix(".json").write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sys.exit(main(sys.argv[1:]))
