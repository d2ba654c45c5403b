"""Tune: prediction proposes, measurement decides.

At every size of a call the plans of a model, the original among them, are compared with the original and timed in turn
by PyTorch's own operators, on a GPU recorded as CUDA graphs; the best of them and the original then by every other
backend that is installed, and on a CPU what is near the fastest also on some rows at a time; at last the fastest few
once more, side by side. What wins there scores such calls.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from rankhoist.arguments import of_kind, whole_numbers
from rankhoist.compiler.plan import Ranges, Way
from rankhoist.compiler.targets.backends import backend_of, installed
from rankhoist.compiler.targets.machine import name_of
from rankhoist.compiler.targets.timing import Timing, interleaved
from rankhoist.errors import BackendError, InputError, VerificationError
from rankhoist.mistakes import in_one_line
from rankhoist.report.tuning import Point, Trial, Tuning
from rankhoist.runtime.ids import EAGER, GRAPHS
from rankhoist.runtime.mixing import mixes_rows
from rankhoist.runtime.offsets import LOOPS, blocks_of, even
from rankhoist.runtime.plain import dtype_name
from rankhoist.runtime.planned import OnePlan, Planned, Tunable
from rankhoist.runtime.scoring import Candidates

CANDIDATES, SECONDS = (100, 1000), 60.0

FIRST = 0.2  # of the time, for all plans by the first backend
COMPILING = 0.6  # of the time: then no other stage is compiled
LAST = 0.2  # of the time at least, for the fastest side by side, however long compilers took
HOPELESS = 4.0  # times the fastest in a few calls: not timed any further
FEW = 3
NEARLY = 1.1  # times the fastest plan by the first backend: what other backends are tried with
FINALISTS = 4  # beside the original
GAIN = 0.97  # of the time of what is simpler, the first backend on all rows, or safer, the original: to be below
CHUNKS = (64, 128, 256, 512)  # rows at a time
NEAR = 2.0  # times the fastest: what is tried on some rows at a time


def tuned(
    model: Tunable, candidates: Sequence[int], requests: Sequence[int], seconds: float,
    told: Callable[[str], Any], backends: Collection[str] | None = None,
) -> tuple[Ranges, Tuning]:  # fmt: skip
    """What is the fastest for which calls, and what was measured; by PyTorch's own operators and some `backends`.

    Raises:
        InputError: a number is below 1, or there is none.
        BackendError: there is no such backend, or not here.
        VerificationError: no plan computes what the original does.
    """
    candidates, requests = whole_numbers(candidates, "candidates"), whole_numbers(requests, "requests")
    of_kind(seconds, (int, float), "seconds", "a number")
    if min(candidates, default=0) < 1 or min(requests, default=0) < 1 or not seconds > 0:
        raise InputError(f"tune takes numbers from 1 on, got {list(candidates)}, {list(requests)}, {seconds} seconds")
    if all(spec.role == "candidate" for spec in model._inputs.interface.inputs.values()):
        requests = (1,)  # nothing says how many there are
    allowed = _of(backends, backends_of(model))
    start = time.perf_counter()
    sizes = sorted(set(itertools.product(requests, candidates)))
    calls = [_Calls(model, r, n, allowed) for r, n in sizes]
    for own in calls:
        told(f"{own}: {len(model.plans.plans)} plans")
        own.race(own.admitted([Way(i, own.first) for i in range(len(model.plans.plans))]), FIRST * seconds / len(calls))
    for key in _to_compile(model, calls):
        late = time.perf_counter() - start > COMPILING * seconds
        told(f"{key}" + (": no time is left" if late else ""))
        for own in calls:
            if key.plan in own.best_plans():
                own.leave_out(key, "no time was left") if late else own.admitted([key])
    cut = _may_be_cut(model)
    for i, own in enumerate(calls):
        told(f"{own}: the fastest side by side")
        own.admitted(own.in_chunks() if cut else [])
        left = max(seconds - (time.perf_counter() - start), LAST * seconds * (1 - i / len(calls)))
        own.race(own.finalists(), left / (len(calls) - i))
    winners = {(own.requests, own.candidates): own.winner() for own in calls}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine, dtype = name_of(model._inputs.device), dtype_name(model._inputs.dtype)
    taken, points = time.perf_counter() - start, tuple(own.point() for own in calls)
    tuning = Tuning(machine, dtype, str(torch.__version__), now, taken, points)
    return (model.plans.predicted or model.plans.ranges).measured(winners), tuning


def _to_compile(model: Tunable, calls: Sequence[_Calls]) -> list[Way]:
    """What other backends are tried with: by each the original, than which nothing is to be slower, and what is nearly
    the fastest for most sizes; then by each the rest.
    """
    best = [plan for own in calls for plan in own.best_plans()]
    original = model.plans.original
    plans = sorted({*best}, key=lambda plan: (plan != original, -best.count(plan)))
    others = [backend for backend in calls[0].backends if backend != calls[0].first]
    return [Way(plan, backend) for some in (plans[:2], plans[2:]) for backend in others for plan in some]


def _may_be_cut(model: Tunable) -> bool:
    """Whether candidates may be scored some at a time: each alone is scored the same, and caches are a CPU's."""
    if not isinstance(model, Planned) or model.device.type not in LOOPS or model.interface.jagged:
        return False
    return not mixes_rows(OnePlan(model, 0, EAGER))


