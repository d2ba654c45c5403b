"""Calls that are recorded once for each bucket of sizes, and replayed: a plan's stages over buffers that stay.

A call is copied to the buffers, its plan's operators are replayed as one, and its rows are copied out. Whole calls are
recorded, and the two stages apart: a prepared state is copied out of the first one's buffers and into the second's.
What is recorded belongs to one version of the weights. Everything that cannot be replayed is left to the caller, who
runs the stages as they are: that is always right.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.emit import Variant
from rankhoist.compiler.targets.recorder import Recorder
from rankhoist.errors import HoistingWarning
from rankhoist.mistakes import first_line, in_one_line
from rankhoist.runtime.buckets import Bucket
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.offsets import Blocks, even
from rankhoist.runtime.recorded import CANDIDATE, REQUEST, WHOLE, Buffers, Key, Read, Recorded, function, of_one
from rankhoist.runtime.scoring import Candidates, RequestState
from rankhoist.runtime.weights import Weights

COUNT = 64  # recordings of a model at most
ROUTES = 4096  # sizes of calls that are remembered
PATIENCE = 1000  # calls: what was not used in so many makes room for what is recorded on the way


@dataclass
class Counts:
    """How calls were run, whole ones and stages: replayed, or as they are; and how many were recorded."""

    replayed: int = 0
    as_they_are: int = 0
    recorded: int = 0


@dataclass
class Replays:
    """The recorded calls of a model, run by one backend.

    Attributes:
        variants: its plans' stages as the backend runs them.
        row_wise: whether a row's scores are the same whatever else is in the call: otherwise no call can be padded.
        limit: bytes that all recordings may take.
        first_use: record a bucket when its first call comes, too, and not only when it is asked for.
    """

    recorder: Recorder
    variants: Sequence[Variant]
    weights: Weights
    inputs: Inputs
    row_wise: bool
    limit: int
    first_use: bool = True
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._entries: OrderedDict[Key, Recorded] = OrderedDict()  # the least recently used first
        self._routes: dict[Key, Recorded] = {}  # of calls of just these sizes, until entries change
        self._refused: set[Any] = set()  # plans, and keys
        self._axes: list[int | None] = []
        self._by_blocks = [_reads_offsets(variant) for variant in self.variants]
        self._device = torch.empty(0, device=self.inputs.device).device  # with its number
        self._clock = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        return sum(entry.bytes for entry in self._entries.values())

    # -- what a model calls

    def whole(self, plan: int, context: dict[str, Tensor], requests: int, candidates: Candidates) -> list[Any] | None:
        """What the candidate stage returns for a call; None where it is not to be replayed."""
        candidate, rows, blocks = candidates
        call = Bucket.needed(requests, rows, blocks, self._by_blocks[plan])
        with self.recorder.turn():
            entry = self._replayed(WHOLE, plan, call, {"context": context, "candidate": candidate}, blocks)
            return None if entry is None else entry.results(rows)

    def request(self, plan: int, context: dict[str, Tensor], requests: int) -> tuple[list[Any], int] | None:
        """What the request stage returns, and of how many requests: those behind the call's own are padding."""
        with self.recorder.turn():
            entry = self._replayed(REQUEST, plan, Bucket(requests), {"context": context}, None)
            return None if entry is None else (entry.results(), entry.key.bucket.requests)

    def candidate(self, state: RequestState, candidates: Candidates) -> list[Any] | None:
        """What the candidate stage returns for a state that was prepared; None where it is not to be replayed."""
        candidate, rows, blocks = candidates
        call = Bucket.needed(state.rows, rows, blocks, self._by_blocks[state.plan])
        with self.recorder.turn():
            given: Buffers = {"state": state.tensors, "candidate": candidate}
            entry = self._replayed(CANDIDATE, state.plan, call, given, blocks)
            return None if entry is None else entry.results(rows)

    def over(self, plan: int, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Recorded | None:
        """A call recorded over its own tensors, which must stay; None where it is not to be."""
        candidate, rows, blocks = candidates
        call = Bucket.needed(requests, rows, blocks, self._by_blocks[plan])
        key, given = Key(WHOLE, plan, call, self.recorder.setting()), {"context": context, "candidate": candidate}
        with self.recorder.turn():
            if plan in self._refused or not (rows and call.fits and self._takes(given)):
                return None
            try:
                with torch.inference_mode(False), torch.no_grad():
                    there, owner = (None, None) if blocks is None else blocks.on(self._device)
                    recording = self.recorder.record(self._function(key, given, lambda: (owner, there)))
            except Exception:  # the recording that there is for calls of this size takes it
                return None
            self.counts.recorded += 1
            return Recorded(key, given, None, recording, ())

    def again(self, entry: Recorded) -> list[Any] | None:
        """What such a recording makes of what its tensors hold now; None where it is not to be replayed."""
        with self.recorder.turn():
            if entry.key.setting != self.recorder.setting() or not self._takes({}):
                return None
            try:
                entry.recording.replay()
            except torch.OutOfMemoryError:
                raise
            except (IndexError, RuntimeError):  # as in `_replayed`
                return None
            self.counts.replayed += 1
            return entry.results()

    def warm_up(self, plan: int, requests: int, rows: int) -> None:
        """Record a whole call of these sizes and its stages, in the place of what was not used for longest.

        Where several requests have blocks, for equal ones, and for up to twice as many candidates of one of them.
        """
        blocks = None if requests == 1 else Blocks(even(rows, requests), rows)
        call, variant = Bucket.needed(requests, rows, blocks, self._by_blocks[plan]), self.variants[plan]
        calls = [call, call._replace(longest=2 * call.longest)][: 1 + bool(call.longest)]
        with self.recorder.turn():
            for own in calls:
                self._found(WHOLE, plan, own, {}, record=True, asked=True)
            state: dict[int, Tensor] = {}
            if variant.state:
                entry = self._found(REQUEST, plan, Bucket(requests), {}, record=True, asked=True)
                if entry is None:
                    return
                state = dict(zip(variant.state, entry.recording.outputs, strict=True))
            for own in calls:
                padded = own._replace(requests=own.whole.requests)
                self._found(CANDIDATE, plan, padded, state, record=True, asked=True)

    def anew(self, weights: Weights) -> Replays:
        """The same calls, recorded with other weights."""
        fresh = replace(self, weights=weights)
        fresh._refused, fresh._axes = set(self._refused), self._axes
        with self.recorder.turn():
            for key, entry in self._entries.items():
                if key.setting == self.recorder.setting():
                    fresh._record(key, entry.buffers.get("state", {}), True)
        return fresh

    def close(self) -> None:
        """Give the memory back when what was replayed is done; calls run as they are from then on."""
        with self.recorder.turn():
            self.first_use = False
            self.recorder.settle()
            self._entries.clear()
            self._routes.clear()

    # -- within a turn

    def _replayed(self, part: str, plan: int, call: Bucket, given: Buffers, blocks: Blocks | None) -> Recorded | None:
        """The recording that a call was put through; None where it is not to be replayed, or failed."""
        entry = self._found(part, plan, call, given.get("state", {}), self.first_use) if self._takes(given) else None
        if entry is None:
            self.counts.as_they_are += 1
            return None
        self._clock += 1
        entry.used = self._clock
        self._entries.move_to_end(entry.key)
        try:
            entry.fill(given, entry.key.bucket.bounds(blocks), call.requests, call.candidates)
            entry.recording.replay()
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError):  # an id outside of its table: run as it is, the call is told which
            self.counts.as_they_are += 1
            self._reset(entry)
            return None
        self.counts.replayed += 1
        return entry

    def _takes(self, given: Buffers) -> bool:
        """Whether a call's tensors are where the buffers are, and operators do what they did."""
        for own in given.values():
            for t in own.values():
                if t.device != self._device:
                    return False
        return self.recorder.usable() and not torch.is_autocast_enabled(self._device.type)

    def _found(
        self, part: str, plan: int, call: Bucket, state: Mapping[int, Tensor], record: bool, asked: bool = False
    ) -> Recorded | None:
        """The recording for a call, or another one that holds it."""
        own = Key(part, plan, call, self.recorder.setting())
        entry = self._routes.get(own)
        if entry is None:
            if not (call.fits and call.whole.fits and (call.candidates or part == REQUEST)):
                return None
            key = own._replace(bucket=call.whole)
            entry = self._entries.get(key)
            if entry is None and record and (not state or call.requests == key.bucket.requests):
                entry = self._record(key, state, asked)
            if entry is None:
                entry = self._holding(key, call, bool(state))
            if entry is not None and (entry.key == key or not record) and len(self._routes) < ROUTES:
                self._routes[own] = entry
        return entry if entry is None or entry.takes(state) else None

    def _holding(self, key: Key, call: Bucket, prepared: bool) -> Recorded | None:
        """The smallest that a call can be padded to; a state that was prepared cannot."""
        alike = [
            e for k, e in self._entries.items()
            if k._replace(bucket=key.bucket) == key and k.bucket.holds(call)
            and not (prepared and k.bucket.requests != call.requests)
        ]  # fmt: skip
        return min(alike, key=lambda e: (e.key.bucket.candidates, e.key.bucket.requests), default=None)

    def _record(self, key: Key, state: Mapping[int, Tensor], asked: bool) -> Recorded | None:
        """Record what a key says, if there is room; what fails is not tried again."""
        if key in self._refused or key.plan in self._refused or not self._room(0, asked):
            return None
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._check(key)
                entry = self._made(key, state)
        except torch.OutOfMemoryError as error:
            self._refuse(key, error)
            return None
        except Exception as error:  # whatever an operator, a module that is kept or a compiler does not take
            self._refuse(key.plan, error)
            return None
        if not self._room(entry.bytes, asked):
            self._refused.add(key)
            return None
        self.counts.recorded += 1
        entry.used = self._clock
        self._entries[key] = entry
        self._routes.clear()
        return entry

    def _room(self, size: int, asked: bool) -> bool:
        """Make room for one more; unless it was asked for, only where something was not used for long."""
        while self._entries and (len(self._entries) >= COUNT or self.bytes + size > self.limit):
            oldest = next(iter(self._entries.values()))
            if not asked and self._clock - oldest.used < PATIENCE:
                return False
            self.recorder.settle()
            del self._entries[oldest.key]
            self._routes.clear()
        return size <= self.limit

    def _refuse(self, what: Any, error: Exception) -> None:
        """Say once why calls are not replayed."""
        if not self._refused:
            why = first_line(error) if isinstance(error, RecordingError) else in_one_line(error)
            warnings.warn(f"calls run as they are, not as recorded graphs. {why}", HoistingWarning, stacklevel=2)
        self._refused.add(what)

    def _check(self, key: Key) -> None:
        """Find out where rows are in the results, before the first call is padded."""
        if not self._axes:
            if not self.row_wise:
                raise RecordingError(
                    "Scores of a candidate change with other rows of the call, or the example's rows are all alike and "
                    "cannot tell, so it is not padded: hoist with an example of rows that differ"
                )
            few, more = (
                self._function(*self._given(Key(WHOLE, key.plan, Bucket(1, n), None), {})[:2])() for n in (2, 3)
            )
            axes = [_axis(a, b) for a, b in zip(few, more, strict=True)]
            self._axes = axes[: self.inputs.interface.out_spec.num_leaves]

    def _given(self, key: Key, state: Mapping[int, Tensor]) -> tuple[Key, Buffers, Tensor | None]:
        """Buffers of rows that the model takes, and boundaries."""
        rows = {"context": key.bucket.requests, "candidate": key.bucket.candidates}
        sides = {WHOLE: ("context", "candidate"), REQUEST: ("context",), CANDIDATE: ("candidate",)}[key.part]
        buffers: Buffers = {side: dict(self.inputs.made_up(side, rows[side])) for side in sides}
        if key.part == CANDIDATE:
            buffers["state"] = {node: t.clone() for node, t in state.items()}
        if key.bucket.requests == 1 or key.part == REQUEST:
            return key, buffers, None
        return key, buffers, torch.tensor(even(key.bucket.candidates, key.bucket.requests)).to(self.inputs.device)

    def _made(self, key: Key, state: Mapping[int, Tensor]) -> Recorded:
        key, buffers, bounds = self._given(key, state)
        read = of_one if bounds is None else lambda: key.bucket.read(bounds)
        recording = self.recorder.record(self._function(key, buffers, read))
        return Recorded(key, buffers, bounds, recording, [*self._axes, 0])  # checks come last

    def _reset(self, entry: Recorded) -> None:
        """Rows that the model takes in the place of those of a call that failed."""
        fresh = self._given(entry.key, entry.buffers.get("state", {}))[1]
        bucket = entry.key.bucket
        entry.fill({n: own for n, own in fresh.items() if n != "state"}, None, bucket.requests, bucket.candidates)

    def _function(self, key: Key, buffers: Buffers, read: Read = of_one) -> Callable[[], Sequence[Any]]:
        return function(self.variants[key.plan], self.weights.arguments[key.plan], key, buffers, read)


class RecordingError(Exception):
    """Why calls of a model are not to be recorded."""


def _reads_offsets(variant: Variant) -> bool:
    """Whether its candidate stage multiplies by matrices of its rows' requests."""
    return bool(next(n for n in variant.candidate.module.graph.nodes if n.name == "offsets").users)


def _axis(few: Any, more: Any) -> int | None:
    """Where the rows are in a result of 2 rows and the same of 3; None where it has none."""
    if not isinstance(few, Tensor):
        if few != more:
            raise RecordingError("A result is a number that changes with the number of rows")
        return None
    changed = [i for i, (a, b) in enumerate(zip(few.shape, more.shape, strict=True)) if a != b]
    if not changed:
        return None
    if len(changed) > 1 or (few.shape[changed[0]], more.shape[changed[0]]) != (2, 3):
        raise RecordingError(f"A result has shape {list(few.shape)} for 2 rows and {list(more.shape)} for 3")
    return changed[0]
