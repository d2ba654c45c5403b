"""A running worker, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import time

from rankhoist.serve.control import Channel, Unpacked

ITEMS = "items"  # in the place of a version


class WorkerProcess:
    """Its process, the channel to it, and the versions that it was told to load."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process, self.channel = process, channel
        self.ready = False
        self.started = time.monotonic()
        self._loading: dict[tuple[str, str], asyncio.Future[str | None]] = {}

    def load(self, model: Unpacked) -> asyncio.Future[str | None]:
        """Tell it to serve a version; when that is done the result is None, or why it does not."""
        future = asyncio.get_running_loop().create_future()
        self._loading[model.name, model.version] = future
        self.channel.send(load=model.to_dict())
        return future

    def unload(self, name: str) -> asyncio.Future[str | None]:
        """Tell it to serve a model no more; done when no new request reaches it."""
        future = asyncio.get_running_loop().create_future()
        self._loading[name, ""] = future
        self.channel.send(unload=name)
        return future

    def refresh(self, name: str) -> asyncio.Future[str | None]:
        """Tell it that items of a model have changed; done when no call reads the old ones."""
        future = asyncio.get_running_loop().create_future()
        self._loading[name, ITEMS] = future
        self.channel.send(refresh=name)
        return future

    def answered(self, name: str, version: str, error: str | None) -> None:
        """It said that it serves a version (or none, ""), or why it does not."""
        if future := self._loading.pop((name, version), None):
            future.set_result(error)

    def ended(self, code: int) -> None:
        """Whatever it was loading, it does not serve."""
        for name, version in list(self._loading):
            self.answered(name, version, f"a worker ended with code {code} while it loaded it")

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
