"""Context and candidates as the layers take them: row by row, or one context row per request.

plain rows     context `[N, ...]` and candidate `[N, ...]`: row n of one belongs to row n of the other
grouped batch  context `[R, ...]`, candidate `[N, ...]` and `request_offsets`, R + 1 boundaries: request r owns the
               candidates `request_offsets[r]:request_offsets[r + 1]`, which may be none

Results and gradients are equal; a grouped batch does its context work R times instead of N times, in training too
(request-only optimization, arXiv 2508.05640).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankhoist.errors import InputError

Offsets = Tensor | Sequence[int]


def owners(context: Tensor, candidate: Tensor, request_offsets: Offsets | None) -> Tensor | None:
    """The request of each candidate, int64 `[N]`, or None for plain rows.

    Raises:
        InputError: plain rows differ in number, or the offsets do not cut N candidates into R blocks.
    """
    requests, rows = context.shape[0], candidate.shape[0]
    if request_offsets is None:
        if requests != rows:
            raise InputError(
                f"context has {requests} rows and candidate {rows}; "
                f"pass request_offsets with {requests + 1} boundaries if each context row is one request"
            )
        return None
    bounds = torch.as_tensor(request_offsets, dtype=torch.int64, device=candidate.device)
    if bounds.shape != (requests + 1,):
        raise InputError(
            f"request_offsets has shape {list(bounds.shape)}, expected [{requests + 1}] for {requests} requests"
        )
    counts = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != rows or bool((counts < 0).any()):
        raise InputError(f"request_offsets must rise from 0 to {rows} (the candidate rows), got {bounds.tolist()[:20]}")
    return torch.repeat_interleave(torch.arange(requests, device=bounds.device), counts)


def spread(context: Tensor, owner: Tensor | None) -> Tensor:
    """`[R, ...] -> [N, ...]`: each candidate gets its request's row; plain rows stay as they are."""
    return context if owner is None else context.index_select(0, owner)


def check(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Raise `InputError` unless the tensor is `[rows, *shape]`; a size that is free is given by name."""
    sizes = tensor.shape[1:]
    fits = tensor.dim() == len(shape) + 1 and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(sizes, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(["rows", *map(str, shape)])
        raise InputError(f"{name} has shape {list(tensor.shape)}, expected [{expected}]")
