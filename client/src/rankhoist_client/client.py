"""`Client` and `AsyncClient`: the same calls, the second with `await`."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

import httpx
from numpy.typing import ArrayLike

from rankhoist_client import messages
from rankhoist_client.call import Call, Send, Wait, steps
from rankhoist_client.messages import Features, Protocol, Question, Ranking, Rows

URL = "http://127.0.0.1:8000"
TIMEOUT = 10.0  # seconds
RETRIES = 2


class Client:
    """Calls a server of hoisted models; calls from several threads at once are safe.

    Args:
        url: where the server listens.
        protocol: "binary" (Open Inference Protocol v2) or "json" (`/v1/models/NAME/rank`), which takes lists as well,
            and a list of rows for the candidates.
        timeout: seconds for a call, with its retries, that has no deadline of its own.
        retries: further tries where the server has not begun a call: connection refused, 429, 503. A server that says
            when (`Retry-After`) is obeyed, as long as the deadline allows.
        headers: sent with every call, for a proxy in between.

    ```python
    with Client("http://127.0.0.1:8000") as client:
        ranking = client.rank("ranker", {"user": [7]}, {"item": np.arange(1000)}, top_k=10)
        best, scores = ranking.order, ranking.scores  # [10] numbers of candidates, best first
    ```

    Every call raises `UnavailableError` (no connection, or 429 or 503 to the last), `DeadlineError` (no answer in time)
    or `CallError` (refused; `status` and `reason` say why).
    """

    def __init__(
        self, url: str = URL, *, protocol: Protocol = "binary", timeout: float = TIMEOUT, retries: int = RETRIES,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._protocol, self._timeout, self._retries = protocol, timeout, retries
        self._http = httpx.Client(base_url=messages.base_url(url), headers=headers)

    def rank(
        self, model: str, context: Features, candidates: Features | Rows, *, top_k: int | None = None,
        output: str | None = None, context_key: str | None = None, request_offsets: ArrayLike | None = None,
        deadline: float | None = None,
    ) -> Ranking:  # fmt: skip
        """Scores of N candidates.

        Args:
            model: its name on the server.
            context: `{name: [R, ...]}`, a row per request; R is 1 but for `request_offsets`.
            candidates: `{name: [N, ...]}`, a row per candidate. A jagged feature is `rankhoist_client.Jagged`.
            top_k: only the best k, best first.
            output: the one to order by, where the model has several (default: the first).
            context_key: names the context: the server may reuse its work for later pages of candidates.
            request_offsets: `[R + 1]` boundaries of the requests' blocks of candidates.
            deadline: seconds from now: the server drops what it has not begun by then, and the client stops waiting.
        """
        asked = Question(model, top_k, output, context_key, request_offsets, deadline)
        if self._protocol == "json":
            return messages.ranking_json(self.send(messages.rank_json(asked, context, candidates), deadline))
        return messages.ranking_binary(asked, self.send(messages.rank_binary(asked, context, candidates), deadline))

    def metadata(self, model: str | None = None) -> dict[str, Any]:
        """What a model takes and returns, or, without a name, what the server is."""
        return messages.document(self.send(messages.metadata(model)))

    def metrics(self) -> str:
        """What the server measures, in Prometheus' text format."""
        return self.send(messages.metrics()).text

    def live(self) -> bool:
        """Whether the server runs; False also where there is none."""
        return self._healthy(messages.live())

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or one model, takes calls; False also where there is no server."""
        return self._healthy(messages.ready(model))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _healthy(self, call: Call) -> bool:
        with messages.unhealthy_is_false():
            return self.send(call, retries=0).is_success
        return False

    def send(self, call: Call, deadline: float | None = None, retries: int | None = None) -> httpx.Response:
        """Carry out one of `rankhoist_client.messages`; the answer, if it is a good one."""
        seconds = self._timeout if deadline is None else deadline
        todo = steps(call, seconds, self._retries if retries is None else retries)
        step = next(todo)
        while True:
            try:
                match step:
                    case Send(left):
                        step = todo.send(self._tried(call, left))
                    case Wait(pause):
                        time.sleep(pause)
                        step = next(todo)
            except StopIteration as done:
                answer: httpx.Response = done.value
                return answer

    def _tried(self, call: Call, seconds: float) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, timeout=seconds
            )
        except httpx.TransportError as error:
            return error


class AsyncClient:
    """As `Client`, with `await`; for one event loop."""

    def __init__(
        self, url: str = URL, *, protocol: Protocol = "binary", timeout: float = TIMEOUT, retries: int = RETRIES,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._protocol, self._timeout, self._retries = protocol, timeout, retries
        self._http = httpx.AsyncClient(base_url=messages.base_url(url), headers=headers)

    async def rank(
        self, model: str, context: Features, candidates: Features | Rows, *, top_k: int | None = None,
        output: str | None = None, context_key: str | None = None, request_offsets: ArrayLike | None = None,
        deadline: float | None = None,
    ) -> Ranking:  # fmt: skip
        """As `Client.rank`."""
        asked = Question(model, top_k, output, context_key, request_offsets, deadline)
        if self._protocol == "json":
            return messages.ranking_json(await self.send(messages.rank_json(asked, context, candidates), deadline))
        answer = await self.send(messages.rank_binary(asked, context, candidates), deadline)
        return messages.ranking_binary(asked, answer)

    async def metadata(self, model: str | None = None) -> dict[str, Any]:
        """As `Client.metadata`."""
        return messages.document(await self.send(messages.metadata(model)))

    async def metrics(self) -> str:
        """As `Client.metrics`."""
        return (await self.send(messages.metrics())).text

    async def live(self) -> bool:
        """As `Client.live`."""
        return await self._healthy(messages.live())

    async def ready(self, model: str | None = None) -> bool:
        """As `Client.ready`."""
        return await self._healthy(messages.ready(model))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _healthy(self, call: Call) -> bool:
        with messages.unhealthy_is_false():
            return (await self.send(call, retries=0)).is_success
        return False

    async def send(self, call: Call, deadline: float | None = None, retries: int | None = None) -> httpx.Response:
        """As `Client.send`."""
        seconds = self._timeout if deadline is None else deadline
        todo = steps(call, seconds, self._retries if retries is None else retries)
        step = next(todo)
        while True:
            try:
                match step:
                    case Send(left):
                        step = todo.send(await self._tried(call, left))
                    case Wait(pause):
                        await asyncio.sleep(pause)
                        step = next(todo)
            except StopIteration as done:
                answer: httpx.Response = done.value
                return answer

    async def _tried(self, call: Call, seconds: float) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, timeout=seconds
            )
        except httpx.TransportError as error:
            return error
