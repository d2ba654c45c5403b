"""Prepared states of requests that come again: the second page of a user pays for its candidates only.

The key is the caller's. What it stands for is checked by a digest of the context: a key that comes with another context
is an error and never a stale score.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankhoist.runtime import RequestState
from rankhoist.serve.refusal import RequestError


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    state: RequestState
    bytes: int
    expires: float


class States:
    """At most `most` bytes of states, the least recently used out first, none older than `seconds`."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self.clock = most, seconds, clock
        self.bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def get(self, key: str, digest: bytes) -> RequestState | None:
        """The state of a key, if it is here and not too old.

        Raises:
            RequestError: the key was used with another context.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires < self.clock():
            self._remove(key)
            return None
        if entry.digest != digest:
            message = f"context_key {key[:60]!r} was used with another context; use another key for it"
            raise RequestError("context_conflict", message)
        self._entries.move_to_end(key)
        return entry.state

    def put(self, key: str, digest: bytes, state: RequestState) -> None:
        """Keep a state, and drop others for it; one that is larger than all room is not kept."""
        size = held(state)
        if size > self.most:
            return
        if key in self._entries:
            self._remove(key)
        while self.bytes + size > self.most:
            self._remove(next(iter(self._entries)))
        self._entries[key] = _Entry(digest, state, size, self.clock() + self.seconds)
        self.bytes += size

    def _remove(self, key: str) -> None:
        self.bytes -= self._entries.pop(key).bytes


def held(state: RequestState) -> int:
    """Bytes of memory that a state keeps: whole storages, of which its tensors may be parts."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.tensors.values()}
    return sum(storages.values())


def digest_of(context: Mapping[str, Tensor]) -> bytes:
    """A digest of all values of a context."""
    made = hashlib.blake2b(digest_size=16)
    for name in sorted(context):
        made.update(name.encode())
        made.update(context[name].contiguous().view(torch.uint8).numpy().data if context[name].numel() else b"")
    return made.digest()
