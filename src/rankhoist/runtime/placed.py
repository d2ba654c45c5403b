"""Graphs where they run: in a dtype, on a device, by a backend."""

from __future__ import annotations

import torch

from rankhoist.compiler.emit import Stages
from rankhoist.compiler.targets.backends import backend_of
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.retarget import moved, retargeted


def placed(blueprint: Blueprint, dtype: torch.dtype, device: torch.device, backend: str) -> Stages:
    """Stages of the caller's own, which name `dtype` and `device` where the model named those of its capture.

    Raises:
        BackendError: there is no such backend.
    """
    make, captured = backend_of(backend), blueprint.interface
    stages = retargeted(blueprint.stages, moved(captured, dtype, device))
    for variant in stages.variants:
        variant.request.run = make(variant.request, None)
        variant.candidate.run = make(variant.candidate, variant.state)
    return stages
