"""Bags as exporters take them: a vector of every value, put where its bag is, without a loop over bags.

owner[v] = (how many bags begin at value v or before it) - 1        sum[r] = sum of vectors whose owner is r
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.compiler.graph.node import aten

BAGS = {aten.embedding_bag.default, aten.embedding_bag.padding_idx}
SUM, MEAN, MAX = range(3)  # modes


def embedding_bag(
    table: Tensor, ids: Tensor, offsets: Tensor, by_frequency: bool = False, mode: int = SUM, sparse: bool = False,
    weights: Tensor | None = None, include_last: bool = False, padding: int | None = None,
) -> tuple[Tensor]:  # fmt: skip
    """`aten.embedding_bag`, of which the first result alone: `[bags, D]` of `ids [total]`."""
    starts = offsets[:-1] if include_last else offsets
    owner, vectors = owners(starts, ids.shape[0]), F.embedding(ids, table)
    if weights is not None:
        vectors = vectors * weights.unsqueeze(1)
    counted = torch.ones_like(ids) if padding is None else (ids != padding % table.shape[0]).to(ids.dtype)
    counts = starts.new_zeros(starts.shape[0]).index_add(0, owner, counted.to(starts.dtype)).unsqueeze(1)
    if mode == MAX:
        return (_largest(vectors, owner, counts, None if padding is None else counted),)
    if padding is not None:
        vectors = vectors * counted.unsqueeze(1)
    total = vectors.new_zeros(starts.shape[0], vectors.shape[1]).index_add(0, owner, vectors)
    return (total / counts.clamp(min=1) if mode == MEAN else total,)


def _largest(vectors: Tensor, owner: Tensor, counts: Tensor, counted: Tensor | None) -> Tensor:
    """The largest entries of each bag, 0 of one without values."""
    least = vectors.new_full((), -torch.inf)
    if counted is not None:
        vectors = torch.where(counted.unsqueeze(1) > 0, vectors, least)
    index = owner.unsqueeze(1).expand(-1, vectors.shape[1])
    made = least.expand(counts.shape[0], vectors.shape[1]).scatter_reduce(0, index, vectors, "amax")
    return torch.where(counts > 0, made, 0.0)


def owners(starts: Tensor, total: int) -> Tensor:
    """`[total]`: the bag of each value; `starts [bags]` says where bags begin, some of them where others do."""
    begun = starts.new_zeros(total + 1).index_add(0, starts, torch.ones_like(starts))
    return begun.cumsum(0)[:total] - 1
