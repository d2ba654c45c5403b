"""What is served, and what could be: versions of models are loaded, renewed and unloaded in all workers, one by one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from rankhoist_client.refusal import RequestError

from rankhoist.errors import RankhoistError, ServeError
from rankhoist.runtime.mapped import load_mapped, version_of
from rankhoist.serve.config import Settings
from rankhoist.serve.control import Unpacked
from rankhoist.serve.items import Keeper
from rankhoist.serve.loading import explained, newest, places, state_of_items, unpacked
from rankhoist.serve.process import WorkerProcess

log = logging.getLogger(__name__)


class Repository:
    """The models of one server.

    Args:
        folder: where versions are unpacked, for workers to map.
        workers: those that run.
    """

    def __init__(self, settings: Settings, folder: Path, workers: Mapping[int, WorkerProcess]) -> None:
        self.settings, self.folder, self.workers = settings, folder, workers
        self.served: dict[str, Unpacked] = {}
        self._keepers: dict[str, Keeper] = {}  # by the folder of a catalogue
        self._unpacked = 0
        self._changing = asyncio.Lock()

    async def load_all(self, stopping: asyncio.Event) -> bool:
        """Whether all models are loaded: a signal may come before."""
        async with self._changing:
            for name, place in self.settings.models.items():
                if not stopping.is_set():
                    with explained(name):
                        self.served[name] = await self._unpack(name, place)
        return not stopping.is_set()

    async def reload_all(self) -> None:
        """Serve the newest artifact of every model that is served."""
        for name in list(self.served):
            with contextlib.suppress(RankhoistError):  # it is logged
                await self.load(name)

    async def load(self, name: str) -> str:
        """Serve the newest artifact of a model; returns the version that is served then.

        Raises:
            RankhoistError: the artifact cannot be loaded; what was served before still is.
        """
        async with self._changing:
            try:
                with explained(name):
                    return await self._load(name)
            except RankhoistError as error:
                log.error("model not loaded", extra={"model": name, "error": str(error)})
                raise

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that were accepted are answered."""
        async with self._changing:
            old = self.served.pop(name, None)  # from here on no worker starts with it
            if old is not None:
                await asyncio.gather(*(worker.unload(name) for worker in self.workers.values()))
                self._forget(old)
                log.info("model unloaded", extra={"model": name, "version": old.version})

    async def put(self, name: str, path: Path) -> str:
        """Put the items of a request's body into a catalogue; returns its edition, which all workers have then.

        Raises:
            RankhoistError: the items are not as expected, or the model has no catalogue of this server's.
        """
        async with self._changing:
            model = self.served.get(name)
            if model is None or not model.builds:
                raise RequestError("not_found", f"there is no catalogue of {name[:60]!r} any more")
            edition = await asyncio.to_thread(self._put, model, path)
            workers = list(self.workers.values())
            errors = await asyncio.gather(*(worker.refresh(name) for worker in workers))
            for worker, error in zip(workers, errors, strict=True):
                if error is not None:  # it is started again, with the newest items
                    worker.kill()
            log.info("items put", extra={"model": name, "edition": edition})
            return str(edition)

    def _put(self, model: Unpacked, path: Path) -> int:
        keeper = self._keepers.get(model.catalogue)
        if keeper is None:
            keeper = Keeper(load_mapped(model.path), Path(model.catalogue), self.settings)
            self._keepers[model.catalogue] = keeper
        return keeper.put(path.read_bytes())

    async def _load(self, name: str) -> str:
        place = (await asyncio.to_thread(places, self.settings)).get(name)
        if place is None:
            raise RequestError("not_found", f"there is no model {name[:60]!r} to load")
        old = self.served.get(name)
        if old is None and len(self.served) >= self.settings.max_models:
            message = f"{len(self.served)} models are served, as many as may be (max_models); unload one"
            raise RequestError("forbidden", message)
        if old is not None and await asyncio.to_thread(self._unchanged, old, place):
            log.info("model unchanged", extra={"model": name, "version": old.version})
            return old.version
        new = await self._unpack(name, place)
        try:
            await self._serve_instead(old, new)
        except ServeError:
            shutil.rmtree(new.path, ignore_errors=True)
            raise
        if old:
            self._forget(old)
        log.info("model reloaded" if old else "model added", extra={"model": name, "version": new.version})
        return new.version

    def _unchanged(self, old: Unpacked, place: Path) -> bool:
        """Whether a model and the source of its items are as they were."""
        return version_of(newest(place)) == old.version and state_of_items(old.name, self.settings) == old.items

    def _forget(self, old: Unpacked) -> None:
        self._keepers.pop(old.catalogue, None)
        shutil.rmtree(old.path, ignore_errors=True)

    async def _unpack(self, name: str, place: Path) -> Unpacked:
        """The newest artifact of a model, in a folder of its own."""
        self._unpacked += 1
        folder = self.folder / f"model-{self._unpacked}"
        return await asyncio.to_thread(unpacked, name, newest(place), folder, self.settings)

    async def _serve_instead(self, old: Unpacked | None, new: Unpacked) -> None:
        """All workers serve the new version, or all the old one (or none)."""
        loaded: list[WorkerProcess] = []
        while waiting := [worker for worker in self.workers.values() if worker not in loaded]:
            errors = await asyncio.gather(*(worker.load(new) for worker in waiting))
            loaded += [worker for worker, error in zip(waiting, errors, strict=True) if error is None]
            if error := next(filter(None, errors), None):
                back = await asyncio.gather(
                    *(worker.load(old) if old else worker.unload(new.name) for worker in loaded)
                )
                for worker, failed in zip(loaded, back, strict=True):
                    if failed is not None:  # it is started again, with the old version
                        worker.kill()
                raise ServeError(f"version {new.version} of {new.name} cannot be served: {error}")
        self.served[new.name] = new  # from here on for those that start, too
