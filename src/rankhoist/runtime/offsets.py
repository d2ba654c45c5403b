"""Boundaries of the requests' blocks of candidates, as callers give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankhoist.errors import InputError

Offsets = Tensor | Sequence[int]


def bounds_and_counts(offsets: Offsets, requests: int, rows: int) -> tuple[Tensor, Tensor]:
    """R + 1 boundaries and the R numbers of candidates between them: int64 on the CPU, where they are read.

    Raises:
        InputError: they do not cut N candidates into R blocks.
    """
    bounds = torch.as_tensor(offsets, dtype=torch.int64, device="cpu")
    if bounds.shape != (requests + 1,):
        raise InputError(
            f"request_offsets has shape {list(bounds.shape)}, expected [{requests + 1}] for {requests} requests"
        )
    counts = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != rows or bool((counts < 0).any()):
        raise InputError(f"request_offsets must rise from 0 to {rows} (the candidate rows), got {bounds.tolist()[:20]}")
    return bounds, counts
