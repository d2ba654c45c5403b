"""From a place on the disk to a model that workers can map: the newest artifact, unpacked and tried."""

from __future__ import annotations

import contextlib
import glob
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from rankhoist.errors import RankhoistError, ServeError
from rankhoist.mistakes import first_line
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.mapped import load_mapped, unpack
from rankhoist.serve.batching import joined_up_to
from rankhoist.serve.config import Settings
from rankhoist.serve.control import CATALOGUE, Unpacked
from rankhoist.serve.items import Items, stocked
from rankhoist.serve.model import ServedModel
from rankhoist.serve.states import States

log = logging.getLogger(__name__)

SUFFIX = ".rankhoist"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a model


def newest(path: Path) -> Path:
    """The artifact at a path: a file, or the last one in a folder, by name (numbers by their value)."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{SUFFIX}"), key=lambda p: re.sub(r"\d+", lambda n: n[0].zfill(20), p.name))
    if not found:
        raise ServeError(f"there is no *{SUFFIX} in the folder {path}")
    return found[-1]


def places(settings: Settings) -> dict[str, Path]:
    """Where every model is that could be served, by name: those of the settings, and what the repository has."""
    found = [] if settings.repository is None else sorted(settings.repository.iterdir())
    named = {path.name.removesuffix(SUFFIX): path for path in found if path.suffix == SUFFIX or path.is_dir()}
    return {name: path for name, path in named.items() if NAME.fullmatch(name)} | settings.models


def ready(
    name: str, version: str, hoisted: HoistedModel, up_to: int, settings: Settings, items: Items | None = None
) -> ServedModel:
    """A model with states of its own, warm."""
    states = States(settings.cache_bytes, settings.cache_seconds)
    model = ServedModel(name, version, hoisted, states, up_to, items)
    model.warm_up()
    return model


def placed(hoisted: HoistedModel, settings: Settings) -> HoistedModel:
    """A model where it is to be served, by the backend that is to run it.

    Raises:
        ServeError: there is no such device, or it cannot be used for catalogues.
        BackendError: the backend does not take the model.
    """
    if settings.device != "cpu":
        if settings.catalogues:
            raise ServeError(f"catalogues are served on the CPU, not on {settings.device!r}")
        try:
            hoisted = hoisted.to(torch.device(settings.device))
        except (AssertionError, RuntimeError) as error:  # PyTorch without CUDA, no driver, no such number
            raise ServeError(f"device {settings.device!r} cannot be used: {first_line(error)}") from error
    return hoisted if settings.backend is None else hoisted.to_backend(settings.backend)


def mapped(unpacked: Unpacked, settings: Settings) -> ServedModel:
    """A model from its folder, ready, with the catalogue that lies there."""
    hoisted = placed(load_mapped(unpacked.path), settings)
    return ready(
        unpacked.name, unpacked.version, hoisted, unpacked.batch_up_to, settings, _items_of(hoisted, unpacked, settings)
    )


def _items_of(hoisted: HoistedModel, unpacked: Unpacked, settings: Settings) -> Items | None:
    if not unpacked.catalogue:
        return None
    store = hoisted.open_catalogue(unpacked.catalogue)
    return Items(store, settings.item_id, built=unpacked.builds)


def state_of_items(name: str, settings: Settings) -> str:
    """What changes when the source of a model's items does; "" where it has none."""
    source = settings.catalogues.get(name)
    if source is None:
        return ""
    found = source.rglob("*") if source.is_dir() else map(Path, glob.glob(str(source), recursive=True))
    return str([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(found) if p.is_file()])


def unpacked(name: str, artifact: Path, folder: Path, settings: Settings) -> Unpacked:
    """Write an artifact to a folder for workers, and try it as they will; no folder is left if that fails."""
    torch.set_num_threads(settings.threads)
    state, source = state_of_items(name, settings), settings.catalogues.get(name)
    try:
        version = unpack(artifact, folder)[1]
        hoisted = placed(load_mapped(folder), settings)
        items = None if source is None else stocked(hoisted, source, folder / CATALOGUE, settings)
        model = ServedModel(name, version, hoisted, items=items)
        model.warm_up()
        up_to = joined_up_to(model, settings.batch_candidates, settings.batch_up_to)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    more = {} if items is None else {"items": len(items.store), "bytes_per_item": items.store.bytes_per_item}
    log.info("model unpacked", extra={"model": name, "version": version, "batch_up_to": up_to, **more})
    return Unpacked(name, version, str(folder), up_to, "" if items is None else str(items.store.folder), state)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Whatever goes wrong with a model is an error that its caller knows."""
    try:
        yield
    except RankhoistError:
        raise
    except Exception as error:  # no room on the disk, an operator that fails
        raise ServeError(f"{name} cannot be served: {type(error).__name__}: {error}") from error
