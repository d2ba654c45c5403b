"""The two halves of a call, whose inputs `Scoring` has checked: as they are, or replayed where they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.plan import Way
from rankhoist.compiler.targets import target_of
from rankhoist.compiler.targets.backends import RECORDED
from rankhoist.compiler.targets.cuda_graphs import recorder_of, room_of
from rankhoist.runtime.chunks import in_chunks
from rankhoist.runtime.ids import EAGER, GRAPHS, Feed
from rankhoist.runtime.mixing import mixes_rows
from rankhoist.runtime.movable import Movable
from rankhoist.runtime.moved import for_replays
from rankhoist.runtime.offsets import LOOPS, Offsets, blocks_of
from rankhoist.runtime.planned import OnePlan, Planned
from rankhoist.runtime.replays import Counts, Replays
from rankhoist.runtime.scoring import Candidates, RequestState
from rankhoist.runtime.standing import KEPT, Call, Standing, call_of
from rankhoist.runtime.weights import Weights, filled

RECORDING = ("cuda",)  # where a warm-up records unless another backend is named


class Halves(Movable, Planned):
    """A model whose plans are stages, with weights."""

    def _replays(self, backend: str) -> Replays | None:
        """The recorded calls of a backend that records any."""
        own = backend or self.backend
        if own not in RECORDED:
            return None
        if own not in self._replayed:  # several threads may make them; one's are kept
            self._replayed.setdefault(own, self._recorder(own))
        return self._replayed[own]

    @property
    def replay_counts(self) -> Counts:
        """How whole calls and stages were run where they are recorded: replayed or as they are."""
        own = [replays.counts for replays in list(self._replayed.values())]
        return Counts(*(sum(getattr(c, f.name) for c in own) for f in fields(Counts)))

    def _recorder(self, backend: str) -> Replays:
        with torch.autocast(self.device.type, enabled=False):
            row_wise = not mixes_rows(OnePlan(self, 0, EAGER))
        variants, room = self._stages_by(backend).variants, room_of(self.device)
        recorder = recorder_of(self.device)
        return Replays(recorder, variants, self._weights, self._inputs, row_wise, room, self._first_use)

    def _record_calls(self) -> None:
        """On a GPU, replay from now on what a warm-up asks for; plans are those for replays, where there are any.

        Sizes of bags, and of axes that vary, are others in every call: a model that has some is not recorded.
        """
        own = self.interface
        if self.backend != EAGER or self.device.type not in RECORDING or own.jagged or own.varying:
            return
        weights, before = self._weights, self.blueprint
        target = target_of(self.device, self.dtype, recorded=True)
        if target is not None and not any(way.backend for way in self.plans.ranges.ways):
            self.blueprint = for_replays(before, target)
        self.backend, self._first_use = GRAPHS, False
        if self.blueprint.stages is before.stages:
            self._place(weights.original, weights.constants, self.dtype, self.device, weights.folded)
        else:
            constants = {
                n: t.to(self.device, self.dtype if t.is_floating_point() else t.dtype)
                for n, t in self.blueprint.stages.constants.items()
            }
            self._place(weights.original, constants, self.dtype, self.device)

    def _warm_up_for(self, way: Way, requests: int, candidates: int) -> None:
        if (replays := self._replays(way.backend)) is not None:
            replays.warm_up(way.plan, requests, candidates)

    def forward(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """See `Scoring.forward`."""
        call = call_of(args, request_offsets) if self._replayed and not kwargs else None
        if call is None:
            return super().forward(*args, request_offsets=request_offsets, **kwargs)
        for own in self._standing:
            if own.is_for(call) and own.replays is self._replayed.get(own.way.backend or self.backend):
                for side, given in own.entry.buffers.items():
                    self._check(own.way, side, given)
                made = own.replays.again(own.entry)
                if made is not None:
                    return self.interface.result(made)
        result = super().forward(*args, request_offsets=request_offsets)
        if self._recent.often(call):
            self._stand(args, call)
        return result

    def _stand(self, args: tuple[Any, ...], call: Call) -> None:
        """Record a call over its own tensors, where calls of its size are recorded."""
        context, candidate = self._inputs.of_call(args, {})
        requests, rows = self._inputs.accept("context", context), self._inputs.accept("candidate", candidate)
        blocks, way = blocks_of(call[1], requests, rows), self.plans.at(rows, requests)
        replays, known = self._replays(way.backend), {id(x) for x in call[0]}
        read = [*context.values(), *candidate.values()]  # one of another width is a copy, made for this call
        if replays is None or self.stages.variants[way.plan].conditional or not all(id(x) in known for x in read):
            return
        entry = replays.over(way.plan, context, requests, Candidates(candidate, rows, blocks))
        if entry is not None:
            kept = Standing.of(call, way, replays, entry)
            self._standing = (kept, *(s for s in self._standing if s.replays in self._replayed.values()))[:KEPT]

    def _check(self, way: Way, side: str, given: Mapping[str, Tensor]) -> None:
        """That ids are inside of their tables, where the backend would not say so itself."""
        self._guard.check(way.backend or self.backend, side, given)

    def _whole(self, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        return self._whole_for(self.plans.at(candidates.rows, requests), context, requests, candidates)

    def _whole_for(self, way: Way, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        if self.stages.variants[way.plan].conditional:
            return self._score(self._prepare_for(way, context, requests), candidates)
        replays = self._replays(way.backend)
        if replays is not None:
            self._check(way, "context", context)
            self._check(way, "candidate", candidates.inputs)
            made = replays.whole(way.plan, context, requests, candidates)
            if made is not None:
                return self.interface.result(made)
        state = self._prepare_as_it_is(way, context, requests)
        return self.interface.result(self._score_as_it_is(state, candidates))

    def _prepare(self, context: dict[str, Tensor], requests: int, candidates: int | None) -> RequestState:
        return self._prepare_for(self.plans.at(candidates, requests), context, requests)

    def _prepare_for(self, way: Way, context: dict[str, Tensor], requests: int) -> RequestState:
        state, variant = self._prepare_by(way, context, requests), self.stages.variants[way.plan]
        if variant.condition is not None and not bool(state.tensors[variant.condition][:requests].all()):
            return self._prepare_by(way._replace(plan=self.plans.for_all(way.plan)), context, requests)
        return replace(state, context=context) if variant.checks else state

    def _prepare_by(self, way: Way, context: dict[str, Tensor], requests: int) -> RequestState:
        """The same, whether the plan's condition holds or not."""
        replays = self._replays(way.backend)
        if replays is not None and replays.variants[way.plan].state:
            self._check(way, "context", context)
            made = replays.request(way.plan, context, requests)
            if made is not None:
                tensors = dict(zip(replays.variants[way.plan].state, made[0], strict=True))
                return RequestState(requests, tensors, replays.weights, way, padded=made[1])
        return self._prepare_as_it_is(way, context, requests)

    def _prepare_as_it_is(
        self, way: Way, context: Mapping[str, Tensor], requests: int, weights: Weights | None = None
    ) -> RequestState:
        weights = weights or self._weights
        variant = self._stages_by(way.backend).variants[way.plan]
        self._check(way, "context", context)
        arguments = filled(weights.arguments[way.plan][0], {}, context)
        state = RequestState(requests, {}, weights, way)
        if not variant.state:
            return state
        feed = Feed((requests, None, None, *arguments), "context", context)
        made = self._guard.run(way.plan, variant.request, feed)
        return replace(state, tensors=dict(zip(variant.state, made, strict=True)))

    def _score(self, state: RequestState, candidates: Candidates) -> Any:
        made = self._score_by(state, candidates)
        if state.context is not None:
            *made, holds = made
            if not bool(holds.all()):
                way = Way(self.plans.for_all(state.plan), state.way.backend)
                state = self._prepare_as_it_is(way, state.context, state.requests, state.weights)
                made = self._score_as_it_is(state, candidates)
        return self.interface.result(made)

    def _score_by(self, state: RequestState, candidates: Candidates) -> Sequence[Any]:
        """What the candidate stage returns, whether the plan holds for the rows or not."""
        replays = self._replays(state.way.backend)
        if replays is not None and replays.weights is state.weights:
            self._check(state.way, "candidate", candidates.inputs)
            made = replays.candidate(state, candidates)
            if made is not None:
                return made
        return self._score_as_it_is(state, candidates)

    def _score_as_it_is(self, state: RequestState, candidates: Candidates) -> Sequence[Any]:
        candidate, rows, blocks = candidates
        offsets, owner = (None, None) if blocks is None else blocks.over(state.rows).on(self.device)
        self._check(state.way, "candidate", candidate)
        arguments = state.weights.arguments[state.plan][1]
        stage = self._stages_by(state.way.backend).variants[state.plan].candidate
        feed = Feed((rows, owner, offsets, *filled(arguments, state.tensors, candidate)), "candidate", candidate)
        cut = 0 < state.way.chunk < rows and self.device.type in LOOPS
        run = in_chunks(stage.run, state.way.chunk, [type(a) is str for a in arguments]) if cut else None
        return self._guard.run(state.plan, stage, feed, run)
