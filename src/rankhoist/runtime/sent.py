"""What goes to a device in a call: from pinned memory, so that nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankhoist.errors import BackendError


def pinned(t: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU in memory from which a GPU copies by itself; PyTorch keeps it until it is read.

    Raises:
        BackendError: the caller captures a CUDA graph, which would read this memory again when it is another's.
    """
    if device.type != "cuda" or t.device.type != "cpu":
        return t
    _refuse_in_a_capture()
    return t.pin_memory()


def _refuse_in_a_capture() -> None:
    if torch.cuda.is_current_stream_capturing():
        raise BackendError(
            "a call that copies to the device (boundaries of several requests, rows of a store) cannot be captured in "
            "a CUDA graph: warm_up records such calls itself"
        )


def pinned_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers in such memory, int64."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int64)
    _refuse_in_a_capture()
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=True)


def sent(t: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; only what comes from one to the CPU is waited for."""
    if t.device == device:
        return t
    return pinned(t, device).to(device, non_blocking=device.type == "cuda")
