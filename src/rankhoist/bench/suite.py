"""The suite: cells (a scenario and the size of a call), each checked for equality, then timed, variants in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from rankhoist.bench.baselines import Call, Given, eager, graphed, in_onnx_runtime, vmapped
from rankhoist.bench.floor import floor, products
from rankhoist.bench.launches import launches, peak_bytes
from rankhoist.bench.scenarios import BLOCKS, FAMILIES, QUICK, SCENARIOS, Scenario, Tensors, scenario
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.targets.timing import Timing, interleaved
from rankhoist.hoist import hoist_program
from rankhoist.mistakes import in_one_line
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.alike import NOTHING, error, tolerance

LEVELS = [level.name.lower() for level in Level]
CANDIDATES = [1, 10, 100, 500, 1000, 5000]
QUICK_CANDIDATES = [1, 100, 1000]
REQUESTS = {"cpu": [1, 8, 64], "cuda": [1, 32, 64]}  # of ragged batches,
PER_REQUEST = [20, 200]  # with so many candidates each on average
BLOCK = {"cpu": (4, 32), "cuda": (15, 1024)}  # requests, and candidates in all, of a call of a single block
RAGGED = ["mlp", "cross_full", "cross_low_rank", "dot_pairs_80_10", "target_attention", "mmoe", "industrial"]
SLOW_TO_COMPILE = ["bilinear_pairs", "industrial"]  # minutes: thousands of operators, hundreds of inputs


@dataclass(frozen=True)
class Cell:
    """One call: `requests` requests with `candidates` candidates in all."""

    scenario: Scenario
    candidates: int
    requests: int = 1

    @property
    def offsets(self) -> list[int]:
        """Uneven blocks where there are several requests: from about half to one and a half of the average."""
        inner = [round(self.candidates * (r + 0.4 * (-1) ** r / 2) / self.requests) for r in range(1, self.requests)]
        return [0, *inner, self.candidates]


@dataclass(frozen=True)
class Settings:
    """How cells are measured: `compiled` adds `torch.compile` and ONNX Runtime; `backend` is that of the levels."""

    seconds: float = 3.0
    backend: str = "eager"
    compiled: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    rounds: int = 5


def quick_cells() -> list[Cell]:
    """Under five minutes: the scenarios with a goal; the ranker, whose levels take long to hoist, at one size only."""
    chosen = [scenario(name) for name in QUICK]
    return [Cell(s, n) for s in chosen for n in QUICK_CANDIDATES if n == 1000 or s.name != "industrial"]


def all_cells(device: str = "cpu") -> list[Cell]:
    """Every scenario and share of context at every number of candidates, and ragged batches."""
    cells = []
    for s in [*SCENARIOS, *FAMILIES]:
        cells += [Cell(s, n) for n in CANDIDATES]
        if s.name in RAGGED:
            cells += [Cell(s, r * n, r) for r in REQUESTS[device.split(":")[0]] for n in PER_REQUEST]
    requests, candidates = BLOCK[device.split(":")[0]]
    return [*cells, *(Cell(s, candidates, requests) for s in BLOCKS)]


def measure_all(
    cells: Iterable[Cell], settings: Settings, done: Callable[[Cell, dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """A record per cell; `done` is told of each."""
    records = []
    for case, own in _by_scenario(cells):
        subject = Subject(case, settings)
        for cell in own:
            records.append(subject.measure(cell))
            done(cell, records[-1])
    return records


def _by_scenario(cells: Iterable[Cell]) -> Iterator[tuple[Scenario, list[Cell]]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.scenario.name, []).append(cell)
    for own in groups.values():
        yield own[0].scenario, own


class Subject:
    """One scenario's model, captured once, and hoisted once at level `full`: that model has plans for all sizes."""

    def __init__(self, case: Scenario, settings: Settings) -> None:
        self.case, self.settings = case, settings
        self.model = case.model(dtype=settings.dtype).to(settings.device)
        start = time.perf_counter()
        self.program = self._captured()
        middle = time.perf_counter()
        self.full = hoist_program(self.program).to_backend(settings.backend)
        self.seconds = {"capture": middle - start, "full": time.perf_counter() - middle}
        self.compiled: Callable[..., Any] | None = None
        self.session: Callable[..., Any] | None = None

    def _captured(self) -> Program:
        context, candidate = self._inputs(4, 4)
        return capture(self.model, self.case.arguments(context, candidate), self.case.context_names)

    def _inputs(self, requests: int, candidates: int) -> tuple[Tensors, Tensors]:
        s = self.settings
        context, candidate = self.case.sides(requests, candidates, dtype=s.dtype)
        return {n: x.to(s.device) for n, x in context.items()}, {n: x.to(s.device) for n, x in candidate.items()}

    # -- one cell

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Errors of all variants, and the times of those that are equal; none is timed where a level is not."""
        below = self._below(cell)
        with torch.inference_mode():
            return self._measured(cell, below)

    def _measured(self, cell: Cell, below: dict[str, HoistedModel]) -> dict[str, Any]:
        device = torch.device(self.settings.device)
        given = Given(self.case, *self._inputs(cell.requests, cell.candidates), cell.offsets)
        plan, number = self._plan(cell)
        calls, skipped = self._calls(cell, given, below)
        errors, first = _first_calls(calls, skipped)
        wrong = {x: e for x, e in errors.items() if not e <= tolerance(self.settings.dtype, device)}
        for name in set(wrong) - {*LEVELS}:  # a baseline that is off is left out
            skipped[name] = f"differs by {wrong.pop(name):.0e}"
        times: dict[str, Timing] = {}
        if not wrong:
            timed = {x: call for x, call in calls.items() if x not in skipped}
            timed |= self._parts(given) | self._floors(cell, plan)
            times = interleaved(timed, self.settings.seconds, warmup=1, rounds=self.settings.rounds)
        workload = Workload(cell.candidates, cell.requests)
        apart = {x: calls[x] for x in ("eager", "full") if x not in wrong}
        expected = plan.target.predicted(plan.per_call, plan.outputs, cell.candidates, cell.requests)
        work = {x: h.plan.cost.multiply_adds for x, h in below.items()}
        work["full"] = sum(n.work.multiply_adds * workload.of(n.rate) for n in plan.nodes)
        return {
            "scenario": self.case.name, "family": self.case.family, "share": self.case.share,
            "dense": self.case.dense, "requests": cell.requests, "candidates": cell.candidates,
            "equal": not wrong, "errors": errors, "skipped": skipped,
            "time": {x: asdict(t) for x, t in times.items()},
            "launches": {x: launches(call, device) for x, call in apart.items()},
            "peak_bytes": {x: peak_bytes(call, device) for x, call in apart.items()},
            "plan": {"number": number, "level": plan.level.name.lower(), "of": len(self.full.plans.plans)},
            "predicted": 1e3 * float(expected),
            "state_bytes": 0 if wrong else self.full.prepare(given.context, cell.candidates).bytes,
            "multiply_adds": work,
            "hoisting_seconds": {**self.seconds}, "first_call_seconds": first,
        }  # fmt: skip

    def _calls(
        self, cell: Cell, given: Given, below: dict[str, HoistedModel]
    ) -> tuple[dict[str, Call], dict[str, str]]:
        """The variants of a whole call by name, and why others are left out."""
        calls: dict[str, Call] = {"eager": eager(self.model, given)}
        skipped = self._why_not(cell)
        if "compile" not in skipped:
            calls["compile"] = eager(self._compiled(), given)
        if "onnx" not in skipped:
            try:
                calls["onnx"] = eager(self._session(), given, copied=True)
            except Exception as problem:  # not exported, or an operator without a counterpart
                skipped["onnx"] = in_one_line(problem, 90)
        if "vmap" not in skipped:
            calls["vmap"] = vmapped(self.model, given)
        calls |= {level: given.hoisted(model) for level, model in [*below.items(), ("full", self.full)]}
        if self.settings.device.startswith("cuda"):
            self._record(given, calls, skipped)
        return calls, skipped

    def _record(self, given: Given, calls: dict[str, Call], skipped: dict[str, str]) -> None:
        """Add what a GPU records."""
        if "compile" in calls:
            overhead = torch.compile(self.model, mode="reduce-overhead")
            calls["compile reduce-overhead"] = eager(overhead, given)
        for name in ("eager", "compile", "full"):
            if name not in calls:
                continue
            try:
                calls[f"{name} graph"] = graphed(calls[name])
            except Exception as problem:  # such as a call that waits for the device, which no graph may hold
                skipped[f"{name} graph"] = in_one_line(problem, 90)

    def _why_not(self, cell: Cell) -> dict[str, str]:
        skipped = {}
        if cell.requests > 1:
            skipped["vmap"] = "several requests"
        if not self.settings.compiled:
            skipped |= dict.fromkeys(("compile", "onnx"), "not in this selection")
        elif self.case.name in SLOW_TO_COMPILE:
            skipped |= dict.fromkeys(("compile", "onnx"), "takes minutes to compile")
        if self.settings.device != "cpu" or self.settings.dtype != torch.float32:
            skipped["onnx"] = "is measured in float32 on a CPU"
        return skipped

    def _session(self) -> Callable[..., Any]:
        if self.session is None:
            self.session = in_onnx_runtime(self.model, self.case)
        return self.session

    def _compiled(self) -> Callable[..., Any]:
        if self.compiled is None:
            torch.compiler.reset()
            self.compiled = torch.compile(self.model, dynamic=True)
        return self.compiled

    def _below(self, cell: Cell) -> dict[str, HoistedModel]:
        """The levels below `full`, hoisted for just this size."""
        start = time.perf_counter()
        workload = Workload(cell.candidates, cell.requests)
        made = {}
        for level in LEVELS[:-1]:
            hoisted = hoist_program(self.program, workload=workload, level=level)
            made[level] = hoisted.to_backend(self.settings.backend)
        self.seconds["levels"] = time.perf_counter() - start
        return made

    def _parts(self, given: Given) -> dict[str, Call]:
        """Both halves of a call of `full` apart."""
        prepare = partial(self.full.prepare, given.context, given.offsets[-1])
        score = partial(self.full.score, prepare(), given.candidate, given.request_offsets)
        return {"prepare": prepare, "score": score}

    def _floors(self, cell: Cell, plan: Plan) -> dict[str, Call]:
        dtype, device = self.settings.dtype, torch.device(self.settings.device)
        return {
            f"floor {stage}": floor(products(plan.nodes, stage, cell.candidates, cell.requests), dtype, device)
            for stage in ("request", "candidate")
        }

    def _plan(self, cell: Cell) -> tuple[Plan, int]:
        """The plan that `full` uses for a call of this size."""
        number = self.full.plans.ranges.choose(cell.candidates, cell.requests)
        plan = self.full.plans.plans[number]
        assert isinstance(plan, Plan), "hoisted here, not loaded"
        return plan, number


def _first_calls(calls: dict[str, Call], skipped: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference of each variant from the original, relative to its outputs' scale; and the seconds of each
    first call, which may compile."""
    truth, errors, seconds = calls["eager"](), {}, {}
    for name in calls.keys() - {"eager"}:
        start = time.perf_counter()
        try:
            errors[name] = error(calls[name](), truth)
        except Exception as problem:  # a baseline is left out; a level that raises is not equal
            errors |= {name: NOTHING} if name in LEVELS else {}
            skipped[name] = in_one_line(problem, 90)
        seconds[name] = time.perf_counter() - start
    return errors, seconds
