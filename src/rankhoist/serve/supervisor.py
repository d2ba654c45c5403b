"""The supervisor: loads artifacts, opens the port, and keeps the workers running.

It loads an artifact once and writes it to a private folder, folded weights included; the workers map it. What it does
not do is answer requests.

    SIGTERM, SIGINT   no new connections; every accepted request is answered; then the end
    SIGHUP            artifacts that have changed are loaded anew, in all workers, while the old versions serve
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from rankhoist.errors import ExtraError, RankhoistError, ServeError
from rankhoist.serve import logs
from rankhoist.serve.board import AWAY, Board
from rankhoist.serve.config import CONFIG, Settings
from rankhoist.serve.control import Channel
from rankhoist.serve.loading import NAME, places
from rankhoist.serve.metrics import FOLDER
from rankhoist.serve.process import ITEMS, WorkerProcess
from rankhoist.serve.repository import Repository
from rankhoist.serve.worker import BACKLOG

log = logging.getLogger(__name__)

BOARD = "board"
PATIENCE = 30.0  # seconds; the longest wait before a worker is started again
SETTLED = 10.0  # seconds; a worker that lived so long is started again at once


def serve(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ServeError: the settings cannot be used, the port is taken, or no worker starts.
        ArtifactError: an artifact cannot be loaded.
    """
    if settings.repository and not settings.repository.is_dir():
        raise ServeError(f"there is no folder {settings.repository} (repository)")
    if not settings.models and settings.repository:  # all that it has
        settings = settings.model_copy(update={"models": places(settings)})
    if len(settings.models) > settings.max_models:
        raise ServeError(f"there are {len(settings.models)} models, and max_models is {settings.max_models}")
    if not settings.models:
        raise ServeError("there is no model to serve; name an artifact, as hoist --out or HoistedModel.save writes it")
    for name in settings.models:
        if not NAME.fullmatch(name):
            raise ServeError(f"{name!r} is no name for a model: letters, digits and . _ - (give another by --name)")
    if unknown := sorted(settings.catalogues.keys() - settings.models.keys()):
        raise ServeError(f"there are items of {unknown[0]!r}, and no such model to serve")
    if settings.grpc_port is not None and not _speaks_grpc():
        raise ExtraError("gRPC needs packages that are not installed: pip install 'rankhoist[grpc]'")
    if settings.traces:
        from rankhoist.serve.tracing import exporter

        exporter()  # what it lacks is said here, and not by every worker
    logs.set_up(settings.log_level, settings.log_format)
    folder = Path(tempfile.mkdtemp(prefix="rankhoist-"))  # readable by this user only
    try:
        asyncio.run(Supervisor(settings, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _speaks_grpc() -> bool:
    try:
        return all(map(find_spec, ("grpc", "google.protobuf")))
    except ModuleNotFoundError:  # not even google
        return False


class Supervisor:
    """Models, the port and the workers of one server."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.workers: dict[int, WorkerProcess] = {}
        self.repository = Repository(settings, folder, self.workers)
        self.stopping = asyncio.Event()
        self.grpc_port: int | None = None
        self.served, self.failure = False, ""  # whether a worker was ever ready, and why none was
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Load, listen, and keep the workers running until a signal comes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self.repository.reload_all()))
        (self.folder / "metrics").mkdir()
        Board.create(self.folder / BOARD, self.settings.workers)
        host, port = self.settings.host, self.settings.grpc_port
        with _bound(host, self.settings.port) as self.listening, self._reserved(host, port):
            if await self.repository.load_all(self.stopping):
                self.listening.listen(BACKLOG)
                for i in range(self.settings.workers):
                    self._start(self._keep(i))
                await self.stopping.wait()
                await self._stop()
        log.info("stopped")
        if self.failure:
            raise ServeError(self.failure)

    @contextlib.contextmanager
    def _reserved(self, host: str, port: int | None) -> Iterator[None]:
        """Hold the port of gRPC, which workers listen on: it stays the same one while they come and go."""
        if port is None:
            yield
            return
        with _bound(host, port, shared=True) as held:
            self.grpc_port = held.getsockname()[1]
            yield

    @property
    def address(self) -> str:
        """Where it answers."""
        host, port = self.listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- workers

    async def _keep(self, number: int) -> None:
        """Run one worker, and another when it ends."""
        wait = 0.0
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                ended = f"ended with code {await self._run_one(number)}"
            except Exception as error:  # of the system: no more processes, no more files
                log.exception("worker not run", extra={"worker": number})
                ended = f"could not be run: {error}"
            if self.stopping.is_set():
                return
            if not self.served:
                self.failure = f"a worker {ended} while it started; the lines above say why"
                self.stopping.set()
            wait = 0.0 if time.monotonic() - started > SETTLED else min(2 * wait + 0.5, PATIENCE)
            await asyncio.sleep(wait)

    async def _run_one(self, number: int) -> int:
        """Run one worker; returns its exit code."""
        worker = self.workers[number] = await self._spawn(number)
        try:
            await self._follow(worker)
        except BaseException:
            worker.kill()
            raise
        finally:
            code = await worker.process.wait()
            del self.workers[number]
            worker.ended(code)
            worker.channel.close()
            Board(self.folder / BOARD, number).write(AWAY)
            mark_process_dead(worker.process.pid, str(self.folder / "metrics"))  # type: ignore[no-untyped-call]
            if not self.stopping.is_set():
                log.error("worker ended", extra={"worker": worker.process.pid, "code": code})
        return code

    async def _spawn(self, number: int) -> WorkerProcess:
        listening = self.listening.fileno()
        threads = str(self.settings.threads)
        environment = {
            "GRPC_VERBOSITY": "NONE", **os.environ, FOLDER: str(self.folder / "metrics"), "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        }  # fmt: skip
        environment.pop(CONFIG, None)  # read once: an edit of the file is for the next server
        own, other = socket.socketpair()
        try:
            with other:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "rankhoist.serve.worker", str(listening), str(other.fileno()),
                    pass_fds=(listening, other.fileno()), env=environment, start_new_session=True,
                )  # fmt: skip
        except BaseException:
            own.close()
            raise
        worker = WorkerProcess(process, await Channel.over(own))
        models = [model.to_dict() for model in self.repository.served.values()]
        settings = self.settings.model_dump(mode="json") | {"grpc_port": self.grpc_port}
        worker.channel.send(settings=settings, models=models, board=str(self.folder / BOARD), number=number)
        return worker

    async def _follow(self, worker: WorkerProcess) -> None:
        """Do what a worker asks, until it ends."""
        async for message in worker.channel.messages():
            if "ready" in message:
                worker.ready = self.served = True
                self._say_ready(worker)
            elif "loaded" in message:
                worker.answered(message["loaded"], message["version"], None)
            elif "failed" in message:
                worker.answered(message["failed"], message["version"], message["error"])
            elif "unloaded" in message:
                worker.answered(message["unloaded"], "", None)
            elif "refreshed" in message:
                worker.answered(message["refreshed"], ITEMS, message["error"])
            elif "change" in message:
                self._start(self._change(worker, **message))

    async def _change(self, worker: WorkerProcess, change: str, name: str, path: str, asked: int) -> None:
        """Load or unload a model, or put items into its catalogue, as a worker was asked to."""
        own = self.repository
        try:
            made = await (own.put(name, Path(path)) if change == "put" else getattr(own, change)(name))
        except RankhoistError as error:
            worker.channel.send(asked=asked, error=str(error), reason=getattr(error, "reason", "internal"))
        else:
            worker.channel.send(asked=asked, error=None, made=made or "")

    def _say_ready(self, worker: WorkerProcess) -> None:
        log.info("worker ready", extra={"worker": worker.process.pid})
        if sum(w.ready for w in self.workers.values()) == self.settings.workers:
            served = ", ".join(f"{m.name} (version {m.version})" for m in self.repository.served.values())
            more = {} if self.grpc_port is None else {"grpc_port": self.grpc_port}
            log.info("serving", extra={"address": self.address, "models": served, **more})

    async def _stop(self) -> None:
        """Refuse connections, then end all workers, those that do not finish in time by force."""
        with contextlib.suppress(OSError):  # not every system can; there, connecting clients wait until the end
            self.listening.shutdown(socket.SHUT_RD)  # for all who share it: what is connected is served, nothing new
        workers = [worker for worker in self.workers.values() if worker.process.returncode is None]
        for worker in workers:
            worker.process.terminate()
        ends = [asyncio.ensure_future(worker.process.wait()) for worker in workers]
        if ends:
            await asyncio.wait(ends, timeout=self.settings.drain_seconds)
        for worker in workers:
            if worker.process.returncode is None:
                log.error("worker killed: it did not finish in time", extra={"worker": worker.process.pid})
                worker.kill()
                await worker.process.wait()


def _bound(host: str, port: int, shared: bool = False) -> socket.socket:
    """A socket that is not listened on yet; `shared`: processes of the same user may listen on its port."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        return made
    except OSError as error:
        made.close()
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from None
