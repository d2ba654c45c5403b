"""One recorded call: the buffers that it reads, and how rows get in and out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.compiler.emit import Variant
from rankhoist.compiler.targets.recorder import Recording, size_of
from rankhoist.runtime.buckets import Bucket
from rankhoist.runtime.sent import pinned_numbers
from rankhoist.runtime.weights import filled

WHOLE, REQUEST, CANDIDATE = "whole", "request", "candidate"
FEW = 4  # tensors: a copy of each is sooner done than one kernel for all, which gives 64 Ki elements to a processor
VIEWS = 64  # sizes of calls for which a recording keeps views of its buffers

Buffers = dict[str, dict[Any, Tensor]]  # context, candidate, state -> by name, or by number of a node
Read = Callable[[], tuple[Tensor | None, Any]]  # owners and padded blocks


class Key(NamedTuple):
    """What is recorded: a whole call of a plan, or one of its stages, in a bucket, as torch's switches were."""

    part: str
    plan: int
    bucket: Bucket
    setting: Hashable


def of_one() -> tuple[None, None]:
    """Owners and blocks of one request."""
    return None, None


def function(
    variant: Variant, arguments: Sequence[Sequence[Any]], key: Key, buffers: Buffers, read: Read
) -> Callable[[], Sequence[Any]]:
    """What is recorded: a plan's stages, or one of them, over buffers, and over owners and blocks that are read."""
    of_request, of_candidate = arguments

    def request() -> Sequence[Any]:
        if not variant.state:
            return ()
        return variant.request.run(key.bucket.requests, None, None, *filled(of_request, {}, buffers["context"]))

    def candidate(state: Mapping[int, Tensor]) -> Sequence[Any]:
        owner, blocks = read()
        given = filled(of_candidate, state, buffers["candidate"])
        return variant.candidate.run(key.bucket.candidates, owner, blocks, *given)

    if key.part == REQUEST:
        return request
    if key.part == CANDIDATE:
        return lambda: candidate(buffers["state"])
    return lambda: candidate(dict(zip(variant.state, request(), strict=True)))


@dataclass
class Recorded:
    """A recording, and the buffers that it reads.

    Attributes:
        axes: where rows are in each of its outputs; None where there are none.
        used: when, in calls.
    """

    key: Key
    buffers: Buffers
    bounds: Tensor | None
    recording: Recording
    axes: Sequence[int | None]
    used: int = 0
    _inputs: dict[tuple[int, int], Buffers] = field(default_factory=dict)
    _outputs: dict[int, list[Any]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.recording.bytes + size_of([t for own in self.buffers.values() for t in own.values()])

    def takes(self, state: Mapping[int, Tensor]) -> bool:
        """Whether a state has the shapes of the one that it was recorded for."""
        own = self.buffers.get("state", {})
        return all(own[n].shape == t.shape for n, t in state.items())

    def fill(self, given: Buffers, bounds: Sequence[int] | None, requests: int, rows: int) -> None:
        """Put a call's rows where the recording reads them; the rows behind them are an earlier call's."""
        views = self._inputs.get((requests, rows))
        if views is None:
            views = _kept(self._inputs, (requests, rows), self._views({"context": requests, "candidate": rows}))
        copy(
            [views[side][name] for side, own in given.items() for name in own],
            [t for own in given.values() for t in own.values()],
        )
        if bounds is not None and self.bounds is not None:
            self.bounds.copy_(pinned_numbers(bounds, self.bounds.device), non_blocking=True)

    def _views(self, rows: Mapping[str, int]) -> Buffers:
        """Of the buffers, with so many rows."""
        return {
            side: {name: t.narrow(0, 0, rows[side]) if side in rows else t for name, t in own.items()}
            for side, own in self.buffers.items()
        }

    def results(self, rows: int | None = None) -> list[Any]:
        """What the last replay made, in memory of its own: all of it, or of so many candidates."""
        views = self._outputs.get(rows or 0)
        if views is None:
            views = _kept(self._outputs, rows or 0, self._of_rows(rows))
        if len(views) <= FEW:
            return [x.clone() if isinstance(x, Tensor) else x for x in views]
        made = [torch.empty_like(x) if isinstance(x, Tensor) else x for x in views]
        copy(*([x for x in own if isinstance(x, Tensor)] for own in (made, views)))
        return made

    def _of_rows(self, rows: int | None) -> list[Any]:
        """Of the outputs, so many rows."""
        if rows is None:
            return [*self.recording.outputs]
        pairs = zip(self.recording.outputs, self.axes, strict=False)
        return [x if a is None else x.narrow(a, 0, rows) for x, a in pairs]


def _kept(cache: dict[Any, Any], key: Any, value: Any) -> Any:
    """A value, kept beside a few others."""
    if len(cache) >= VIEWS:
        cache.clear()
    cache[key] = value
    return value


def copy(tos: Sequence[Tensor], ofs: Sequence[Tensor]) -> None:
    """Copy tensors: a few one by one, many by one launch for those of the same kinds."""
    if len(tos) <= FEW:
        for to, of in zip(tos, ofs, strict=True):
            to.copy_(of, non_blocking=True)
        return
    alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for to, of in zip(tos, ofs, strict=True):
        own = alike.setdefault((to.dtype, of.dtype), ([], []))
        own[0].append(to)
        own[1].append(of)
    for own in alike.values():
        torch._foreach_copy_(*own)
