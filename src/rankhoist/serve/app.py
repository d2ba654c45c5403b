"""The routes: from a request of HTTP to the models and back. One `App` serves in one worker (RSGI)."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from granian._granian import RSGIProtocolClosed, RSGIProtocolError
from rankhoist_client import v2
from rankhoist_client.refusal import RETRY_AFTER, RequestError

import rankhoist.serve.metrics as metrics
from rankhoist.runtime.versions import versions
from rankhoist.serve.board import Board
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.config import Settings
from rankhoist.serve.inputs import Batch
from rankhoist.serve.model import Scored, ServedModel
from rankhoist.serve.rank import check_output, read_rank, write_rank

log = logging.getLogger(__name__)

JSON = "application/json"
TIMEOUT = "x-request-timeout-ms"
BEFORE_THE_BODY = {403, 404, 405, 408, 413, 415, 429}  # who is answered so may not have been read to the end
EXTENSIONS = ["binary_tensor_data", "model_repository"]
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?")
RANK = re.compile(r"/v1/models/([^/]+)/rank")
LOAD = re.compile(r"/v2/repository/models/([^/]+)/load")

Answer = tuple[int, list[tuple[str, str]], bytes]


class App:
    """What a worker answers.

    Args:
        reload: loads the newest artifact of a model in all workers, and returns the version.
        board: says how busy the other workers are.
    """

    def __init__(
        self, settings: Settings, compute: Compute, reload: Callable[[str], Awaitable[str]] | None = None,
        board: Board | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.compute, self.reload, self.board = settings, compute, reload, board
        self.models: dict[str, ServedModel] = {}
        self.draining = False
        self.busy, self._changed = 0, 0.0

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """One request of HTTP."""
        if scope.proto != "http":
            proto.close(403)
            return
        start, closes = time.perf_counter(), False
        try:
            status, headers, body = await self._answer(scope, proto)
        except RequestError as refusal:
            status, headers, body = _refused(refusal)
            closes = scope.method == "POST" and refusal.status in BEFORE_THE_BODY
        except Exception as error:
            log.exception("request failed", extra={"path": scope.path})
            status, headers, body = _refused(RequestError("internal", f"the server failed: {type(error).__name__}"))
        if closes or self.draining or (self.board is not None and self.board.crowded()):
            headers = [*headers, ("connection", "close")]
        proto.response_bytes(status, headers, body)
        if self.settings.access_log:
            seconds = round(time.perf_counter() - start, 6)
            log.info("request", extra={"path": scope.path, "status": status, "seconds": seconds, "bytes": len(body)})

    async def _answer(self, scope: Any, proto: Any) -> Answer:
        path = scope.path.rstrip("/") or "/"
        if rank := RANK.fullmatch(path):
            _check_method(scope, "POST")
            return await self._scored(scope, proto, rank[1], None, "rank", self._rank)
        if (found := MODEL.fullmatch(path)) and found[3] == "infer":
            _check_method(scope, "POST")
            return await self._scored(scope, proto, found[1], found[2], "v2", self._infer)
        if load := LOAD.fullmatch(path):
            _check_method(scope, "POST")
            return await self._load(load[1])
        if path == "/v2/repository/index":
            return _json([{"name": m.name, "version": m.version, "state": "READY"} for m in self.models.values()])
        _check_method(scope, "GET")
        if found:
            model = self._model(found[1], found[2])
            if found[3]:
                self._check_ready()
            return _json({"name": model.name, "ready": True} if found[3] else model.metadata())
        return self._about(path)

    def _about(self, path: str) -> Answer:
        """What is known without a model."""
        if path == "/v2/health/live":
            return _json({"live": True})
        if path == "/v2/health/ready":
            self._check_ready()
            return _json({"ready": True})
        if path == "/v2":
            return _json({"name": "rankhoist", "version": versions()["rankhoist"], "extensions": EXTENSIONS})
        if path == "/metrics":
            return 200, [("content-type", metrics.CONTENT_TYPE)], metrics.exposed()
        if path == "/":
            return _json({"server": "rankhoist", "models": {m.name: m.version for m in self.models.values()}})
        raise RequestError(
            "not_found", f"there is no {path[:100]}; POST /v1/models/NAME/rank ranks, GET /v2/models/NAME tells"
        )

    def _check_ready(self) -> None:
        if self.draining or not self.models:
            raise RequestError("not_ready", "the server is stopping" if self.draining else "no model is loaded yet")

    def _model(self, name: str, version: str | None) -> ServedModel:
        model = self.models.get(name)
        if model is None:
            raise RequestError("not_found", f"there is no model {name[:60]!r}; the models are {', '.join(self.models)}")
        if version not in (None, model.version):
            message = f"model {name!r} has no version {str(version)[:60]!r}; it serves {model.version}"
            raise RequestError("not_found", message)
        return model

    async def _load(self, name: str) -> Answer:
        self._model(name, None)
        if not self.settings.admin or self.reload is None:
            raise RequestError("forbidden", "start the server with --admin, or send SIGHUP to it")
        return _json({"name": name, "version": await self.reload(name)})

    async def quiet(self, seconds: float) -> None:
        """Until there was nothing to do for so long: connections that are open may bring requests until the end."""
        while self.busy or time.monotonic() < self._changed + seconds:
            await asyncio.sleep(0.05)

    # -- scores

    async def _scored(
        self, scope: Any, proto: Any, name: str, version: str | None, protocol: str,
        handle: Callable[[Any, bytes, ServedModel], Awaitable[Answer]],
    ) -> Answer:  # fmt: skip
        """Count a request and keep it within the limits."""
        model, status = self._model(name, version), 500
        try:
            if self.busy >= self.settings.max_queue:
                raise RequestError("queue_full", f"{self.busy} requests wait already")
            self._count(1)
            try:
                body = await _in_time(_body(scope, proto, self.settings.max_body_bytes), self.settings.body_seconds)
                start = time.perf_counter()
                answer = await handle(scope, body, model)
            finally:
                self._count(-1)
            model.metrics.latency.observe(time.perf_counter() - start)
            status = answer[0]
            return answer
        except RequestError as refusal:
            status = refusal.status
            raise
        finally:
            metrics.counted(name, protocol, status).inc()

    def _count(self, change: int) -> None:
        """Requests that are read, wait or are scored."""
        self.busy, self._changed = self.busy + change, time.monotonic()
        metrics.WAITING.set(self.busy)
        if self.board is not None and not self.draining:
            self.board.write(self.busy)

    async def _rank(self, scope: Any, body: bytes, model: ServedModel) -> Answer:
        start = time.perf_counter()
        request = read_rank(body, model.signature)
        check_output(model, request.output)
        batch = self._checked(model, request.tensors, start)
        key, timeout = request.options.get("context_key"), request.options.get("timeout_ms")
        scored, model = await self._compute(scope, model, batch, key, timeout), model
        end = time.perf_counter()
        answer = write_rank(model, scored, request)
        model.metrics.stage["encode"].observe(time.perf_counter() - end)
        return 200, [("content-type", JSON)], answer

    async def _infer(self, scope: Any, body: bytes, model: ServedModel) -> Answer:
        start = time.perf_counter()
        request = v2.read_request(body, scope.headers.get(v2.HEADER_LENGTH))
        binary = _binary(model, request)
        batch = self._checked(model, request.tensors, start)
        key, timeout = request.parameters.get("context_key"), request.parameters.get("timeout")
        if timeout is not None:
            timeout = _number(timeout, "timeout") / 1e3  # microseconds, as Triton has it
        scored = await self._compute(scope, model, batch, key, timeout)
        end = time.perf_counter()
        outputs = {o.name: v2.Tensor(o.datatype, scored.outputs[o.name]) for o in model.outputs if o.name in binary}
        head = {"model_name": model.name, "model_version": model.version}
        if isinstance(request.head.get("id"), str):
            head["id"] = request.head["id"]
        answer, length = v2.write_response(outputs, head, binary)
        model.metrics.stage["encode"].observe(time.perf_counter() - end)
        if length is None:
            return 200, [("content-type", JSON)], answer
        return 200, [("content-type", v2.CONTENT_TYPE), (v2.HEADER_LENGTH, str(length))], answer

    def _checked(self, model: ServedModel, tensors: dict[str, v2.Tensor], start: float) -> Batch:
        own = self.settings
        batch = model.signature.check(tensors, own.max_candidates, own.allow_nan, own.max_requests)
        model.metrics.stage["parse"].observe(time.perf_counter() - start)
        model.metrics.candidates.observe(batch.rows)
        return batch

    async def _compute(self, scope: Any, model: ServedModel, batch: Batch, key: Any, timeout: Any) -> Scored:
        """Scores from the compute thread, if the deadline does not pass before it comes to them."""
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= 256):
            raise RequestError("parameter", "'context_key' is not a text of 1 to 256 characters")
        asked = (timeout, scope.headers.get(TIMEOUT), self.settings.timeout_ms)
        deadline = None
        if (first := next((t for t in asked if t is not None), None)) is not None:
            deadline = time.perf_counter() + _number(first, "timeout") / 1e3
        return await self.compute.score(Job(model, batch, key, deadline))


async def _body(scope: Any, proto: Any, most: int) -> bytes:
    """The whole body, if it is not too large: by what its header says, or as it comes."""
    if scope.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("encoding", "the body is compressed; send it as it is")
    length = scope.headers.get("content-length")
    too_large = RequestError("too_large", f"the body has more than {most} bytes")
    if length is not None and (not length.isdigit() or int(length) > most):
        raise too_large
    try:
        if length is not None:
            whole: bytes = await proto()
            return whole
        parts, size = [], 0
        async for part in proto:
            parts.append(part)
            size += len(part)
            if size > most:
                raise too_large
    except (RSGIProtocolClosed, RSGIProtocolError) as error:
        raise RequestError("malformed", "the body ended early") from error
    return b"".join(parts)


async def _in_time(reading: Coroutine[Any, Any, bytes], seconds: float) -> bytes:
    """The body, if it comes in time. The server's own tasks cannot be cancelled, so this is another one."""
    task = asyncio.ensure_future(reading)
    if (await asyncio.wait({task}, timeout=seconds))[1]:
        task.cancel()
        raise RequestError("slow_body", f"the body did not come within {seconds:g} seconds")
    return task.result()


