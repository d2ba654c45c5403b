"""The server's app as a deployment of Ray Serve: a cluster places the replicas and adds more under load.

    serve.run(deployment({"ranker": "/shared/ranker.rankhoist"}, max_replicas=8), route_prefix="/")

A replica is what a worker of `rankhoist serve` is: the same routes, limits and compute thread. What the cluster does
instead of the supervisor: start replicas again that end, drain those that stop, replace them by new versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankhoist.errors import ExtraError
from rankhoist.serve.app import App
from rankhoist.serve.asgi import answered, loaded
from rankhoist.serve.config import Settings

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
        self._app = App(loaded(Settings(**settings)))

    async def __call__(self, request: Request) -> Response:
        """One request of HTTP."""
        status, headers, body = await answered(self._app, request.scope, request.receive)
        return Response(body, status, dict(headers))
