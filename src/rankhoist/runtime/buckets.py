"""Buckets: the sizes that calls are recorded in. A call of fewer rows is padded; what the padding computes is left out.

A padded call is a call: its padded candidates belong to the bucket's last request, and its padded requests have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankhoist.compiler.graph.padded import Padded
from rankhoist.runtime.offsets import WASTE, Blocks

LARGEST = 2**17  # rows: of more, kernels take so long that launches are nothing
SPARE = 4  # times the rows of a call that what is recorded already may have to be used for it


def rounded(count: int) -> int:
    """The least size of a bucket for so many rows: 1 to 8, then four between a power of two and the next (10, 12, 14,
    16, 20, 24, 28, 32, 40, ...), so that a fifth of a bucket is padding at most.
    """
    if count <= 8:
        return count
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


class Bucket(NamedTuple):
    """How many rows of context, of candidates, and of candidates of a single request a call has, or may have.

    `longest` is 0 where no operator needs blocks of requests; `candidates` is 0 for a request stage alone.
    """

    requests: int
    candidates: int = 0
    longest: int = 0

    @staticmethod
    def needed(requests: int, rows: int, blocks: Blocks | None, by_blocks: bool) -> Bucket:
        """What a call has itself; its `blocks` count if the stage reads them."""
        longest = blocks.longest if blocks is not None and by_blocks else 0
        return Bucket(requests, rows, longest)

    @property
    def fits(self) -> bool:
        """Whether a call of this size is one to record: without rows, of very many, or mostly padding it is not."""
        sizes = self.requests * self.longest
        return 0 < self.requests <= LARGEST and self.candidates <= LARGEST and sizes <= WASTE * self.candidates

    @property
    def whole(self) -> Bucket:
        """The bucket that is recorded for calls of about this size."""
        return Bucket(rounded(self.requests), rounded(self.candidates), rounded(self.longest))

    def holds(self, call: Bucket) -> bool:
        """Whether a call can be padded to it, and is not too small for it. A single request is another kind of call."""
        if (self.requests == 1) != (call.requests == 1):
            return False
        pairs = ((self.requests, call.requests), (self.candidates, call.candidates), (self.longest, call.longest))
        return all(own >= other and own <= max(SPARE * other, 8) for own, other in pairs)

    def bounds(self, blocks: Blocks | None) -> Sequence[int] | None:
        """The boundaries of a call's blocks, and of the padded requests after them, `requests + 1`."""
        return None if blocks is None else blocks.over(self.requests).bounds

    def read(self, bounds: Tensor) -> tuple[Tensor, Padded | None]:
        """Owners `[candidates]` and padded blocks from boundaries on a device, without asking it for a number."""
        places = torch.arange(self.candidates, device=bounds.device)
        owner = torch.searchsorted(bounds[1:], places, right=True).clamp_max(self.requests - 1)
        if not self.longest:
            return owner, None
        columns = torch.arange(self.longest, device=bounds.device)
        slots = (bounds[:-1, None] + columns).clamp_max(self.candidates - 1)
        place = places + self.longest * owner - bounds.index_select(0, owner)
        return owner, (slots, place.clamp_max(self.requests * self.longest - 1))
