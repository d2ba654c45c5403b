"""The targets there are: by name, and by where a model is."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rankhoist.compiler.targets.accelerator import Accelerator, built_in
from rankhoist.compiler.targets.cpu import this_machine
from rankhoist.compiler.targets.cuda import cuda
from rankhoist.compiler.targets.profile import path
from rankhoist.compiler.targets.target import Target
from rankhoist.errors import BackendError

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NAMES = ("cpu-float32", "cpu-bfloat16", *(f"cuda-{d}{kind}" for d in DTYPES.values() for kind in ("", "-graphs")))


def named(name: str) -> Target:
    """By the profile that was measured here, or the built-in one.

    Raises:
        BackendError: there is none of this name.
    """
    if name not in NAMES:
        raise BackendError(f"unknown target {name!r}; targets are {', '.join(NAMES)}")
    device, dtype, *kind = name.split("-")
    if device == "cpu":
        return this_machine(next(d for d, own in DTYPES.items() if own == dtype))
    return cuda(_measured(f"{device}-{dtype}", dtype), bool(kind))


def target_of(device: torch.device, dtype: torch.dtype, recorded: bool = False) -> Target | None:
    """That of a model in a dtype on a device; None where nothing was ever measured."""
    kind = "-graphs" if recorded and device.type == "cuda" else ""
    name = f"{device.type}-{DTYPES.get(dtype)}{kind}"
    return named(name) if name in NAMES else None


def with_replays(targets: Iterable[Target]) -> list[Target]:
    """Targets, and after each GPU the same with recorded calls: a model that goes there is warmed up there."""
    names = [name for t in targets for name in (t.name, f"{t.name}-graphs")]
    return [named(name) for name in dict.fromkeys(names) if name in NAMES]


def _measured(name: str, dtype: str) -> Accelerator:
    own = path(name)
    return Accelerator.load(own) if own.exists() else built_in(dtype)
