"""Norms: as a factor and a shift, by the statistics of blocks, and block by block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, kept

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
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


def in_groups(c: torch.Tensor, k: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Two groups, one of the context and one of both."""
    return F.linear(F.group_norm(both(c, k), 2, b.exp(), b), w)


def along_a_sequence(c: torch.Tensor, k: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Two groups of two channels, each of a history and a target."""
    return F.group_norm(behind(c, k).mT, 2, b, b, eps=1e-3).flatten(1) @ w


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
    "groups_in_part": (in_groups, ROWS, dict(w=W, b=randn(C + K))),
    "groups_interleaved": (
        lambda c, k, w: F.linear(F.group_norm(interleaved(c, k), 2, eps=0.1), w) + F.group_norm(both(c, k), 1)[:, :5],
        ROWS,
        dict(w=W),
    ),
    "groups_along_a_sequence": (along_a_sequence, HISTORY, dict(w=randn(28, 3), b=randn(4))),
    "groups_of_one_and_both_into_a_layer": (
        lambda c, k, w, b: F.linear(F.group_norm(both(c, k).view(-1, 5), 1, b, b), w).view(-1, 2, 3).sum(1).exp(),
        ROWS,
        dict(w=randn(3, 5), b=randn(5)),
    ),
    "instances_along_a_sequence": (
        lambda c, k, w, b: F.instance_norm(behind(c, k).mT, weight=b, bias=b).flatten(1) @ w,
        HISTORY,
        dict(w=randn(28, 3), b=randn(4)),
    ),
    "instances_by_running_statistics": (
        lambda c, k, w, b: F.instance_norm(behind(c, k).mT, b, b.abs(), b, b, False).flatten(1) @ w,
        HISTORY,
        dict(w=randn(28, 3), b=randn(4)),
    ),
    "spread": (
        lambda c, k: both(c, k).var(1) + both(c, k).std(1, correction=0) * both(c, k).std(1, correction=2),
        ROWS,
        {},
    ),
    "spread_into_a_layer": (
        lambda c, k, w: F.linear((both(c, k) - both(c, k).mean(1, True)) / (both(c, k).std(1, keepdim=True) + 0.1), w),
        ROWS,
        dict(w=W),
    ),
    "spread_of_fields": (
        lambda c, k: (
            fields(c, k).var(1, unbiased=False)
            + torch.cat(torch.var_mean(fields(c, k), (1, 2), correction=0, keepdim=True), 1).sum(1)
            + torch.stack(torch.std_mean(fields(c, k), 1)).prod(0)
            + fields(c, k).std(2).sum(1, keepdim=True)
        ),
        FIELDS,
        {},
    ),
    "spread_without_freedom": (lambda c, k: k / both(c, k).var(1, correction=10, keepdim=True), ROWS, {}),
    "spread_of_equal_numbers": (
        lambda c, k: torch.cat([c * 0 + 1, k * 0 + 1], 1).std(1, keepdim=True) + k,
        ROWS,
        {},
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "spread_over_rows": (lambda c, k: both(c, k) / both(c, k).std(0), "std", "over the rows: axis 0 of [rows, 10]", {}),
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


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("groups_in_part", 5 * (K + 1)),  # the candidate's columns, and one of the context by the scale of its group
        # Of several groups what is the candidate's, the context's part by their scales, and the means by their scales.
        ("groups_along_a_sequence", 3 * (4 + 2 + 2)),
        ("instances_along_a_sequence", 3 * (4 + 4 + 4)),
        ("instances_by_running_statistics", 3 * 4),
    ],
)
def test_a_layer_multiplies_what_a_mixed_group_has_of_the_request_once(name: str, left: int):
    call, (context, candidate), weights = EQUAL[name]
    rows = context[torch.arange(4) % 3], candidate[:4]
    program = capture(Function(call, **weights).eval(), rows, ["context"], all_rules())
    assert sum(n.work.multiply_adds for n in kept(program).plan.nodes if n.rate.per_candidate) == left


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)
