"""The same elements along other axes, rows folded and unfolded."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    FIELDS,
    PAIR,
    ROWS,
    Equal,
    K,
    NearMiss,
    W,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
    rates,
)

randn = numbers(2)

EQUAL: dict[str, Equal] = {
    "view_fold_rows": (lambda c, k, w: F.linear(both(c, k).view(-1, 5), w).view(-1, 6), ROWS, dict(w=randn(3, 5))),
    "transpose_fold": (
        lambda c, k: both(c, k).view(-1, 2, 5).transpose(1, 2).reshape(-1, 2).exp().view(-1, 10),
        ROWS,
        {},
    ),
    "rows_folded_with_fields": (
        lambda c, k, w: F.linear(fields(c, k).reshape(-1, 5), w).relu().view(-1, 7, 2).sum(1),
        FIELDS,
        dict(w=randn(2, 5)),
    ),
    "through_blocks": (lambda c, k: both(c, k).view(-1, 2, 5).exp().sum(1), ROWS, {}),
    "squeeze_all": (lambda c, k, w: F.linear(both(c, k), w[:1]).squeeze() + k[:, :1].squeeze(-1), ROWS, dict(w=W)),
    "stacked_views": (
        lambda c, k, w: (torch.cat([c, k]) @ w).view(2, -1, 5).permute(1, 0, 2).flatten(1),
        PAIR,
        dict(w=randn(K, 5)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "stacked_viewed_otherwise": (
        lambda c, k: torch.cat([c[:, :4], k]).view(-1, 2, 4).sum(1) + k,
        "view",
        "cuts rows apart",
        {},
    ),
}


def test_a_reshape_cuts_a_block_into_few_pieces():
    """Of ten columns the first six are the request's: of two rows of five, all of the first and one of the second."""
    assert rates(EQUAL["through_blocks"][0], "exp", Level.LINEAR, ROWS) == {Rate.REQUEST, Rate.ITEM}

    order = randn(24).argsort()

    def scattered(c: torch.Tensor, k: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        return torch.cat([c, k, c, k, c[:, :4]], 1)[:, order].view(-1, 4, 6).exp().sum(1)

    assert rates(scattered, "exp", Level.LINEAR, ROWS, order=order) == {Rate.PAIR}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)
