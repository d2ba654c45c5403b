"""A training run as a file, from which it can go on: written whole or not at all, read without running code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankhoist.errors import TrainingError
from rankhoist.runtime.whole import written

FORMAT = 1


def save(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write it; a kill at any moment leaves the old file or the new one.

    identity  what the run is: its settings, data and weights' shapes, as plain values
    state     tensors and plain values
    """
    with written(path) as file:
        torch.save({"format": FORMAT, "identity": identity, "state": state}, file)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state of a run of this identity.

    Raises:
        TrainingError: the file is none of `save`, or of another run; the message says what differs.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        format_, saved, state = found["format"], found["identity"], found["state"]
    except Exception as error:  # torch names no exception for a file that is damaged or none of its own
        raise TrainingError(f"{path}: not a checkpoint of a training run ({type(error).__name__})") from error
    if format_ != FORMAT:
        raise TrainingError(f"{path}: format {format_}, this version reads {FORMAT}")
    if saved != identity:
        raise TrainingError(f"{path}: of another run ({_difference(saved, identity)}); remove it to start anew")
    loaded: dict[str, Any] = state
    return loaded


def _difference(saved: Any, wanted: Any, name: str = "") -> str:
    """The first value that differs, by name."""
    if not isinstance(saved, dict) or not isinstance(wanted, dict):
        return f"{name}: it has {saved}, this one {wanted}"
    for key in [*wanted, *saved]:
        if key not in saved or key not in wanted or saved[key] != wanted[key]:
            return _difference(saved.get(key), wanted.get(key), f"{name} {key}".strip())
    return "no difference"
