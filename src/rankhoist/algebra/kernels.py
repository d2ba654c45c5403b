"""The few operators of emitted graphs that ATen does not have: they join request-rate with candidate-rate tensors.

`R` requests own contiguous blocks of the `N` rows. `owner` is the request of each row (`[N]`), or `None` when R = 1:
then
one row broadcasts and nothing is gathered. `offsets` are the R + 1 block boundaries, or `None` when R = 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def spread(x: Tensor, owner: Tensor | None) -> Tensor:
    """`[R, ...]` -> `[N, ...]`, or `[1, ...]` for a single request, which broadcasts against rows."""
    return x if owner is None else x.index_select(0, owner)


def repeat_rows(x: Tensor, owner: Tensor | None, rows: int) -> Tensor:
    """`[R, ...]` -> `[N, ...]`: every row of its own, for operators that cannot broadcast (a view when R = 1)."""
    return x.expand(rows, *x.shape[1:]) if owner is None else x.index_select(0, owner)


def linear_from(x: Tensor, weight: Tensor, start: Tensor, owner: Tensor | None) -> Tensor:
    """`start` of the row's request plus a weight times the row: `[N, ..., k] x [n, k] + [R, n] -> [N, ..., n]`."""
    if owner is None and start.shape[0] == 1:
        return torch.nn.functional.linear(x, weight, start[0])
    product = torch.nn.functional.linear(x, weight)
    gathered = start if owner is None else start.index_select(0, owner)
    return product.add_(gathered.reshape(-1, *[1] * (x.dim() - 2), start.shape[-1]))


def request_matmul(x: Tensor, m: Tensor, offsets: Tensor | None) -> Tensor:
    """Rows times the matrix of their request: `[N, B, m, k] x [R, B, k, n] -> [N, B, m, n]`."""
    if offsets is None:
        return batched_matmul(x, m[0])
    bounds = offsets.tolist()
    parts = [batched_matmul(x[a:b], m[r]) for r, (a, b) in enumerate(itertools.pairwise(bounds)) if a < b]
    return torch.cat(parts) if parts else x.new_empty(0, *x.shape[1:-1], m.shape[-1])


def batched_matmul(x: Tensor, m: Tensor) -> Tensor:
    """One matrix per batch entry, the same for all rows: `[N, B, m, k] x [B, k, n] -> [N, B, m, n]`, as one product."""
    rows, batch, width, inner = x.shape
    if batch == 1:
        return torch.mm(x.reshape(rows * width, inner), m[0]).view(rows, 1, width, m.shape[-1])
    flat = x.transpose(0, 1).reshape(batch, rows * width, inner)
    return torch.bmm(flat, m).view(batch, rows, width, m.shape[-1]).transpose(0, 1)
