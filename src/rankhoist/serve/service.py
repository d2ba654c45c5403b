"""What every protocol asks of a worker: a model by its name, scores within the limits, a newer version."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rankhoist_client import v2
from rankhoist_client.refusal import RequestError

import rankhoist.serve.metrics as metrics
from rankhoist.runtime.versions import versions
from rankhoist.serve.asked import Asked
from rankhoist.serve.board import Board
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.config import Settings
from rankhoist.serve.desk import Desk
from rankhoist.serve.inputs import Batch, Limits, Signature
from rankhoist.serve.items import Items, read_items
from rankhoist.serve.loading import places
from rankhoist.serve.model import Scored, ServedModel

AS_SAVED = "a model is loaded as it was saved, without parameters"
CHANGES = 8  # of what is served, that may wait in a worker
# What the protocol v2 says of the server.
SERVER = {
    "name": "rankhoist", "version": versions()["rankhoist"], "extensions": ["binary_tensor_data", "model_repository"],
}  # fmt: skip


class Service:
    """The models of a worker, and how busy it is.

    Args:
        change: "load" serves the newest artifact of a model in all workers and returns the version; "unload" serves the
            model no more; "put" puts the items of a file into its catalogue and returns the edition.
        board: says how busy the other workers are.
    """

    def __init__(
        self, settings: Settings, compute: Compute, change: Callable[[str, str, str], Awaitable[str]] | None = None,
        board: Board | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.compute, self.board = settings, compute, board
        self._change, self._changing = change, 0
        self.desk = Desk(settings)
        self.models: dict[str, ServedModel] = {}
        self.draining = False
        self.busy, self._changed = 0, 0.0

    # -- models

    @property
    def ready(self) -> bool:
        """Whether the worker takes requests."""
        return bool(self.models) and not self.draining

    def check_ready(self) -> None:
        """Refuse where it does not."""
        if not self.ready:
            raise RequestError("not_ready", "the server is stopping" if self.draining else "no model is loaded yet")

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """The model of a name, if it is of that version, too."""
        model = self.models.get(name)
        if model is None:
            raise RequestError("not_found", f"there is no model {name[:60]!r}; the models are {', '.join(self.models)}")
        if version not in (None, model.version):
            message = f"model {name!r} has no version {str(version)[:60]!r}; it serves {model.version}"
            raise RequestError("not_found", message)
        return model

    async def index(self, ready: bool = False) -> list[dict[str, str]]:
        """What is served, as the protocol v2 lists it; and what could be loaded, unless only what is `ready` counts."""
        served = [{"name": m.name, "version": m.version, "state": "READY"} for m in self.models.values()]
        if ready:
            return served
        others = (await asyncio.to_thread(places, self.settings)).keys() - self.models.keys()
        return served + [{"name": name, "state": "UNAVAILABLE", "reason": "not loaded"} for name in sorted(others)]

    async def load(self, name: str) -> str:
        """Serve the newest artifact of a model, in all workers; returns its version."""
        return await self._changed_by("load", name)

    async def unload(self, name: str) -> None:
        """Serve a model no more, in all workers; requests that were accepted are answered."""
        await self._changed_by("unload", name)

    def check_put(self, model: ServedModel) -> Items:
        """The catalogue of a model, if requests may put items into it."""
        if model.items is None:
            raise RequestError("not_found", f"{model.name} has no catalogue")
        if not self.settings.put_items or self._change is None:
            raise RequestError("forbidden", "start the server with --put-items")
        if not model.items.built:
            raise RequestError("forbidden", "the catalogue is a folder that this server reads: renew it, then SIGHUP")
        return model.items

    async def put_items(self, model: ServedModel, body: bytes) -> tuple[int, int]:
        """Put the items of a body into a catalogue, for all workers: how many, and the edition that has them."""
        items, settings = self.check_put(model), self.settings
        signature = Signature.of_items(model.hoisted, items.feature)
        ids, _ = await asyncio.to_thread(read_items, body, signature, settings)
        assert items.store.folder is not None, "it was built there"
        path = items.store.folder / f"put-{secrets.token_hex(8)}.json"
        await asyncio.to_thread(path.write_bytes, body)
        try:
            return len(ids), int(await self._changed_by("put", model.name, str(path)))
        finally:
            path.unlink(missing_ok=True)

    async def _changed_by(self, change: str, name: str, path: str = "") -> str:
        if (not self.settings.admin and change != "put") or self._change is None:
            raise RequestError("forbidden", "start the server with --admin, or send SIGHUP to it")
        if self._changing >= CHANGES:
            raise RequestError("queue_full", f"{self._changing} changes wait already of models or of their items")
        self._changing += 1
        try:
            return await self._change(change, name, path)
        finally:
            self._changing -= 1

    # -- load

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for requests that are read, wait or are scored."""
        if self.busy >= self.settings.max_queue:
            raise RequestError("queue_full", f"{self.busy} requests wait already")
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def crowded(self) -> bool:
        """Whether a connection should be ended, for its client to find another worker."""
        return self.draining or (self.board is not None and self.board.crowded())

    async def quiet(self, seconds: float) -> None:
        """Until there was nothing to do for so long: connections that are open may bring requests until the end."""
        while self.busy or time.monotonic() < self._changed + seconds:
            await asyncio.sleep(0.05)

    def _count(self, change: int) -> None:
        self.busy, self._changed = self.busy + change, time.monotonic()
        metrics.WAITING.set(self.busy)
        if self.board is not None and not self.draining:
            self.board.write(self.busy)

    # -- scores

    async def infer(
        self, asked: Asked, model: ServedModel, request: v2.Message, start: float, timeout: Any = None
    ) -> dict[str, v2.Tensor]:
        """The outputs that a request of the protocol v2 asks for; it was read from moment `start` on.

        `timeout`: milliseconds, of a request whose parameters say none.
        """
        outputs = _wanted(model, request)
        batch = self.checked(asked, model, request.tensors, start, request.parameters.get("unknown_ids"))
        own = request.parameters.get("timeout")
        if own is not None:
            own = _number(own, "timeout") / 1e3  # microseconds, as Triton has it
        scored = await self.score(asked, model, batch, request.parameters.get("context_key"), own, timeout)
        return {o.name: v2.Tensor(o.datatype, scored.outputs[o.name]) for o in model.outputs if o.name in outputs}

    def checked(
        self, asked: Asked, model: ServedModel, tensors: Mapping[str, v2.Tensor], start: float, unknown: Any
    ) -> Batch:
        """The features of a request as a batch; parsing it began at `start`. `unknown`: what it says of unknown ids."""
        own, skips = self.settings, _skips(model, unknown)
        limits = Limits(own.max_candidates, own.max_requests, own.max_values, own.allow_nan)
        batch = model.signature.check(tensors, limits)
        batch = replace(batch, skips=skips) if skips else batch
        asked.ended("parse", start)
        asked.rows = batch.rows
        model.metrics.candidates.observe(batch.rows)
        return batch

    async def score(self, asked: Asked, model: ServedModel, batch: Batch, key: Any, *timeouts: Any) -> Scored:
        """Scores from the compute thread, if the deadline does not pass before it comes to them.

        The first of the timeouts that is given counts, in milliseconds; else the server's own.
        """
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= 256):
            raise RequestError("parameter", "'context_key' is not a text of 1 to 256 characters")
        deadline = None
        if (first := next((t for t in (*timeouts, self.settings.timeout_ms) if t is not None), None)) is not None:
            deadline = time.perf_counter() + _number(first, "timeout") / 1e3
        return await self.compute.score(Job(model, batch, key, deadline, asked.stages))


