"""Kernels of ours over padded blocks: rows by the matrix of their request as one `bmm`, without a loop over requests.

`slots [R, M]` are the rows of each request, padded to M, `place [N]` is where each row stands in the blocks. Where
requests are very uneven a long one has several blocks, `slots [P, M]`, and `of [P]` is the request of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.compiler.graph.activations import through

# slots [R, M], place [N]; or slots [P, M], place [N], of [P]
Padded = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


def by_block(x: Tensor, padded: Padded) -> Tensor:
    """What is a request's `[R, ...]`, for each of its blocks."""
    return x if len(padded) == 2 else x.index_select(0, padded[2])


def in_blocks(x: Tensor, slots: Tensor) -> Tensor:
    """`[N, ...] -> [R, M, ...]`."""
    return x.index_select(0, slots.reshape(-1)).reshape(*slots.shape, *x.shape[1:])


def linear(x: Tensor, m: Tensor, padded: Padded) -> Tensor:
    slots, place, *_ = padded
    made = torch.bmm(in_blocks(x, slots).flatten(1, -2), by_block(m, padded))
    return made.reshape(-1, *x.shape[1:-1], m.shape[-1]).index_select(0, place)


def linear_from(x: Tensor, m: Tensor, start: Tensor, owner: Tensor, padded: Padded, activation: str = "") -> Tensor:
    own = start.index_select(0, owner)
    made = linear(x, m, padded) + own.view(-1, *[1] * (x.dim() - 2), own.shape[-1])
    return through(made, activation)


def linear_onto(total: Tensor, x: Tensor, m: Tensor, padded: Padded) -> Tensor:
    return total + linear(x, m, padded)


def matmul(x: Tensor, m: Tensor, padded: Padded) -> Tensor:
    slots, place, *_ = padded
    made = torch.matmul(in_blocks(x, slots), by_block(m, padded)[:, None])
    return made.flatten(0, 1).index_select(0, place)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, padded: Padded) -> Tensor:
    slots, place, *_ = padded
    k, v = by_block(k, padded), by_block(v, padded)
    return attended(in_blocks(q, slots), k, v, scale).flatten(0, 1).index_select(0, place)


def merged_attention(
    q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, scale: float, padded: Padded
) -> Tensor:
    return over_both(matmul, q, k, v, own_k, own_v, scale, padded)


def over_both(
    by_request: Callable[[Tensor, Tensor, Any], Tensor], q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor,
    scale: float, of: Any,
) -> Tensor:  # fmt: skip
    """See `kernels.merged_attention`; `by_request` multiplies rows by the matrix of their request, which `of` tells."""
    scores = torch.cat([by_request(q, k.mT, of), torch.matmul(q, own_k.mT)], -1)
    shared, own = torch.softmax(scores * scale, -1).split([k.shape[2], own_k.shape[2]], -1)
    return by_request(shared, v, of) + torch.matmul(own, own_v)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`[R, M, h, Q, d]` over `[R, h, T, d]` and `[R, h, T, e] -> [R, M, h, Q, e]`: queries of M rows side by side."""
    side_by_side = q.transpose(1, 2).flatten(2, 3)
    made = F.scaled_dot_product_attention(side_by_side, k, v, scale=scale)
    apart: Tensor = made.unflatten(2, (q.shape[1], q.shape[3]))
    return apart.transpose(1, 2)