def backends_of(model: Tunable) -> list[str]:
    """What can run its stages here: PyTorch's own operators where sizes of inputs are others in every call, and where
    a call is more than its scores.
    """
    if not isinstance(model, Planned) or model.interface.jagged or model.interface.varying:
        return [EAGER]
    return installed(model.device, model.dtype)


def _of(names: Collection[str] | None, here: Sequence[str]) -> Sequence[str]:
    """The backends that are asked for, PyTorch's own operators first.

    Raises:
        BackendError: there is no such backend, or not here.
    """
    for name in names or ():
        backend_of(name)
        if name not in here:
            raise BackendError(f"backend {name!r} does not run this model here; {', '.join(here)} do")
    return [name for name in here if names is None or name in (EAGER, *names)]


def tuned_elsewhere(tuning: Tuning | None) -> str:
    """What to say where another machine, or another number of threads, chose the plans; empty otherwise."""
    here = {name_of(kind) for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))}
    if tuning is None or tuning.machine in here:
        return ""
    return f"its plans were tuned on {tuning.machine}, and this is {' with '.join(sorted(here))}: run `rankhoist tune`"


class _Calls:
    """Calls of one size: what was found to be equal, and how long it takes."""

    def __init__(self, model: Tunable, requests: int, candidates: int, backends: Sequence[str]) -> None:
        self.backends, self.first = backends, GRAPHS if GRAPHS in backends else EAGER
        self.model, self.requests, self.candidates, inputs = model, requests, candidates, model._inputs
        context, candidate = (
            inputs.stage_inputs(inputs.made_up(side, count))
            for side, count in (("context", requests), ("candidate", candidates))
        )
        self._offsets = even(candidates, requests)
        blocks = blocks_of(self._offsets, requests, candidates)
        self._given = context, requests, Candidates(candidate, candidates, blocks)
        alone = inputs.device.type == "cpu" and torch.get_num_threads() == 1  # then others' work here is none
        self._clock = time.thread_time if alone else time.perf_counter
        original = model.plans.original  # None in an older file
        self._original = None if original is None else Way(original, self.first)
        self._truth = self._checked(Way(original or 0, EAGER))
        self._first: dict[Way, float] = {}  # seconds, the least of a few calls
        self._times: dict[Way, Timing] = {}
        self._problems: dict[Way, str] = {}

    def __str__(self) -> str:
        return f"{self.candidates} candidates of {self.requests} request{'s' * (self.requests > 1)}"

    def _call(self, key: Way) -> Any:
        with torch.no_grad():
            return self.model._whole_for(key, *self._given)

    def _checked(self, key: Way) -> Any:
        with torch.no_grad():
            return self.model._checked_for(key, *self._given)

    def admitted(self, keys: Sequence[Way]) -> list[Way]:
        """Those that score as the original does, and are not hopeless."""
        for key in keys:
            try:
                self.model._warm_up_for(key, self.requests, self.candidates)
                apart = self.model._apart(self._checked(key), self._truth)
                self._first[key] = min(self._seconds(key) for _ in range(FEW))
            except Exception as problem:  # whatever a compiler refuses, or an operator in it
                self.leave_out(key, in_one_line(problem, 120))
                continue
            if not apart <= self.model._tolerance:
                self.leave_out(key, f"differs by {apart:.0e} of the scale")
        equal = [key for key in keys if key not in self._problems]
        limit = HOPELESS * min((self._first[key] for key in equal), default=0.0)
        for key in [key for key in equal if self._first[key] > limit and key != self._original]:
            self.leave_out(key, f"about {self._first[key] * 1e3:.3g} ms")
        return [key for key in equal if key not in self._problems]

    def _seconds(self, key: Way) -> float:
        start = self._clock()
        self._call(key)
        return self._clock() - start

    def leave_out(self, key: Way, why: str) -> None:
        """A trial that is not timed."""
        self._problems[key] = why

    def race(self, keys: Sequence[Way], seconds: float) -> None:
        """Time calls in turn; what was timed before is forgotten."""
        calls = {key: lambda key=key: self._call(key) for key in keys}
        self._times |= interleaved(calls, seconds, warmup=1, rounds=5, clock=self._clock)

    def best_plans(self) -> set[int]:
        """What is nearly the fastest by the first backend, and the original."""
        first = {key.plan: t.median for key, t in self._times.items() if key.backend == self.first}
        best = {plan for plan, median in first.items() if median <= NEARLY * min(first.values())}
        return {*best, *(plan for plan in [self.model.plans.original] if plan is not None)}

    def in_chunks(self) -> list[Way]:
        """What is near the fastest so far, on some rows at a time."""
        known, sizes = self._known(), [size for size in CHUNKS if size < self.candidates]
        limit = NEAR * min(known.values())
        return [key._replace(chunk=size) for key, seconds in known.items() if seconds <= limit for size in sizes]

    def _known(self) -> dict[Way, float]:
        """Seconds of what scores as the original does: of a first call where there is no more."""
        known = {key: self._first[key] for key in self._first if key not in self._problems}
        return known | {key: t.median / 1e3 for key, t in self._times.items()}

    def finalists(self) -> list[Way]:
        """The fastest so far, and the original: as it is, and by its fastest way."""
        known = self._known()
        chosen = sorted(known, key=known.__getitem__)
        original = self._ways_of_the_original(chosen)
        as_it_is = [key for key in original if key == self._original]
        return list(dict.fromkeys([*chosen[:FINALISTS], *original[:1], *as_it_is]))

    def _ways_of_the_original(self, keys: Iterable[Way]) -> list[Way]:
        return [key for key in keys if self._original is not None and key.plan == self._original.plan]

    def winner(self) -> Way:
        """The fastest; what is not by the first backend on all rows, or not the original's fastest way, where it is
        clearly faster than these.
        """
        if not self._times:
            found = "; ".join(dict.fromkeys(self._problems.values()))
            raise VerificationError(f"no plan computes {self} as the original does ({found}): please report it")
        simple = {key: key == Way(key.plan, self.first) for key in self._times}
        handicapped = {key: t.median if simple[key] else t.median / GAIN for key, t in self._times.items()}
        fastest = min(handicapped, key=handicapped.__getitem__)
        original = min(self._ways_of_the_original(handicapped), key=handicapped.__getitem__, default=fastest)
        clearly = self._times[fastest].median <= GAIN * self._times[original].median
        return fastest if clearly else original

    def point(self) -> Point:
        """All of it as data, the winner first."""
        won = self.winner()
        timed = sorted(self._times, key=lambda key: (key != won, self._times[key].median))
        trials = [self._trial(key, self._times[key]) for key in timed]
        return Point(self.requests, self.candidates, (*trials, *(self._trial(key) for key in self._problems)))

    def _trial(self, key: Way, t: Timing | None = None) -> Trial:
        plan, backend, chunk = key
        plans = self.model.plans
        level = "original" if plan == plans.original else plans.plans[plan].level.name.lower()
        if t is None:
            return Trial(plan, level, backend, problem=self._problems[key], chunk=chunk)
        return Trial(plan, level, backend, t.median, t.low, t.high, t.calls, chunk=chunk)
