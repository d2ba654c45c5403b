"""A connection that sends any bytes."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; `closed` where the server ends the connection with it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool


class Wire:
    """A connection that sends any bytes, and opens anew when the last answer ended it."""

    def __init__(self, host: str, port: int, timeout: float = 30.0) -> None:
        self._address, self._timeout = (host, port), timeout
        self._socket: socket.socket | None = None

    def exchange(self, data: bytes, ends: bool) -> Reply | None:
        """The answer; None where the server closed the connection without one. After `ends`, nothing more is sent."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout)
        reply = None
        try:
            self._socket.sendall(data)
            if ends:
                self._socket.shutdown(socket.SHUT_WR)
            reply = self._read()
        except TimeoutError:
            raise
        except OSError:  # the server closed the connection before it had all of it
            pass
        if reply is None or reply.closed or ends:
            self.close()
        return reply

    def _read(self) -> Reply | None:
        assert self._socket is not None
        received = b""
        while b"\r\n\r\n" not in received:
            part = self._socket.recv(65536)
            if not part:
                return None
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            part = self._socket.recv(65536)
            if not part:
                return None
            body += part
        return Reply(int(first.split()[1]), headers, body, headers.get("connection", "").lower() == "close")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
