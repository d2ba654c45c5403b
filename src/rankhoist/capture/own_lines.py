"""Which lines are the model's own: those in files that are neither torch's nor ours."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

TORCH = str(Path(torch.__file__).parent)
OTHERS = TORCH, str(Path(__file__).parents[1])


def is_own(file: str) -> bool:
    """Whether a file is."""
    return not file.startswith(OTHERS)


def own_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of such lines, from one on; None where there is none."""
    while frame is not None and not is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def own_names(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of such files that its modules are written in, and what those are derived from."""
    return _own({base.__module__ for module in model.modules() for base in type(module).__mro__})


def package_names(model: nn.Module) -> list[dict[str, Any]]:
    """The same of all files of their packages, as far as they are imported."""
    packages = {str(names["__name__"]).partition(".")[0] for names in own_names(model)}
    return _own({name for name in [*sys.modules] if name.partition(".")[0] in packages})


def _own(files: set[str]) -> list[dict[str, Any]]:
    spaces = [vars(sys.modules[name]) for name in files if name in sys.modules]
    return [names for names in spaces if names.get("__file__") and is_own(str(names["__file__"]))]
