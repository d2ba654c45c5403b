"""One HTTP/1.1 connection that costs the load generator little: bytes out, status, headers and body back.

The generator shares the machine with the server in many a test. A general HTTP client spends about as long on a request
as the server does; requests here are encoded once, before the test, and of an answer only its length is looked for.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from rankhoist.errors import CommandError

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
CLOSE = re.compile(rb"\r\nconnection: *close", re.I)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: `head` is everything before the body."""

    status: int
    head: bytes
    body: bytes


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address:
        """Of `http://HOST:PORT`.

        Raises:
            CommandError: it is another kind of URL.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise CommandError(f"{url}: the load test takes http://HOST:PORT")
        return cls(parts.hostname, parts.port or 80)


def http_request(address: Address, path: str, content: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {address.host}:{address.port}", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Connection(asyncio.Protocol):
    """Carries one request at a time; opened when it is first needed, and again after it was closed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()

    async def exchange(self, request: bytes, timeout: float) -> Answer:
        """Send a request; its answer.

        Raises:
            OSError: no connection (ConnectionRefusedError), or it broke off (ConnectionResetError).
            TimeoutError: no answer in so many seconds; the connection is closed.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await asyncio.wait_for(
                loop.create_connection(lambda: self, self._address.host, self._address.port), timeout
            )
        assert self._transport is not None, "just connected"
        self._answer = loop.create_future()
        alarm = loop.call_later(timeout, self._fail, TimeoutError())
        try:
            self._transport.write(request)
            return await self._answer
        finally:
            alarm.cancel()
            self._answer = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = LENGTH.search(self._received, 0, end)
        if length is None:
            self._fail(ConnectionError("an answer without Content-Length"))
        elif len(self._received) >= end + int(length[1]):
            self._done(end, int(length[1]))

    def _done(self, end: int, length: int) -> None:
        head, body = bytes(self._received[:end]), bytes(self._received[end : end + length])
        self._received.clear()
        if CLOSE.search(head) and self._transport is not None:
            self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(int(head[9:12]), head, body))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            self.close()
