"""Boundaries of the requests' blocks of candidates, as callers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankhoist.errors import InputError

Offsets = Tensor | Sequence[int]


class Blocks(NamedTuple):
    """The candidates of several requests: R + 1 boundaries and each candidate's request `[N]`, int64 on the CPU."""

    offsets: Tensor
    owner: Tensor


def blocks_of(offsets: Offsets | None, requests: int, rows: int) -> Blocks | None:
    """The blocks of a call; one request needs none.

    Raises:
        InputError: they do not cut N candidates into R blocks.
    """
    if offsets is None:
        if requests != 1:
            raise InputError(f"the context has {requests} rows; pass request_offsets with {requests + 1} boundaries")
        return None
    bounds = torch.as_tensor(offsets, dtype=torch.int64, device="cpu")
    if bounds.shape != (requests + 1,):
        raise InputError(
            f"request_offsets has shape {list(bounds.shape)}, expected [{requests + 1}] for {requests} requests"
        )
    counts = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != rows or bool((counts < 0).any()):
        raise InputError(f"request_offsets must rise from 0 to {rows} (the candidate rows), got {bounds.tolist()[:20]}")
    if requests == 1:
        return None
    return Blocks(bounds, torch.repeat_interleave(torch.arange(requests, device="cpu"), counts))
