"""Which lines are the model's own: those in files that are neither torch's nor ours."""

from __future__ import annotations

from pathlib import Path
from types import FrameType

import torch

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
