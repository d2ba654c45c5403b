"""Norms: as a factor and a shift, by the statistics of blocks, and block by block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    FIELDS,
    HISTORY,
    ROWS,
    C,
    Equal,
    K,
    NearMiss,
    W,
    behind,
    both,
    declines,
    equal_at_every_level,
    fields,
    interleaved,
    numbers,
    rates,
)

randn = numbers(8)


def pieces_of_context(c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Two heads of one token each, twice, of columns in two blocks: `[rows, 2, C]`, one block once it is computed."""
    x = torch.cat([c[:, :2], c[:, 2:].exp()], 1)[:, None]
    y = x
    for number in range(2):
        own, query = (v.reshape(-1, 1, C // 2) for v in (y, F.linear(y, w)))
        shares = torch.softmax((query - query.mean(1, keepdim=True)) @ (own - own.mean(1, keepdim=True)).mT, 2)
        if number:
            shares = shares + F.linear(y, w[:2]).softmax(1).reshape(-1, 1, 1).mT
        y = (shares @ own).reshape(-1, 1, C) + number * y
    return torch.cat([x, (x + y) / 2], 1)


EQUAL: dict[str, Equal] = {
    "batch_norm": (
        lambda c, k, m, v, g, b: F.batch_norm(interleaved(c, k), m, v, g, b).tanh(),
        ROWS,
        dict(m=randn(C + K), v=randn(C + K).abs() + 0.5, g=randn(C + K), b=randn(C + K)),
    ),
    "batch_norm_fields": (
        lambda c, k, m: (
            F.batch_norm(fields(c, k), m[:7], m[:7].abs() + 1).sum(2)
            + F.batch_norm(fields(c, k).mT, m[7:], m[7:].abs() + 1).sum(1)[:, :1]
        ),
        FIELDS,
        dict(m=randn(12)),
    ),
    "layer_norm": (lambda c, k, w: F.linear(F.layer_norm(both(c, k), (C + K,)), w), ROWS, dict(w=W)),
    "norm_of_tokens": (
        lambda c, k, w: F.layer_norm(torch.cat([c, k[:, None]], 1), [4], w).mul(F.rms_norm(c, [4], w)[:, :1]).sum(1),
        HISTORY,
        dict(w=randn(4)),
    ),
    "norm_of_one_side_in_blocks": (
        lambda c, k, w: F.layer_norm(pieces_of_context(c, w), [C]).sum((1, 2)) + k.sum(1),
        ROWS,
        dict(w=randn(C, C)),
    ),
    "groups_of_tokens": (
        lambda c, k, w, b: F.group_norm(behind(c, k).reshape(-1, 4), 2, w, b).view(-1, 7, 4).exp().sum(1),
        HISTORY,
        dict(w=randn(4), b=randn(4)),
    ),
    "groups_of_fields": (
        lambda c, k, w, m: (F.group_norm(fields(c, k), 7, w, w) @ m).exp(),
        FIELDS,
        dict(w=randn(7), m=randn(5, 2)),
    ),
    "groups_of_one_and_both": (
        lambda c, k: F.group_norm(both(c, k).view(-1, 5), 1).view(-1, 2, 5).exp(),
        ROWS,
        {},
    ),
    "groups_of_both": (lambda c, k: F.group_norm(fields(c, k), 1).exp(), FIELDS, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "groups_over_rows": (
        lambda c, k: k + F.group_norm(c.t()[None], 1)[0].t()[:, :4],
        "group_norm",
        "normalises over the rows of [1, 6, rows]",
        {},
    ),
}


@pytest.mark.parametrize("name", ["groups_of_tokens", "groups_of_fields", "groups_of_both"])
def test_groups_are_known_as_early_as_what_is_in_them(name: str):
    call, inputs, weights = EQUAL[name]
    found = rates(call, "exp", Level.LINEAR, inputs, **weights)
    assert found == ({Rate.PAIR} if name == "groups_of_both" else {Rate.REQUEST, Rate.ITEM})


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)
