"""Which rows a step of training reads: drawn from the seed and the epoch alone, so that nothing of it need be saved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rankhoist.lab.data import LabelledRows

KINDS = ("rows", "requests", "grouped")  # shuffled one by one; as whole requests; the same, with context once each


class Step(NamedTuple):
    """The numbers of its rows `[N]` and, where they are whole requests, the boundaries of these `[R + 1]`."""

    rows: Tensor
    offsets: Tensor | None


class Batches:
    """The batches of every epoch: `size` rows, or as many whole requests as have so many rows on average."""

    def __init__(self, data: LabelledRows, kind: str, size: int, seed: int) -> None:
        self.seed, self.offsets = seed, None if kind == "rows" else data.request_offsets
        rows = data.train.stop
        if self.offsets is not None:
            self.offsets = self.offsets[self.offsets <= rows]
            size = max(round(size * (len(self.offsets) - 1) / rows), 1)
        self.size, self.count = size, rows if self.offsets is None else len(self.offsets) - 1
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def at(self, epoch: int, position: int) -> Step:
        """What a step reads."""
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed)
            for _ in range(epoch + 1):
                order = torch.randperm(self.count, generator=generator)
            self._order = epoch, order.split(self.size)
        chosen = self._order[1][position]
        if self.offsets is None:
            return Step(chosen, None)
        first, counts = self.offsets[chosen], self.offsets.diff()[chosen]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Step((first - offsets[:-1]).repeat_interleave(counts) + torch.arange(int(offsets[-1])), offsets)
