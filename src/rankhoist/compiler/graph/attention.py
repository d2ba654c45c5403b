"""Attention as two products and a softmax, for processors that multiply sooner than PyTorch's one operator attends."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES = 2**19  # that are computed at a time: their memory, which each turn writes anew, is in the cache; as measured


def attention_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """`[N, ..., Q, d], [N, ..., T, d], [N, ..., T, e] -> [N, ..., Q, e]`, the softmax in float32 at least, some rows at
    a time in the same memory.

    Compiled code, other devices and gradients have an operator for all of it.
    """
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, mask))
    if learns or torch.compiler.is_compiling() or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale)
    (count, *heads, queries, width), keys = q.shape, k.shape[-2]
    q, wide = q * (width**-0.5 if scale is None else scale), torch.promote_types(q.dtype, torch.float32)
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    added, blind = (None, None) if mask is None else _added(mask, wide)
    result = q.new_empty(count, queries, *heads, v.shape[-1]).movedim(1, -2)
    rows = max(min(SCORES // max(math.prod(heads) * queries * keys, 1), count), 1)
    scores = q.new_empty(rows, *heads, queries, keys)
    weights = torch.empty_like(scores, dtype=wide)
    for a in range(0, count, rows):
        part = slice(a, a + rows)
        x, y, z = (t[part].flatten(0, -3) for t in (q, k, v))
        own, made = (t[: min(rows, count - a)] for t in (scores, weights))
        torch.bmm(x, y.mT, out=own.flatten(0, -3))
        made.copy_(own)
        if added is not None:
            made.add_(_of_rows(added, part, q))
        own.copy_(torch.softmax(made, -1, out=made))
        found = result[part].copy_(torch.bmm(own.flatten(0, -3), z).view(*own.shape[:-1], -1))
        if blind is not None:
            found.masked_fill_(_of_rows(blind, part, q), 0)
    return result


def _added(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a mask adds to scores, and which queries see no key."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf)
    return mask, (mask == -math.inf).all(-1, keepdim=True)


def _of_rows(mask: Tensor, rows: slice, q: Tensor) -> Tensor:
    return mask[rows] if mask.dim() == q.dim() and len(mask) > 1 else mask
