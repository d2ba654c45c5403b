"""Public models on every backend: equal scores by the certificate's tolerances, and times for one request.

    python benchmarks/backends.py [--fields narrow|mid|wide] [--candidates N] [--only NAME] [--backends ...]
                                  [--jobs N] [--out benchmarks/results]

With `--jobs`, several models beside each other and no times. In float32. A backend is equal where its error against a
float64 run of the original is at most twice the original's own error (or a few units in the last place). Calls: 1
candidate, 2, 7, 100 and N of one request; three ragged requests.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.metadata
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload, load
from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.hoist import hoist_program
from rankhoist.runtime import Runner, load_onnx, load_package
from rankhoist.verify.measure import Outputs, difference, outputs, scale_of, tolerance

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import conftest  # noqa: F401  (before deepctr_torch, which it keeps off the network)
from public_models import SCALES, TEST, Batch, Case, cases

BACKENDS = ["eager", "saved", "inductor", "onnx", "package"]
PACKAGES = ["torch", "onnx", "onnxruntime", "onnxscript", "deepctr-torch", "torch-rechub", "rankhoist"]
BLOCKS = [0, 3, 3, 7]


@dataclass(frozen=True)
class Result:
    """One model on one backend.

    Attributes:
        share: worst error over the certificate's tolerance for it; equal means at most 1.
        milliseconds: one `score` of N candidates with a prepared state, median; None where none was taken.
        seconds: to export or compile, all calls with their checks included.
        problem: why there is none of this, or empty.
    """

    model: str
    backend: str
    share: float | None = None
    milliseconds: float | None = None
    seconds: float | None = None
    problem: str = ""


# -- one model


def measure(case: Case, names: Sequence[str], candidates: int, timed: bool) -> Iterator[Result]:
    """Compare every backend with the original in float64."""
    model = case.model()
    case = replace(case, dtype=torch.float32)
    single = copy.deepcopy(model).float()
    program = case.captured(single)
    hoisted = HoistedModel(program, hoist_program(program, workload=Workload(candidates)).plan)  # one plan, not several
    calls = list(batches(case, candidates))
    truths = [outputs(original(case, model, *call, double=True)) for call in calls]
    own = [outputs(original(case, single, *call, double=False)) for call in calls]
    for name in names:
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                prepare, score = runner(hoisted, name, Path(folder))
                made = [outputs(score(prepare(split(case, c, True)), split(case, n, False), o)) for c, n, o in calls]
                seconds = time.perf_counter() - start
                share = worst(made, own, truths)
                context, rows, _ = calls[-2]
                state, rows = prepare(split(case, context, True)), split(case, rows, False)
                call = partial(score, state, rows, None)
                time_of_it = interleaved({name: call}, 1.0)[name].median if timed else None
            yield Result(case.name, name, share, time_of_it, seconds)
        except Exception as error:
            yield Result(case.name, name, problem=f"{type(error).__name__}: {str(error)[:400]}")


def measured(index: int, a: argparse.Namespace) -> list[Result]:
    """A model by its place in the list: cases hold functions, which do not travel to another process."""
    return list(measure(chosen(a)[index], a.backends, a.candidates, a.jobs == 1))


def chosen(a: argparse.Namespace) -> list[Case]:
    """The models asked for."""
    return [c for c in cases(TEST if a.fields == "test" else SCALES[a.fields]) if a.only in c.name]


def batches(case: Case, candidates: int) -> Iterator[tuple[Batch, Batch, list[int]]]:
    """Contexts, candidates and the boundaries of requests; the last but one is what is timed."""
    context = case.rows(3, seed=1)
    one = {n: t[2:] for n, t in context.items()}
    for count in [1, 2, 7, 100, candidates][not case.alone :]:
        yield one, case.rows(count, seed=2), [0, count]
    yield context, case.rows(BLOCKS[-1], seed=2), BLOCKS


def original(case: Case, model: nn.Module, context: Batch, rows: Batch, offsets: list[int], double: bool) -> Any:
    """The original over whole rows, of the same values in either precision."""
    owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), torch.tensor(offsets).diff())
    whole = case.repeated(context, rows, owner)
    if double:
        dtype = next(p.dtype for p in model.parameters())
        case = replace(case, dtype=dtype)
        whole = {n: t.to(dtype) if t.is_floating_point() else t for n, t in whole.items()}
    with torch.no_grad():
        return model(*case.original_inputs(whole))


def runner(hoisted: HoistedModel, backend: str, folder: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`prepare` and `score` of a backend; `saved` is an artifact written, loaded and run eagerly."""
    if backend in ("eager", "inductor"):
        model = hoisted.to_backend(backend)
        return model.prepare, model.score
    if backend == "saved":
        hoisted.save(folder / "model.rankhoist")
        model = load(folder / "model.rankhoist")
        return model.prepare, model.score
    if backend == "onnx":
        hoisted.export_onnx(folder, several=True)
        made: Runner = load_onnx(folder, threads=torch.get_num_threads())
    else:
        hoisted.package(folder, several=True)
        made = load_package(folder)
    return made.prepare, made.score


