"""To the device and back: a call's inputs go over from pinned memory, and its outputs come back in one wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rankhoist.capture import Jagged
from rankhoist.runtime.sent import sent


class Staging:
    """Between the memory of requests, which is the CPU's, and a device.

    On a GPU each has a stream of its own, so that calls of several models do not wait for one another.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def turn(self) -> AbstractContextManager[object]:
        """Where a call's work is: copies and stages, in their order."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def there(self, inputs: Mapping[str, Tensor | Jagged]) -> dict[str, Tensor | Jagged]:
        """Inputs on the device. Nothing waits; the pinned copies are kept until they are read."""
        if self._stream is None:
            return dict(inputs)
        return {name: self._moved(own) for name, own in inputs.items()}

    def _moved(self, own: Any) -> Any:
        if isinstance(own, Jagged):
            return Jagged.of([self._moved(column) for column in own.values], self._moved(own.lengths))
        return sent(own, self.device)

    def back(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs in the CPU's memory, all of them there."""
        if self._stream is None:
            return list(outputs)
        made = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in outputs]
        self._stream.synchronize()
        return made

    def free(self) -> None:
        """After running out of memory: give back what is held for later."""
        if self._stream is not None:
            torch.cuda.empty_cache()
