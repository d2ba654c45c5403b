"""The server's app for servers of ASGI: uvicorn, a route of FastAPI or Starlette, BentoML, Ray Serve.

    app = rankhoist.serve.asgi.Asgi({"ranker": "ranker.rankhoist"})

It is what a worker of `rankhoist serve` is: the same routes, limits and compute thread, in the process that loads it.
Workers that share weights, their restart and new versions are left to the server that runs it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from rankhoist_client.refusal import RequestError

from rankhoist.runtime import load
from rankhoist.runtime.mapped import version_of
from rankhoist.serve.app import App
from rankhoist.serve.batching import joined_up_to
from rankhoist.serve.compute import Compute
from rankhoist.serve.config import Settings
from rankhoist.serve.items import stocked
from rankhoist.serve.loading import newest, ready
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Asgi:
    """An application of ASGI 3.

    Args:
        models: name -> artifact, or folder whose last artifact is served.
        settings: of the server (`rankhoist.serve.config.Settings`): `threads`, `max_candidates`, `cache_bytes`, ...

    Raises:
        ArtifactError: an artifact cannot be loaded.
    """

    def __init__(self, models: Mapping[str, str | Path], **settings: Any) -> None:
        own = Settings(models={name: Path(path) for name, path in models.items()}, **settings)
        self.service = loaded(own)
        self._app = App(self.service)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request of HTTP, or the beginning and the end of the server that runs it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, headers, body = await answered(self._app, scope, receive)
            pairs = [(name.encode(), value.encode()) for name, value in headers]
            length = (b"content-length", str(len(body)).encode())
            await send({"type": "http.response.start", "status": status, "headers": [*pairs, length]})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        self.service.draining = True
        self.service.compute.close()
        self.service.desk.close()
        await send({"type": "lifespan.shutdown.complete"})


def loaded(settings: Settings) -> Service:
    """A service of this process, with its models loaded and warm."""
    torch.set_num_threads(settings.threads)
    service = Service(settings, Compute(settings.threads, settings.batch_candidates, settings.batch_delay_ms / 1e3))
    for name, place in settings.models.items():
        path = newest(place)
        hoisted, source = load(path), settings.catalogues.get(name)
        items = None if source is None else stocked(hoisted, source, None, settings)
        model = ServedModel(name, version_of(path), hoisted, items=items)
        up_to = joined_up_to(model, settings.batch_candidates, settings.batch_up_to)
        service.models[name] = ready(name, model.version, hoisted, up_to, settings, items)
        model.metrics.catalogue(None if items is None else items.store)
    return service


async def answered(app: App, scope: Mapping[str, Any], receive: Receive) -> tuple[int, list[tuple[str, str]], bytes]:
    """What the app answers: status, headers and body."""
    exchange = _Exchange(scope, receive)
    await app.__rsgi__(exchange, exchange)
    return exchange.answer


class _Exchange:
    """A request of ASGI as the app takes it (RSGI): what is asked, the body, and the answer."""

    proto = "http"
    answer: tuple[int, list[tuple[str, str]], bytes]

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self._receive = receive
        self.method = scope["method"]
        self.path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"  # below which it is mounted
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

    async def __call__(self) -> bytes:
        """The whole body."""
        return b"".join([part async for part in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise RequestError("malformed", "the body ended early")
            yield message.get("body", b"")
            more = message.get("more_body", False)

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """The whole answer."""
        self.answer = status, headers, body