def split(case: Case, batch: Batch, context: bool) -> dict[str, Tensor]:
    """One side's tensors by the names that the hoisted model has for them."""
    if case.packed:
        (both,) = case.hoisted_inputs(batch, batch)
        return {"X": both.context if context else both.candidate}
    return {n: t for n, t in batch.items() if case.fields[n].context == context}


def worst(made: list[Outputs], own: list[Outputs], truths: list[Outputs]) -> float:
    """The largest error of any output, as a share of what the certificate allows for it."""
    shares = []
    for i in range(len(truths[0].leaves)):
        expected = [t.leaves[i] for t in truths]
        scale = scale_of(expected)
        error, original = (difference([m.leaves[i] for m in side], expected, scale).error for side in (made, own))
        shares.append(error / tolerance(original, torch.float32))
    return max(shares)


# -- the command


def main(given: Sequence[str]) -> int:
    """Run, show progress, write the results; 1 if any backend is not equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fields", choices=["test", *SCALES], default="test", help="id fields: 4+3, 5+3, 8+5 or 16+10")
    parser.add_argument("--candidates", type=int, default=1000, help="candidates of the largest request")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS[:4])
    parser.add_argument("--jobs", type=int, default=1, help="processes; with more than one, nothing is timed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results are written")
    a = parser.parse_args(given)
    results: list[Result] = []
    with ProcessPoolExecutor(a.jobs, get_context("spawn"), single_threaded, max_tasks_per_child=1) as pool:
        for several in pool.map(partial(measured, a=a), range(len(chosen(a)))):
            results += several
            print(*map(row, several), sep="\n", file=sys.stderr, flush=True)
            write(results, a, given)
    return int(not all(map(equal, results)))


def write(results: Sequence[Result], a: argparse.Namespace, given: Sequence[str]) -> None:
    """The page and the record, anew after every model."""
    about = {
        "date": datetime.date.today().isoformat(), "machine": machine(), "fields": a.fields,
        "command": " ".join(["python benchmarks/backends.py", *given]), "candidates": a.candidates,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
    lines = [
        f"# Public models on every backend, {about['date']}",
        "",
        f"`{about['command']}`",
        "",
        f"float32. Error: the worst over calls with 1, 2, 7, 100 and {a.candidates} candidates and with three ragged "
        "requests, as a share of the certificate's tolerance (twice the original's own error against float64). Time: "
        f"one `score` of {a.candidates} candidates, median (none where several jobs ran beside each other). "
        "Set-up: export or compilation and all checks.",
        "",
        *(f"- {b}: {_equal(results, b)}" for b in a.backends),
        "",
        "| model | backend | error / tolerance | score, ms | set-up, s | |",
        "|---|---|---:|---:|---:|---|",
        *map(row, results),
        "",
        *(f"- {k}: {v}" for k, v in (about["machine"] | about["versions"]).items()),
    ]
    a.out.mkdir(parents=True, exist_ok=True)
    name = a.out / f"{about['date']}-backends-{a.fields}"
    name.with_suffix(".md").write_text("\n".join(lines) + "\n")
    name.with_suffix(".json").write_text(json.dumps(about | {"results": [asdict(r) for r in results]}, indent=2) + "\n")


def _equal(results: Sequence[Result], backend: str) -> str:
    own = [r for r in results if r.backend == backend]
    return f"equal on {sum(map(equal, own))} of {len(own)} models"


def equal(r: Result) -> bool:
    """By the certificate's tolerance."""
    return r.share is not None and r.share <= 1


def row(r: Result) -> str:
    """One line of the table."""
    problem = r.problem.replace("\n", " ").replace("|", "/")[:200]
    numbers = (
        f"{x:.{digits}f}" if x is not None else "-" for x, digits in zip(astuple(r)[2:5], (2, 2, 1), strict=True)
    )
    return f"| {r.model} | {r.backend} | {' | '.join(numbers)} | {problem} |"


def single_threaded() -> None:
    """In every process that measures."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    single_threaded()
    sys.exit(main(sys.argv[1:]))
