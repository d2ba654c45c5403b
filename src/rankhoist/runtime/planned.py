"""What scores with one of several plans, and what makes it score with a given one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from rankhoist.compiler.plan import Plans, PlanSummary, Way
from rankhoist.runtime.alike import error, tolerance
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.offsets import Offsets
from rankhoist.runtime.scoring import Candidates, RequestState, Scoring


class Tunable(ABC):
    """What has several plans, each of which computes a call: what `tune` compares and times."""

    _inputs: Inputs

    @property
    @abstractmethod
    def plans(self) -> Plans[PlanSummary]:
        """Its plans, and how many candidates and requests each is used for."""

    @abstractmethod
    def _whole_for(self, way: Way, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        """Both stages of one plan, by one backend."""

    @abstractmethod
    def _warm_up_for(self, way: Way, requests: int, candidates: int) -> None:
        """Record calls of this size, if the backend records any."""

    def _checked_for(self, way: Way, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        """What is compared with that of the original before a plan is timed: the results of a call."""
        return self._whole_for(way, context, requests, candidates)

    def _apart(self, checked: Any, truth: Any) -> float:
        """How far results are from those of the original, of their scale."""
        return error(checked, truth)

    @property
    def _tolerance(self) -> float:
        """How far they may be."""
        return tolerance(self._inputs.dtype, self._inputs.device)


class Planned(Tunable, Scoring):
    """A model with several plans, one of which scores a call."""

    @abstractmethod
    def _prepare_for(self, way: Way, context: dict[str, Tensor], requests: int) -> RequestState:
        """The request stage of one plan, by one backend; `_score` goes on with it."""


class OnePlan(Scoring):
    """A model that scores with one of its plans, by one backend."""

    def __init__(self, model: Planned, plan: int, backend: str = "") -> None:
        self._model, self._inputs, self._way = model, model._inputs, Way(plan, backend)

    def __call__(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """Scores of N candidates; see `forward`."""
        return self.forward(*args, request_offsets=request_offsets, **kwargs)

    def _whole(self, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Any:
        return self._model._whole_for(self._way, context, requests, candidates)

    def _prepare(self, context: dict[str, Tensor], requests: int, candidates: int | None) -> RequestState:
        return self._model._prepare_for(self._way, context, requests)

    def _score(self, state: RequestState, candidates: Candidates) -> Any:
        return self._model._score(state, candidates)
