"""Tensors with room behind them, so that one more position is written and not all of them copied."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor


class Room:
    """Memory of tensors of which each goes on where another ends; `filled` is how far the longest of them reaches."""

    def __init__(self, buffer: Tensor, filled: int) -> None:
        self.buffer, self.filled, self._lock = buffer, filled, threading.Lock()

    def taken(self, start: int, end: int, axis: int) -> bool:
        """Take the positions behind a tensor, if nothing else has and there are as many.

        PyTorch lets nobody write to what was made in inference mode outside of it.
        """
        if self.buffer.is_inference() and not torch.is_inference_mode_enabled():
            return False
        with self._lock:
            if self.filled != start or end > self.buffer.shape[axis]:
                return False
            self.filled = end
            return True


def joined(old: Tensor, new: Tensor, axis: int) -> Tensor:
    """`cat([old, new], axis)`; `old` stays as it is, and what is joined to it first lies behind it in memory."""
    start = old.shape[axis]
    end, room = start + new.shape[axis], getattr(old, "room", None)
    if room is None or not room.taken(start, end, axis):
        sizes = list(old.shape)
        sizes[axis] = end + max(end // 2, 16)
        room = Room(torch.empty(sizes, dtype=old.dtype, device=old.device), end)
        room.buffer.narrow(axis, 0, start).copy_(old)
    room.buffer.narrow(axis, start, end - start).copy_(new)
    made: Any = room.buffer.narrow(axis, 0, end)
    made.room = room
    return made  # type: ignore[no-any-return]
