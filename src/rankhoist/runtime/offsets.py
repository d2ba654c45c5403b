"""Boundaries of the requests' blocks of candidates, as callers give them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.graph.padded import Padded
from rankhoist.errors import InputError
from rankhoist.runtime.sent import sent

Offsets = Tensor | Sequence[int]


LOOPS = ("cpu",)  # where a product per request is faster than one of all requests, padded
WASTE = 4  # times as many rows as there are: requests that would be padded to more are cut into several blocks


@dataclass(frozen=True)
class Blocks:
    """The candidates of several requests: R + 1 boundaries, and the number of rows."""

    bounds: Sequence[int]
    rows: int

    @cached_property
    def offsets(self) -> Tensor:
        """The boundaries as a tensor, int64 on the CPU."""
        return torch.tensor(self.bounds, dtype=torch.int64, device="cpu")

    @cached_property
    def longest(self) -> int:
        """Of how many rows the largest block is."""
        return max(map(operator.sub, self.bounds[1:], self.bounds), default=0)

    @property
    def owner(self) -> Tensor:
        """Each candidate's request, `[N]`, on the CPU."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1, device="cpu"), self.offsets.diff())

    def over(self, requests: int) -> Blocks:
        """The same among more requests: those behind these have no candidates."""
        more = requests + 1 - len(self.bounds)
        return self if more <= 0 else Blocks([*self.bounds, *[self.rows] * more], self.rows)

    def on(self, device: torch.device) -> tuple[Tensor | Padded, Tensor]:
        """What a candidate stage there reads: the boundaries, or in their place padded blocks; owners.

        The boundaries go over once, from pinned memory; the rest is made there, and nothing waits for the device.
        """
        if device.type in LOOPS:
            return self.offsets, self.owner.to(device)
        requests, bounds, of = len(self.bounds) - 1, self.offsets, None
        longest = self.longest
        if longest * requests > WASTE * self.rows:
            longest = -(-self.rows // requests)
            cut = self._cut(longest)
            bounds, of = sent(torch.cat(cut), device).split([len(x) for x in cut])
        else:
            bounds = sent(bounds, device)
        places = torch.arange(self.rows, device=device)
        block = torch.searchsorted(bounds[1:], places, right=True)
        slots = (bounds[:-1, None] + torch.arange(longest, device=device)).clamp_max(max(self.rows - 1, 0))
        place = places + longest * block - bounds.index_select(0, block)
        return ((slots, place), block) if of is None else ((slots, place, of), of.index_select(0, block))

    def _cut(self, longest: int) -> tuple[Tensor, Tensor]:
        """Boundaries of blocks of so many rows at most, and the request of each."""
        counts = self.offsets.diff()
        of = torch.repeat_interleave(torch.arange(len(counts)), -(-counts // longest))
        inner = torch.arange(len(of)) - torch.searchsorted(of, of)  # which of its request
        return torch.cat([self.offsets[of] + longest * inner, self.offsets[-1:]]), of


def even(rows: int, requests: int) -> list[int]:
    """Boundaries that share the candidates out among the requests as evenly as can be."""
    return [rows * i // requests for i in range(requests + 1)]


def blocks_of(offsets: Offsets | None, requests: int, rows: int) -> Blocks | None:
    """The blocks of a call; one request needs none.

    Raises:
        InputError: they do not cut N candidates into R blocks.
    """
    if offsets is None:
        if requests != 1:
            one = ". Of one request, give one row of context, x[:1]" if requests == rows > 1 else ""
            raise InputError(
                f"the context has {requests} rows; pass request_offsets with {requests + 1} boundaries{one}"
            )
        return None
    bounds = _whole_numbers(offsets, requests)
    if bounds[0] != 0 or bounds[-1] != rows or any(map(operator.gt, bounds, bounds[1:])):
        raise InputError(f"request_offsets must rise from 0 to {rows} (the candidate rows), got {bounds[:20]}")
    if requests == 1:
        return None
    return Blocks(bounds, rows)


def _whole_numbers(offsets: Any, requests: int) -> list[int]:
    """R + 1 of them.

    Raises:
        InputError: there are others, or another number of them.
    """
    if type(offsets) is list and len(offsets) == requests + 1 and all(type(n) is int for n in offsets):
        return [*offsets]  # the caller's may change
    try:
        given = torch.as_tensor(offsets, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"request_offsets are no numbers: {error}") from None
    if given.numel() and (given.is_floating_point() or given.is_complex()):
        raise InputError(f"request_offsets are {given.dtype}, expected whole numbers")
    if given.shape != (requests + 1,):
        raise InputError(
            f"request_offsets has shape {list(given.shape)}, expected [{requests + 1}] for {requests} requests"
        )
    found: list[int] = given.to(torch.int64).tolist()
    return found