async def in_time(reading: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
    """The body, if it comes in time. The HTTP server's own tasks cannot be cancelled, so this is another one."""
    task = asyncio.ensure_future(reading)
    try:
        if (await asyncio.wait({task}, timeout=seconds))[1]:
            raise RequestError("slow_body", f"the body did not come within {seconds:g} seconds")
        return task.result()
    finally:
        task.cancel()


def _wanted(model: ServedModel, request: v2.Message) -> set[str]:
    """The outputs that are asked for, or all."""
    known = [o.name for o in model.outputs]
    for name in request.wanted or ():
        if name not in known:
            raise RequestError("unknown_output", f"unknown output {name[:60]!r}; the outputs are {', '.join(known)}")
    return set(request.wanted or known)


def _skips(model: ServedModel, asked: Any) -> bool:
    """Whether items that are not in the catalogue have no scores, where a request with one is refused otherwise."""
    if asked in (None, "refuse"):
        return False
    if asked != "skip":
        raise RequestError("parameter", f"'unknown_ids' is {asked!r:.20}, expected 'refuse' or 'skip'")
    if model.items is None:
        raise RequestError("parameter", f"'unknown_ids' is of models with a catalogue; {model.name} has none")
    whole = [o.name for o in model.outputs if not o.datatype.startswith(("FP", "BF"))]
    if whole:
        raise RequestError("parameter", f"unknown ids cannot be skipped: output {whole[0]!r} has no NaN")
    return True


def _number(value: Any, name: str) -> float:
    """A positive number, also as text."""
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < 1e12:
        raise RequestError("parameter", f"{name!r} is {value!r:.20}, expected a positive number")
    return number
