"""A worker process: maps the models, warms them up, answers on the socket that all workers share.

    python -m rankhoist.serve.worker LISTENING_SOCKET CONTROL_SOCKET      started by the supervisor, with open sockets

It accepts connections once its models are warm, so that a worker that starts anew never refuses a request. All workers
accept from one socket: what waits there when a worker ends is accepted by the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import uvloop
from granian._granian import SocketHolder  # the only way to serve on a socket that is open already
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from rankhoist_client.refusal import RequestError

from rankhoist.serve import logs, metrics
from rankhoist.serve.app import App
from rankhoist.serve.board import AWAY, Board
from rankhoist.serve.compute import Compute
from rankhoist.serve.config import Settings
from rankhoist.serve.control import Channel, Unpacked
from rankhoist.serve.loading import mapped
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import Service

if TYPE_CHECKING:
    from rankhoist.serve.grpc import GrpcServer

log = logging.getLogger("rankhoist.serve.worker")  # it runs as __main__

BACKLOG = 1024
GOODBYE = 0.5  # seconds in which answers ask clients to connect elsewhere, before the end
FLUSH = 0.2  # seconds for the last answers to leave the process


class HttpServer(Server):
    """Granian's server in an event loop, on a socket that the supervisor opened."""

    def __init__(self, app: App, listening: int) -> None:
        super().__init__(
            app, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False, backlog=BACKLOG, log_enabled=False
        )
        self._listening = listening

    def _init_shared_socket(self) -> None:
        self._ssp, self._shd = None, SocketHolder(self._listening, False, BACKLOG)  # type: ignore


class Worker:
    """Everything a worker process does."""

    def __init__(self, settings: Settings, channel: Channel, listening: int, board: Board) -> None:
        self.settings, self.channel, self.board = settings, channel, board
        self.compute = Compute(settings.threads, settings.batch_candidates, settings.batch_delay_ms / 1e3)
        self.service = Service(settings, self.compute, self._ask_to_change, board)
        self.server = HttpServer(App(self.service), listening)
        self.grpc = None if settings.grpc_port is None else _grpc_server(self.service)
        self.stopping = asyncio.Event()
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, models: list[Unpacked]) -> None:
        """Until SIGTERM, or until the supervisor is gone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        for model in models:
            await self._load(model)
        if self.grpc is not None:
            await self.grpc.start()
        serving = loop.create_task(self.server.serve())
        listening = loop.create_task(self._listen())
        self.channel.send(ready=True)
        self.board.write(0)
        metrics.READY.set(1)
        stopping = loop.create_task(self.stopping.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self.service.draining = True
        self.board.write(AWAY)
        metrics.READY.set(0)
        log.info("draining", extra={"busy": self.service.busy})
        await asyncio.sleep(GOODBYE)
        if self.grpc is not None:
            await self.grpc.stop(self.settings.drain_seconds)
        await self.service.quiet(FLUSH)
        listening.cancel()
        await asyncio.to_thread(self.service.desk.close)

    async def _listen(self) -> None:
        """Do what the supervisor says."""
        async for message in self.channel.messages():
            if "load" in message:
                task = asyncio.get_running_loop().create_task(self._reload(Unpacked(**message["load"])))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif "unload" in message:
                self._unload(message["unload"])
            elif "refresh" in message:
                await self._refresh(message["refresh"])
            elif future := self._asked.pop(message.get("asked", -1), None):
                if message["error"] is None:
                    future.set_result(message["made"])
                else:
                    future.set_exception(RequestError(message["reason"], message["error"]))
        self.stopping.set()

    async def _reload(self, model: Unpacked) -> None:
        """Load a new version beside the old one, which serves until the new one is warm."""
        try:
            await self._load(model)
        except Exception as error:
            log.exception("model not loaded", extra={"model": model.name, "version": model.version})
            self.channel.send(failed=model.name, version=model.version, error=str(error))
        else:
            self.channel.send(loaded=model.name, version=model.version)

    async def _load(self, unpacked: Unpacked) -> None:
        def loaded() -> ServedModel:
            torch.set_num_threads(self.settings.threads)
            return mapped(unpacked, self.settings)

        model = await asyncio.to_thread(loaded)
        old = self.service.models.get(model.name)
        self.service.models[model.name] = model
        if old is not None:
            metrics.VERSION.labels(old.name, old.version).set(0)
        metrics.VERSION.labels(model.name, model.version).set(1)
        model.metrics.bytes.set(0)
        model.metrics.catalogue(None if model.items is None else model.items.store)
        log.info("model loaded", extra={"model": model.name, "version": model.version})

    def _unload(self, name: str) -> None:
        """Requests that have the model already are answered by it."""
        if (old := self.service.models.pop(name, None)) is not None:
            metrics.VERSION.labels(old.name, old.version).set(0)
            old.metrics.bytes.set(0)
            old.metrics.catalogue(None)
        self.channel.send(unloaded=name)

    async def _refresh(self, name: str) -> None:
        """See what has become of a model's items: requests that have begun to read them end before."""
        error = None
        if (model := self.service.models.get(name)) is not None and model.items is not None:
            try:
                await asyncio.to_thread(model.items.store.refresh)
                model.metrics.catalogue(model.items.store)
            except Exception as failure:
                log.exception("items not refreshed", extra={"model": name})
                error = str(failure)
        self.channel.send(refreshed=name, error=error)

    async def _ask_to_change(self, change: str, name: str, path: str = "") -> str:
        number = len(self._asked) + 1 + max(self._asked, default=0)
        self._asked[number] = asyncio.get_running_loop().create_future()
        self.channel.send(change=change, name=name, path=path, asked=number)
        return await self._asked[number]


def _grpc_server(service: Service) -> GrpcServer:
    from rankhoist.serve.grpc import GrpcServer  # its packages are of another extra

    return GrpcServer(service)


async def main(listening: int, control: int) -> None:
    """Be a worker: the first message says of what."""
    channel = await Channel.over(socket.socket(fileno=control))
    start = await channel.receive()
    if start is None:
        return  # the supervisor is gone already
    settings = Settings(**start["settings"])
    logs.set_up(settings.log_level, settings.log_format)
    board = Board(Path(start["board"]), start["number"])
    await Worker(settings, channel, listening, board).run([Unpacked(**model) for model in start["models"]])


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
    logging.shutdown()
    os._exit(0)  # the HTTP server's threads wait for connections that clients keep open
