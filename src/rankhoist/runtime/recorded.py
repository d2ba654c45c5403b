"""One recorded call: the buffers that it reads, and how rows get in and out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.compiler.targets.recorder import Recording, size_of
from rankhoist.runtime.buckets import Bucket
from rankhoist.runtime.sent import pinned

WHOLE, REQUEST, CANDIDATE = "whole", "request", "candidate"

Buffers = dict[str, dict[Any, Tensor]]  # context, candidate, state -> by name, or by number of a node


class Key(NamedTuple):
    """What is recorded: a whole call of a plan, or one of its stages, in a bucket, as torch's switches were."""

    part: str
    plan: int
    bucket: Bucket
    setting: Hashable


@dataclass
class Recorded:
    """A recording, and the buffers that it reads; `used` is when, in calls."""

    key: Key
    buffers: Buffers
    bounds: Tensor | None
    recording: Recording
    used: int = 0

    @property
    def bytes(self) -> int:
        return self.recording.bytes + size_of([t for own in self.buffers.values() for t in own.values()])

    def takes(self, state: Mapping[int, Tensor]) -> bool:
        """Whether a state has the shapes of the one that it was recorded for."""
        own = self.buffers.get("state", {})
        return all(own[n].shape == t.shape for n, t in state.items())

    def fill(self, given: Buffers, bounds: Tensor | None) -> None:
        """Put a call's rows where the recording reads them; the rows behind them are an earlier call's."""
        pairs = [
            (self.buffers[side][name].narrow(0, 0, len(t)) if side != "state" else self.buffers[side][name], t)
            for side, own in given.items()
            for name, t in own.items()
        ]
        copy(pairs)
        if bounds is not None and self.bounds is not None:
            self.bounds.copy_(pinned(bounds, self.bounds.device), non_blocking=True)


def copies(values: Sequence[Any]) -> list[Any]:
    """The same in memory of their own."""
    made = [torch.empty_like(x) if isinstance(x, Tensor) else x for x in values]
    copy([(own, x) for own, x in zip(made, values, strict=True) if isinstance(x, Tensor)])
    return made


def copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each to the first, those of the same kinds in one launch."""
    alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for to, of in pairs:
        own = alike.setdefault((to.dtype, of.dtype), ([], []))
        own[0].append(to)
        own[1].append(of)
    for tos, ofs in alike.values():
        torch._foreach_copy_(tos, ofs)
