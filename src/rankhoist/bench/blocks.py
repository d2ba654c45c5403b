"""Single blocks of large rankers, for which kernels for GPUs were written by hand (FBGEMM's in-kernel broadcast).

They are as an author would write them: nothing in them knows of requests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MixedTokens(nn.Module):
    """A linear map along tokens: `W [out, T + S]` times the user's `[N, T, d]` above the candidate's `[N, S, d]`."""

    def __init__(self, tokens: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, tokens) * tokens**-0.5)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return self.weight @ torch.cat([context, candidate], 1)


class UserAttention(nn.Module):
    """Queries `[N, Q, d]` of a candidate over keys and values `[N, T, d]` of its user."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
