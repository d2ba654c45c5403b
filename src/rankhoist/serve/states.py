"""Prepared states of requests that come again: the second page of a user pays for its candidates only.

The key is the caller's. What it stands for is checked by a digest of the context: a key that comes with another context
is an error and never a stale score. Where axes of a context vary, the same with more events at the end is no other one.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rankhoist_client.refusal import RequestError
from torch import Tensor

from rankhoist.capture import Jagged
from rankhoist.capture.jagged import flat
from rankhoist.runtime import RequestState
from rankhoist.serve.longer import Axes, Context, events, kept

ALIGNED = 64  # bytes: where a tensor may start
LARGE = 2**16  # bytes of a state that has memory of its own: a process may have some ten thousand such pieces


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    state: RequestState
    bytes: int
    expires: float
    context: Mapping[str, Tensor] | None = None


class States:
    """At most `most` bytes of states, the least recently used out first, none older than `seconds`."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self.bytes, self._swept = 0, clock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def get(self, key: str, digest: bytes) -> RequestState | None:
        """The state of a key, if it is here and not too old.

        Raises:
            RequestError: the key was used with another context.
        """
        entry = self._entry(key)
        if entry is None:
            return None
        if entry.digest != digest:
            message = f"context_key {key[:60]!r} was used with another context; use another key for it"
            raise RequestError("context_conflict", message)
        self._entries.move_to_end(key)
        return entry.state

    def before(self, key: str, context: Context, axes: Axes) -> tuple[RequestState, dict[str, Tensor]] | None:
        """The state of a key for a context that has less events than this one, and those that it has not."""
        entry = self._entry(key)
        if entry is None or entry.context is None:
            return None
        new = events(entry.context, context, axes)
        return None if new is None else (entry.state, new)

    def _entry(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires < self.clock():
            self._remove(key)
            return None
        return entry

    def put(self, key: str, digest: bytes, state: RequestState, context: Context | None = None) -> None:
        """Keep a state, and drop others for it; one that is larger than all room is not kept.

        Args:
            context: of which it is, where one with more events may come.
        """
        self._sweep()
        before = {} if context is None else kept(context)
        size = room(state) + sum(map(_bytes, before.values()))
        if size > self.most:
            return
        if key in self._entries:
            self._remove(key)
        while self.bytes + size > self.most:
            self._remove(next(iter(self._entries)))
        self._entries[key] = _Entry(digest, apart(state), size, self.clock() + self.seconds, before or None)
        self.bytes += size

    def clear(self) -> None:
        """Drop all of them."""
        for key in list(self._entries):
            self._remove(key)

    def _sweep(self) -> None:
        """Drop what is too old, once in a while: looking at all of them takes its time."""
        now = self.clock()
        if now >= self._swept + self.seconds / 8:
            self._swept = now
            for key in [key for key, entry in self._entries.items() if entry.expires < now]:
                self._remove(key)

    def _remove(self, key: str) -> None:
        self.bytes -= self._entries.pop(key).bytes


def room(state: RequestState) -> int:
    """Bytes that a state takes where it is kept, at least a page: a key that has no state is not nothing."""
    taken = sum(map(_bytes, state.tensors.values())) if state.grown is None else _memory(state.grown.kept)
    return max(-(-taken // mmap.PAGESIZE), 1) * mmap.PAGESIZE


def _memory(kept: Iterable[Any]) -> int:
    """Of tensors that share some, and have room behind them."""
    own = [t.untyped_storage() for t in kept if isinstance(t, Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in own}.values())


def apart(state: RequestState) -> RequestState:
    """A copy of the state in one piece of memory, which the system gets back when the state is dropped.

    Among the tensors of calls, which live for milliseconds, a state of minutes would leave a hole, and the process
    would grow with every generation of states. A small one fits into the holes that there are. One that grows has room
    behind its tensors, and stays where it is.
    """
    if state.grown is not None:
        return state
    size = room(state)
    device = next((t.device for t in state.tensors.values()), torch.device("cpu"))
    memory = (
        torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        if size >= LARGE and device.type == "cpu"
        else torch.empty(size, dtype=torch.uint8, device=device)
    )
    starts = itertools.accumulate(map(_bytes, state.tensors.values()), initial=0)
    copies = {n: _copied(t, memory, at) for (n, t), at in zip(state.tensors.items(), starts, strict=False)}
    return replace(state, tensors=copies)


def _bytes(t: Tensor) -> int:
    own = _without_repeats(t)
    return -(-own.numel() * own.element_size() // ALIGNED) * ALIGNED


def _without_repeats(t: Tensor) -> Tensor:
    """One entry of every axis that repeats the same memory."""
    return t[tuple(slice(0, 1) if step == 0 else slice(None) for step in t.stride())]


def _copied(t: Tensor, memory: Tensor, at: int) -> Tensor:
    """A copy in `memory`, from byte `at` on, with axes in the same order: products read it as fast."""
    own = _without_repeats(t)
    if not own.numel():
        return t
    steps = torch.empty_like(own, device="meta").stride()
    part = memory[at : at + own.numel() * own.element_size()].view(t.dtype)
    return part.as_strided(own.shape, steps).copy_(own).expand(t.shape)


def digest_of(context: Mapping[str, Tensor | Jagged]) -> bytes:
    """A digest of all values of a context, and of how they stand."""
    made, tensors = hashlib.blake2b(digest_size=16), flat(context)
    for name in sorted(tensors):
        made.update(f"{name}{list(tensors[name].shape)}".encode())
        made.update(tensors[name].contiguous().view(torch.uint8).numpy().data if tensors[name].numel() else b"")
    return made.digest()
