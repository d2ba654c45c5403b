"""From a place on the disk to a model that workers can map: the newest artifact, unpacked and tried."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from rankhoist.errors import RankhoistError, ServeError
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.mapped import load_mapped, unpack
from rankhoist.serve.batching import joined_up_to
from rankhoist.serve.config import Settings
from rankhoist.serve.control import Unpacked
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


def ready(name: str, version: str, hoisted: HoistedModel, up_to: int, settings: Settings) -> ServedModel:
    """A model with states of its own, warm."""
    states = States(settings.cache_bytes, settings.cache_seconds)
    model = ServedModel(name, version, hoisted, states, up_to)
    model.warm_up()
    return model


def unpacked(name: str, artifact: Path, folder: Path, settings: Settings) -> Unpacked:
    """Write an artifact to a folder for workers, and try it as they will; no folder is left if that fails."""
    torch.set_num_threads(settings.threads)
    try:
        version = unpack(artifact, folder)[1]
        model = ServedModel(name, version, load_mapped(folder))
        model.warm_up()
        up_to = joined_up_to(model.hoisted, settings.batch_candidates, settings.batch_up_to)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    log.info("model unpacked", extra={"model": name, "version": version, "batch_up_to": up_to})
    return Unpacked(name, version, str(folder), up_to)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Whatever goes wrong with a model is an error that its caller knows."""
    try:
        yield
    except RankhoistError:
        raise
    except Exception as error:  # no room on the disk, an operator that fails
        raise ServeError(f"{name} cannot be served: {type(error).__name__}: {error}") from error
