"""What the supervisor and a worker say to each other: JSON objects, one per line, over a pair of sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CATALOGUE = "catalogue"  # in the folder of a model, where its items are built


@dataclass(frozen=True)
class Unpacked:
    """A version of a model in a folder, for workers to map; `batch_up_to` was measured when it was unpacked.

    `catalogue` is the folder of its items, if it has some, and `items` says of which state of their source.
    """

    name: str
    version: str
    folder: str
    batch_up_to: int
    catalogue: str = ""
    items: str = ""

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @property
    def builds(self) -> bool:
        """Whether its catalogue was built for this server, and not opened."""
        return Path(self.catalogue) == self.path / CATALOGUE

    def to_dict(self) -> dict[str, Any]:
        """For a message."""
        return asdict(self)


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """Over one end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=end, limit=2**24))

    def send(self, **message: Any) -> None:
        """Send a message; the other end may be gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end has closed."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """What the other end sends, until it closes."""
        while (message := await self.receive()) is not None:
            yield message

    def close(self) -> None:
        """The other end's messages end."""
        self._writer.close()
