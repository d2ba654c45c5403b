"""The server's app as a deployment of Ray Serve: a cluster places the replicas and adds more under load.

    serve.run(deployment({"ranker": "/shared/ranker.rankhoist"}, max_replicas=8), route_prefix="/")

A replica is what a worker of `rankhoist serve` is: the same routes, limits and compute thread. What the cluster does
instead of the supervisor: start replicas again that end, drain those that stop, replace them by new versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rankhoist.errors import ExtraError
from rankhoist.runtime import load
from rankhoist.runtime.mapped import version_of
from rankhoist.serve.app import App
from rankhoist.serve.batching import joined_up_to
from rankhoist.serve.compute import Compute
from rankhoist.serve.config import Settings
from rankhoist.serve.loading import newest
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import Service
from rankhoist.serve.states import States

try:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response
except ImportError as error:
    raise ExtraError("a deployment on Ray Serve needs it: pip install 'rankhoist[serve,ray]'") from error


def deployment(
    models: Mapping[str, str | Path], *, min_replicas: int = 1, max_replicas: int = 1, busy: float = 2.0,
    num_cpus: float | None = None, **settings: Any,
) -> serve.Application:  # fmt: skip
    """The app, to be given to `ray.serve.run`.

    Args:
        models: name -> artifact, or folder whose last artifact is served; every machine sees the same path.
        min_replicas, max_replicas: how few and how many.
        busy: requests under way per replica that the number of replicas is chosen for.
        num_cpus: that a replica is placed on; by default as many as it has torch threads.
        settings: of the server (`rankhoist.serve.config.Settings`): `threads`, `max_candidates`, `cache_bytes`, ...
    """
    chosen = Settings(models={name: Path(path).resolve() for name, path in models.items()}, **settings)
    configured = serve.deployment(
        ray_actor_options={"num_cpus": chosen.threads if num_cpus is None else num_cpus},
        max_ongoing_requests=chosen.max_queue,
        autoscaling_config={
            "min_replicas": min_replicas, "max_replicas": max_replicas, "target_ongoing_requests": busy,
        },
    )  # fmt: skip
    app: serve.Application = configured(Replica).bind(chosen.model_dump(mode="json"))
    return app


class Replica:
    """One copy of the app, with its models loaded and warm."""

    def __init__(self, settings: dict[str, Any]) -> None:
        own = Settings(**settings)
        torch.set_num_threads(own.threads)
        service = Service(own, Compute(own.threads, own.batch_candidates, own.batch_delay_ms / 1e3))
        self._app = App(service)
        for name, place in own.models.items():
            path = newest(place)
            hoisted = load(path)
            up_to = joined_up_to(hoisted, own.batch_candidates, own.batch_up_to)
            states = States(own.cache_bytes, own.cache_seconds)
            model = ServedModel(name, version_of(path), hoisted, states, up_to)
            model.warm_up()
            service.models[name] = model

    async def __call__(self, request: Request) -> Response:
        """One request of HTTP."""
        exchange = _Exchange(request)
        await self._app.__rsgi__(exchange, exchange)
        return await exchange.answer


class _Exchange:
    """A request of ASGI as the app takes it (RSGI): what is asked, the body, and the answer."""

    proto = "http"

    def __init__(self, request: Request) -> None:
        self._request = request
        self.method, self.path, self.headers = request.method, request.url.path, request.headers
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> bytes:
        """The whole body."""
        return await self._request.body()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        async for part in self._request.stream():
            yield part

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """The whole answer."""
        self.answer.set_result(Response(body, status, dict(headers)))
