"""The app behind servers of ASGI: mounted by Starlette, asked in this process, ended with its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import serving
import torch
from rankhoist_client import v2
from serving import inputs, rank_body, scores
from starlette.applications import Starlette
from starlette.routing import Mount

from rankhoist.serve.asgi import Asgi


@pytest.fixture(scope="module")
def hoisted():
    return serving.hoisted_ranker()


@pytest.fixture
def app(hoisted, tmp_path: Path):
    hoisted.save(tmp_path / "ranker.rankhoist")
    threads = torch.get_num_threads()
    app = Asgi({"ranker": tmp_path / "ranker.rankhoist"}, max_body_bytes=20_000)
    yield app
    app.service.compute.close()
    torch.set_num_threads(threads)


def asked(app: Any, use: Callable[[httpx.AsyncClient], Any]) -> Any:
    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ranking") as client:
            return await use(client)

    return asyncio.run(ask())


@pytest.mark.parametrize("below", ["", "/ranking"])
def test_a_mounted_app_answers_both_protocols(app: Asgi, hoisted, below: str):
    given = inputs(1, 9)
    expected = scores(hoisted, given)
    body, length = v2.write_request({name: t.numpy() for name, t in given.items()})

    async def use(client: httpx.AsyncClient) -> tuple[httpx.Response, ...]:
        ranked = await client.post(f"{below}/v1/models/ranker/rank", json=rank_body(given))
        headers = {v2.HEADER_LENGTH: str(length)}
        inferred = await client.post(f"{below}/v2/models/ranker/infer", content=body, headers=headers)
        return ranked, inferred, await client.get(f"{below}/readyz"), await client.get(f"{below}/metrics")

    found = asked(Starlette(routes=[Mount(below, app)]) if below else app, use)
    ranked, inferred, ready, metrics = found
    assert [answer.status_code for answer in found] == [200] * 4
    assert ready.json() == {"ready": True} and "rankhoist_request_seconds" in metrics.text
    np.testing.assert_array_equal(np.float32(ranked.json()["scores"]["click"]), expected["click"])
    tensors = v2.read_response(inferred.content, inferred.headers[v2.HEADER_LENGTH]).tensors
    np.testing.assert_array_equal(tensors["click"].array, expected["click"])


def test_bodies_that_are_too_large_or_end_early_are_refused(app: Asgi):
    async def parts():
        for _ in range(3):
            yield b" " * 10_000

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        path = "/v1/models/ranker/rank"
        return [await client.post(path, content=content) for content in (b" " * 20_001, parts())]

    assert [answer.status_code for answer in asked(app, use)] == [413, 413]
    sent: list[Any] = []

    async def leave() -> None:
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", b"100")]
        scope = {"type": "http", "method": "POST", "path": "/v1/models/ranker/rank", "headers": headers}
        await app(scope, receive, send)

    asyncio.run(leave())
    assert sent[0]["status"] == 400 and b"ended early" in sent[1]["body"] and app.service.busy == 0


def test_it_ends_with_its_server(app: Asgi):
    async def live() -> list[str]:
        sent: list[str] = []
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Any:
            return {"type": next(messages)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await app({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(live()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    answer = asked(app, lambda client: client.get("/readyz"))
    assert answer.status_code == 503 and answer.json()["reason"] == "not_ready"
