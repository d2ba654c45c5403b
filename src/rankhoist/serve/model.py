"""A model as it is served: one version of an artifact, what it takes and returns, and its prepared states."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.compiler.plan import Plans, PlanSummary
from rankhoist.errors import AppendError, ServeError
from rankhoist.runtime import HoistedModel, RequestState
from rankhoist.runtime.datatypes import DATATYPES
from rankhoist.runtime.offsets import even
from rankhoist.runtime.outputs import made_up_outputs
from rankhoist.serve.inputs import Batch, Signature
from rankhoist.serve.items import Items, known_only, spread
from rankhoist.serve.metrics import ModelMetrics, Stages
from rankhoist.serve.staging import Staging
from rankhoist.serve.states import States, digest_of

log = logging.getLogger(__name__)

ROWS = 7  # of a made-up call, to see what comes out
RECORDED = tuple(2**i for i in range(4, 14))  # candidates of a request, on a GPU
TOGETHER, RECORDED_TOGETHER = (4, 16), (256, 1024, 4096)  # requests that are joined, and candidates of all of them


@dataclass(frozen=True)
class Output:
    """One tensor `[N, *shape]` that the model returns; `leaf` is its place among all that it returns.

    An axis that is as long as one of the inputs that varies is -1.
    """

    name: str
    leaf: int
    datatype: str
    shape: tuple[int, ...]

    @property
    def orders(self) -> bool:
        """Whether candidates can be put in an order by it: it has one value of each."""
        return all(size == 1 for size in self.shape)


@dataclass(frozen=True)
class Scored:
    """What a call returned, by output, and when its stages were."""

    outputs: dict[str, NDArray[Any]]
    stages: Stages

    def part(self, start: int, end: int) -> Scored:
        """The rows of one request of a call of several."""
        return Scored({name: array[start:end] for name, array in self.outputs.items()}, self.stages)


class ServedModel:
    """One version of a model. Calls come from one thread."""

    def __init__(
        self, name: str, version: str, hoisted: HoistedModel, states: States | None = None, batch_up_to: int = 0,
        items: Items | None = None,
    ) -> None:  # fmt: skip
        self.name, self.version, self.hoisted, self.batch_up_to = name, version, hoisted, batch_up_to
        self.states, self.items = states or States(0, 0), items
        self.signature = Signature.of(hoisted, None if items is None else items.feature)
        self.outputs = _outputs(hoisted)
        context = [f for f in self.signature.features.values() if f.side == "context" and f.varying]
        self._varying = {f.input: f.varying for f in context} if self.states.most else {}
        self.grows = False  # known when it is warm
        self.metrics = ModelMetrics(name)
        self.staging = Staging(hoisted.device)

    def warm_up(self) -> None:
        """Every plan for one and for several requests: what the first requests would otherwise wait for. On a GPU calls
        of up to so many candidates are recorded.
        """
        several = any(feature.side == "context" for feature in self.signature.features.values())
        with torch.inference_mode(), self.staging.turn():
            if self.items is None:
                self.hoisted.warm_up(requests=(1, 2) if several else (1,))
                if self.hoisted.device.type == "cuda":
                    self.hoisted.warm_up(RECORDED)
                    if several:
                        self.hoisted.warm_up(RECORDED_TOGETHER, TOGETHER)
            else:
                for requests in (1, 2) if several else (1,):
                    self.score(self.made_up(requests, ROWS))
            self.grows = bool(self._varying) and self.items is None and self._can_grow()

    def _can_grow(self) -> bool:
        """Whether states of longer contexts go on from those of shorter ones, which takes a while to find out."""
        context = self.hoisted.made_up("context", 1)
        try:
            for rows in self.hoisted.plans.one_per_plan(1):
                self.hoisted.prepare(context, candidates=rows, growing=True)
        except AppendError as refused:
            log.info("states do not grow", extra={"model": self.name, "why": str(refused)})
            return False
        return True

    def made_up(self, requests: int, rows: int) -> Batch:
        """A batch as requests bring it: with the example's rows, and ids of the catalogue."""
        offsets = None if requests == 1 else even(rows, requests)
        context = self.hoisted.made_up("context", requests)
        if self.items is None:
            return Batch(context, self.hoisted.made_up("candidate", rows), requests, rows, offsets)
        ids = self.items.store.ids
        return Batch(
            context, self.hoisted.made_up("pair", rows), requests, rows, offsets, ids[np.arange(rows) % len(ids)]
        )

    def score(self, batch: Batch, key: str | None = None) -> Scored:
        """The outputs for a batch; with a `key`, its state is kept for requests that come with it again.

        Raises:
            RequestError: the key was used with another context, or an item is not in the catalogue.
        """
        with self.staging.turn():
            return self._scored(batch, key)

    def free(self) -> None:
        """After a call ran out of memory: what is held for later calls goes."""
        self.states.clear()
        self.metrics.bytes.set(0)
        self.staging.free()

    def _scored(self, batch: Batch, key: str | None) -> Scored:
        start = time.perf_counter()
        known = None
        if self.items is not None and batch.ids is not None and batch.skips:
            known = self.items.known(batch.ids)
        state = self._prepared(batch, key) if key is not None else self._prepare(batch)
        middle = time.perf_counter()
        if known is None or known.all():
            outputs = self._outputs_of(state, batch)
        else:
            found = self._outputs_of(state, known_only(batch, known))
            outputs = {o.name: spread(found[o.name], known, o.datatype) for o in self.outputs}
        self.metrics.count(self.hoisted.replay_counts)
        return Scored(outputs, {"context": (start, middle), "candidate": (middle, time.perf_counter())})

    def _outputs_of(self, state: RequestState, batch: Batch) -> dict[str, NDArray[Any]]:
        candidates = self.staging.there(batch.candidates)
        if self.items is None:
            made = self.hoisted.score(state, candidates, request_offsets=batch.offsets)
        else:
            made = self.items.score(self.hoisted, state, replace(batch, candidates=candidates))
        leaves = [made] if isinstance(made, Tensor) else pytree.tree_leaves(made)
        found = self.staging.back([leaves[output.leaf] for output in self.outputs])
        return {output.name: _array(t) for output, t in zip(self.outputs, found, strict=True)}

    def _prepare(self, batch: Batch) -> RequestState:
        store = None if self.items is None else self.items.store
        return self.hoisted.prepare(self.staging.there(batch.context), candidates=batch.rows, store=store)

    def _prepared(self, batch: Batch, key: str) -> RequestState:
        digest = digest_of(batch.context)
        before = self.states.before(key, batch.context, self._varying) if self._varying else None
        state = self.states.get(key, digest) if before is None else None
        if state is not None and self._plans.fits(state.plan, batch.rows, batch.requests):
            self.metrics.hits.inc()
            return state
        if before is not None and self.grows:
            state = self._grown(batch, *before)
        else:
            self.metrics.misses.inc()
            state = self._prepare(batch)
        self.states.put(key, digest, state, batch.context if self._varying else None)
        self.metrics.bytes.set(self.states.bytes)
        return state

    def _grown(self, batch: Batch, state: RequestState, events: Mapping[str, Tensor]) -> RequestState:
        """A state that goes on from one of less events. The first time it is prepared so that it can."""
        if state.grown is None or not self._plans.fits(state.plan, batch.rows, batch.requests):
            self.metrics.misses.inc()
            return self.hoisted.prepare(self.staging.there(batch.context), candidates=batch.rows, growing=True)
        self.metrics.grown.inc()
        return self.hoisted.append(state, self.staging.there(events))

    @property
    def _plans(self) -> Plans[PlanSummary]:
        """Those that score its requests."""
        plans = self.hoisted.plans if self.items is None else self.hoisted.blueprint.with_store
        assert plans is not None, "it has a store"
        return plans

    def metadata(self) -> dict[str, Any]:
        """What the protocol v2 says of a model; -1 is a free number of rows."""
        inputs = [
            {"name": name, "datatype": given.datatype, "shape": [-1, *given.shape], "parameters": given.parameters}
            for f in self.signature.features.values()
            for name, given in f.tensors.items()
        ]
        offsets = {"name": "request_offsets", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}}
        outputs = [{"name": o.name, "datatype": o.datatype, "shape": [-1, *o.shape]} for o in self.outputs]
        versions = [self.version]
        return {
            "name": self.name, "versions": versions, "platform": "rankhoist", "inputs": [*inputs, offsets],
            "outputs": outputs,
        }  # fmt: skip


def _outputs(hoisted: HoistedModel) -> list[Output]:
    """Names and shapes of the outputs that have a row per candidate."""
    with torch.inference_mode():
        made = made_up_outputs(hoisted, ROWS)
    outputs = [
        Output(name, i, DATATYPES[t.dtype], shape[1:])
        for i, (name, t, shape) in enumerate(made)
        if isinstance(t, Tensor) and t.dim() and t.shape[0] == ROWS
    ]
    if not outputs:
        raise ServeError("the model returns no tensor with a row per candidate, so there is nothing to serve")
    return outputs


def _array(tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array
