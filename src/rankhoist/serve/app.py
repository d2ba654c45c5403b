"""The routes: from a request of HTTP to the models and back. One `App` serves in one worker (RSGI)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from granian._granian import RSGIProtocolClosed, RSGIProtocolError
from rankhoist_client import v2
from rankhoist_client.refusal import RETRY_AFTER, RequestError

import rankhoist.serve.metrics as metrics
import rankhoist.serve.page as page
from rankhoist.serve.asked import Asked
from rankhoist.serve.model import ServedModel
from rankhoist.serve.openapi import openapi
from rankhoist.serve.rank import check_output, read_rank, write_rank
from rankhoist.serve.service import AS_SAVED, SERVER, Service, in_time

log = logging.getLogger(__name__)

JSON = "application/json"
TIMEOUT = "x-request-timeout-ms"
BEFORE_THE_BODY = {403, 404, 405, 408, 413, 415, 429}  # who is answered so may not have been read to the end
MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?")
RANK = re.compile(r"/v1/models/([^/]+)/rank")
ITEMS = re.compile(r"/v1/models/([^/]+)/items")
REPORT = re.compile(r"/v1/models/([^/]+)/report")
CHANGE = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")
SMALL = 2**16  # bytes of a body that has no features

Answer = tuple[int, list[tuple[str, str]], bytes]


class App:
    """What a worker answers over HTTP."""

    def __init__(self, service: Service) -> None:
        self.service, self.reports = service, page.Reports()
        self._routes: dict[str, Callable[[Any], Answer]] = {
            "/": self._root, "/metrics": self._metrics, "/openapi.json": self._openapi, "/v2": lambda _: _json(SERVER),
            **dict.fromkeys(("/v2/health/live", "/healthz"), lambda _: _json({"live": True})),
            **dict.fromkeys(("/v2/health/ready", "/readyz"), self._ready),
        }  # fmt: skip

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """One request of HTTP."""
        if scope.proto != "http":
            proto.close(403)
            return
        start, closes = time.perf_counter(), False
        more: dict[str, str] = {}  # headers, whatever the answer is
        try:
            status, headers, body = await self._answer(scope, proto, more)
        except RequestError as refusal:
            status, headers, body = _refused(refusal)
            closes = scope.method in ("POST", "PUT") and refusal.status in BEFORE_THE_BODY
        except Exception as error:
            log.exception("request failed", extra={"path": scope.path})
            status, headers, body = _refused(RequestError("internal", f"the server failed: {type(error).__name__}"))
        if closes or self.service.crowded():
            more["connection"] = "close"
        proto.response_bytes(status, [*headers, *more.items()], body)
        if self.service.settings.access_log:
            seconds = round(time.perf_counter() - start, 6)
            log.info("request", extra={"path": scope.path, "status": status, "seconds": seconds, "bytes": len(body)})

    async def _answer(self, scope: Any, proto: Any, more: dict[str, str]) -> Answer:
        path = scope.path.rstrip("/") or "/"
        if rank := RANK.fullmatch(path):
            _check_method(scope, "POST")
            return await self._scored(scope, proto, more, rank[1], None, "rank", self._rank)
        if (found := MODEL.fullmatch(path)) and found[3] == "infer":
            _check_method(scope, "POST")
            return await self._scored(scope, proto, more, found[1], found[2], "v2", self._infer)
        if change := CHANGE.fullmatch(path):
            _check_method(scope, "POST")
            return await self._changed(scope, proto, *change.groups())
        if items := ITEMS.fullmatch(path):
            _check_method(scope, "PUT")
            return await self._put_items(scope, proto, items[1])
        if path == "/v2/repository/index":
            asked = await self._small(scope, proto) if scope.method == "POST" else {}
            return _json(await self.service.index(asked.get("ready") is True))
        _check_method(scope, "GET")
        if found:
            model = self.service.model(found[1], found[2])
            if found[3]:
                self.service.check_ready()
            return _json({"name": model.name, "ready": True} if found[3] else model.metadata())
        if (report := REPORT.fullmatch(path)) and self.service.settings.page:
            return 200, page.headers(self.reports.policy), await self.reports.of(self.service.model(report[1]))
        if route := self._routes.get(path):
            return route(scope)
        raise RequestError(
            "not_found", f"there is no {path[:100]}; POST /v1/models/NAME/rank ranks, GET /v2/models/NAME tells"
        )

    # -- what is read

    def _ready(self, scope: Any) -> Answer:
        self.service.check_ready()
        return _json({"ready": True})

    def _metrics(self, scope: Any) -> Answer:
        found, content_type = metrics.exposed(scope.headers.get("accept", ""))
        return 200, [("content-type", content_type)], found

    def _openapi(self, scope: Any) -> Answer:
        settings = self.service.settings
        return _json(openapi(self.service.models.values(), settings.admin, settings.put_items))

    def _root(self, scope: Any) -> Answer:
        """A page for browsers, JSON for others."""
        models = self.service.models
        if self.service.settings.page and "text/html" in scope.headers.get("accept", ""):
            return 200, page.headers(page.policy()), page.page([*models.values()])
        return _json({"server": "rankhoist", "models": {m.name: m.version for m in models.values()}})

    # -- the repository

    async def _changed(self, scope: Any, proto: Any, name: str, change: str) -> Answer:
        asked = await self._small(scope, proto)
        if change == "unload":
            await self.service.unload(name)
            return _json({"name": name})
        if asked.get("parameters"):
            raise RequestError("parameter", AS_SAVED)
        return _json({"name": name, "version": await self.service.load(name)})

    async def _put_items(self, scope: Any, proto: Any, name: str) -> Answer:
        settings, model = self.service.settings, self.service.model(name)
        self.service.check_put(model)
        with self.service.place():
            body = await in_time(_body(scope, proto, settings.max_body_bytes), settings.body_seconds)
            count, edition = await self.service.put_items(model, body)
            return _json({"model": name, "items": count, "edition": edition})

    async def _small(self, scope: Any, proto: Any) -> dict[str, Any]:
        """The object of a body, which may be empty."""
        body = await in_time(_body(scope, proto, SMALL), self.service.settings.body_seconds)
        return v2.read_object(body) if body else {}

    # -- scores

    async def _scored(
        self, scope: Any, proto: Any, more: dict[str, str], name: str, version: str | None, protocol: str,
        handle: Callable[[Any, bytes, Asked, ServedModel], Awaitable[Answer]],
    ) -> Answer:  # fmt: skip
        """Count a request and keep it within the limits."""
        settings, model = self.service.settings, self.service.model(name, version)
        with self.service.desk.asked(protocol, model, scope.headers) as asked:
            more.update(asked.headers)
            with self.service.place():
                body = await in_time(_body(scope, proto, settings.max_body_bytes), settings.body_seconds)
                asked.start = time.perf_counter()
                return await handle(scope, body, asked, model)

    async def _rank(self, scope: Any, body: bytes, asked: Asked, model: ServedModel) -> Answer:
        start = time.perf_counter()
        request = read_rank(body, model.signature)
        check_output(model, request.output)
        batch = self.service.checked(asked, model, request.tensors, start, request.options.get("unknown_ids"))
        key, timeout = request.options.get("context_key"), request.options.get("timeout_ms")
        scored = await self.service.score(asked, model, batch, key, timeout, scope.headers.get(TIMEOUT))
        end = time.perf_counter()
        answer = write_rank(model, scored, request)
        asked.ended("encode", end)
        return 200, [("content-type", JSON)], answer

    async def _infer(self, scope: Any, body: bytes, asked: Asked, model: ServedModel) -> Answer:
        start = time.perf_counter()
        request = v2.read_request(body, scope.headers.get(v2.HEADER_LENGTH))
        outputs = await self.service.infer(asked, model, request, start, scope.headers.get(TIMEOUT))
        end = time.perf_counter()
        binary = request.wanted or dict.fromkeys(outputs, bool(request.parameters.get("binary_data_output", False)))
        head = {"model_name": model.name, "model_version": model.version}
        if isinstance(request.head.get("id"), str):
            head["id"] = request.head["id"]
        answer, length = v2.write_response(outputs, head, binary)
        asked.ended("encode", end)
        if length is None:
            return 200, [("content-type", JSON)], answer
        return 200, [("content-type", v2.CONTENT_TYPE), (v2.HEADER_LENGTH, str(length))], answer


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
