"""How a hoisted model is called, and one that was exported: the checks of a call, then the work of its two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from rankhoist.arguments import of_kind, whole_number
from rankhoist.capture import Interface
from rankhoist.compiler.plan import Way
from rankhoist.errors import InputError
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.offsets import Blocks, Offsets, blocks_of
from rankhoist.runtime.weights import Weights


class Candidates(NamedTuple):
    """The candidates of a call.

    Attributes:
        inputs: tensors `[N, ...]` as stages read them.
        rows: N.
        blocks: which of them are of which request; None where all are of one.
    """

    inputs: dict[str, Tensor]
    rows: int
    blocks: Blocks | None


@dataclass(frozen=True)
class Grown:
    """What a state that grows holds beside: all that is kept, its own tensors first, and how long its histories are."""

    kept: tuple[Tensor | int, ...]
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class RequestState:
    """The context work of `requests` requests, tied to the weights it was computed with; reusable and read-only.

    `way` is how it was computed, and how candidates are scored with it. `with_store` says whether its plan is one for a
    store of items. `padded` is how many rows the tensors have where they are more than requests. `context` is what it
    was computed from, where candidates may tell that another plan has to score them. `grown` is there for `append`.
    """

    requests: int
    tensors: dict[int, Tensor]
    weights: Weights
    way: Way = Way(0)  # noqa: RUF009 - it never changes
    with_store: bool = False
    padded: int = 0
    context: Mapping[str, Tensor] | None = None
    grown: Grown | None = None

    def __repr__(self) -> str:
        return f"RequestState(requests={self.requests}, plan={self.plan}, {self.bytes:,} bytes)"

    @property
    def plan(self) -> int:
        """The number of its plan."""
        return self.way.plan

    @property
    def rows(self) -> int:
        """Of its tensors."""
        return self.padded or self.requests

    @property
    def bytes(self) -> int:
        """Memory held by the state's tensors."""
        kept = () if self.grown is None else (t for t in self.grown.kept[len(self.tensors) :] if isinstance(t, Tensor))
        held = (*self.tensors.values(), *(self.context or {}).values(), *kept)
        return sum(t.numel() * t.element_size() for t in held)

    def apart(self, given: Mapping[str, Tensor]) -> RequestState:
        """The same in memory of its own: what it was computed from is its caller's, who may write to it."""
        memory = {StorageWeakRef(t.untyped_storage()) for t in given.values()}
        copies: dict[int, Tensor] = {}

        def own(t: Any) -> Any:
            if not isinstance(t, Tensor) or StorageWeakRef(t.untyped_storage()) not in memory:
                return t
            if id(t) not in copies:
                copies[id(t)] = t.clone()
            return copies[id(t)]

        tensors = {node: own(t) for node, t in self.tensors.items()}
        context = self.context and {name: own(t) for name, t in self.context.items()}
        grown = self.grown and replace(self.grown, kept=tuple(own(t) for t in self.grown.kept))
        return replace(self, tensors=tensors, context=context, grown=grown)


class Scoring(ABC):
    """Called whole, as `model(*args, request_offsets=None, **kwargs)`, or in its two halves: `prepare` and `score`.

    Context tensors have one row per request, `[R, ...]`, candidate tensors one row per candidate, `[N, ...]`. Results
    have N rows. With R > 1 (or 0), `request_offsets` gives the R + 1 boundaries of the requests' candidate blocks,
    which may be empty. A packed input is given as `rankhoist.Split(context, candidate)`.
    """

    _inputs: Inputs

    @property
    def interface(self) -> Interface:
        """How it is called."""
        return self._inputs.interface

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype it computes in."""
        return self._inputs.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._inputs.device

    def forward(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """What the original returns for context rows repeated per candidate: N rows.

        Raises:
            InputError: an input is missing or has the wrong kind, shape or row count; offsets do not fit.
            VocabularyError: an id is outside of the table that it indexes.
        """
        context, candidate = self._inputs.of_call(args, kwargs)
        requests, rows = self._inputs.accept("context", context), self._inputs.accept("candidate", candidate)
        blocks = blocks_of(request_offsets, requests, rows)
        context, candidates = self._inputs.stage_inputs(context), self._inputs.stage_inputs(candidate)
        if not torch.is_grad_enabled():  # entering and leaving no_grad is a good part of a call with few candidates
            return self._whole(context, requests, Candidates(candidates, rows, blocks))
        with torch.no_grad():
            return self._whole(context, requests, Candidates(candidates, rows, blocks))

    def prepare(self, context_inputs: Mapping[str, Any] | Sequence[Any], candidates: int | None = None) -> RequestState:
        """The context work of R requests: `{name: [R, ...]}` (or the context inputs in order) -> state.

        For a packed input, pass its context columns `[R, context columns]`. `candidates` is how many will be scored
        with the state, in all, if it is not what the model was hoisted for: it chooses the plan, not the scores.

        Raises:
            InputError: see `forward`.
        """
        context, requests = self._context(context_inputs, candidates)
        with torch.no_grad():
            return self._prepare(context, requests, candidates).apart(context)

    def score(
        self,
        state: RequestState,
        candidate_inputs: Mapping[str, Any] | Sequence[Any],
        request_offsets: Offsets | None = None,
    ) -> Any:
        """Scores of N candidates `{name: [N, ...]}` for a prepared state, as often as you like.

        Raises:
            InputError: see `forward`.
        """
        self._check_state(state)
        candidate = self._inputs.of_side("candidate", candidate_inputs)
        rows = self._inputs.accept("candidate", candidate)
        blocks = blocks_of(request_offsets, state.requests, rows)
        with torch.no_grad():
            return self._score(state, Candidates(self._inputs.stage_inputs(candidate), rows, blocks))

    def made_up(self, side: str, rows: int, lengths: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Rows of the `context` or of the `candidate` side: the example's, in turn; zeros where there is no example.

        Axes that vary have the example's length, or another one of `lengths`, which are by `Varying.length`.
        """
        return self._inputs.made_up(side, rows, lengths)

    @property
    def other_lengths(self) -> Mapping[str, int]:
        """Of every axis that varies, by `Varying.length`, another one than the example's, to see what it changes."""
        return self._inputs.other_lengths

    def _context(
        self, inputs: Mapping[str, Any] | Sequence[Any], candidates: int | None
    ) -> tuple[dict[str, Tensor], int]:
        """Context inputs of a call, checked, as stages read them; and R. `candidates` are those to come, if it is told.

        Raises:
            InputError: see `forward`.
        """
        context = self._inputs.of_side("context", inputs)
        if candidates is not None and whole_number(candidates, "candidates") < 0:
            raise InputError(f"candidates is {candidates}, expected how many will be scored, 0 or more")
        requests = self._inputs.accept("context", context)
        return self._inputs.stage_inputs(context), requests

    def _check_state(self, state: RequestState) -> None:
        """That a state is one of this model.

        Raises:
            InputError: it is of another, or none.
        """
        if of_kind(state, RequestState, "state", "what prepare returns").weights.interface is not self.interface:
            raise InputError("the state was prepared by another model: each scores its own")

    def _whole(self, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        """Both stages, of inputs that are checked."""
        return self._score(self._prepare(context, requests, candidates.rows), candidates)

    @abstractmethod
    def _prepare(self, context: dict[str, Tensor], requests: int, candidates: int | None) -> RequestState:
        """The request stage, of inputs that are checked."""

    @abstractmethod
    def _score(self, state: RequestState, candidates: Candidates) -> Any:
        """The candidate stage, of inputs that are checked."""
