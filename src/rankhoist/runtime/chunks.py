"""A candidate stage over some rows at a time.

What a stage computes on the way of a few hundred rows stays in the processor's cache, and is written where the chunk
before it was; that of thousands of rows goes through memory, which the system hands out anew in every call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankhoist.runtime.offsets import even

Run = Callable[..., tuple[Any, ...]]


def in_chunks(run: Run, size: int, moves: Sequence[bool]) -> Run:
    """What `run` returns, of `size` rows at a time at most, for a stage that treats each row alone.

    `moves` says which of its tensors have a row per candidate; all results have. Requests are told as to `run`:
    `owner` `[N]` and `offsets` `[R + 1]` on the CPU, or None.
    """

    def chunked(rows: int, owner: Tensor | None, offsets: Tensor | None, *given: Any) -> tuple[Any, ...]:
        def part(start: int, end: int) -> tuple[Any, ...]:
            own = [t[start:end] if cut else t for t, cut in zip(given, moves, strict=True)]
            its_owner = None if owner is None else owner[start:end]
            its_offsets = None if offsets is None else offsets.clamp(start, end) - start
            return run(end - start, its_owner, its_offsets, *own)

        bounds = even(rows, -(-rows // size))
        parts = [part(start, end) for start, end in itertools.pairwise(bounds)]
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    return chunked