def _binary(model: ServedModel, request: v2.Message) -> dict[str, bool]:
    """The outputs to return, and whether in binary: those asked for, or all as the whole request says."""
    known = [o.name for o in model.outputs]
    if not request.wanted:
        return dict.fromkeys(known, bool(request.parameters.get("binary_data_output", False)))
    for name in request.wanted:
        if name not in known:
            raise RequestError("unknown_output", f"unknown output {name[:60]!r}; the outputs are {', '.join(known)}")
    return request.wanted


def _number(value: Any, name: str) -> float:
    """A positive number, also as text."""
    try:
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < 1e12:
        raise RequestError("parameter", f"{name!r} is {value!r:.20}, expected a positive number")
    return number


def _check_method(scope: Any, method: str) -> None:
    if scope.method != method:
        raise RequestError("method", f"{scope.path[:100]} takes {method}, not {scope.method[:20]}")


def _json(data: Any) -> Answer:
    return 200, [("content-type", JSON)], orjson.dumps(data)


def _refused(refusal: RequestError) -> Answer:
    headers = [("content-type", JSON)]
    if refusal.reason in RETRY_AFTER:
        headers.append(("retry-after", str(RETRY_AFTER[refusal.reason])))
    return refusal.status, headers, orjson.dumps(refusal.to_dict())
