"""Scans along a history, then a target: what comes before the target is the request's."""

from __future__ import annotations

import pytest
import torch
from helpers import Function, check_model, rates_of

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    HISTORY,
    ROWS,
    Call,
    Equal,
    N,
    NearMiss,
    behind,
    both,
    declines,
    equal_at_every_level,
    numbers,
    rates,
)

randn = numbers(9)

EQUAL: dict[str, Equal] = {
    "cumsum_keepdim": (lambda c, k: both(c, k).cumsum(1) + both(c, k).sum(-1, keepdim=True), ROWS, {}),
    "history_with_target": (
        lambda c, k, w: (torch.cat([c, k.unsqueeze(1)], 1) @ w).cumsum(1)[:, -1],
        HISTORY,
        dict(w=randn(4, 4)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "cumsum_over_rows": (
        lambda c, k: c.cumsum(0).mean(1, True) + k,
        "cumsum",
        "over the rows: axis 0 of [rows, 6]",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


# -- behind a history

TOKENS = randn(3, 5, 4), randn(N, 4)  # a history and its target
SCANS: dict[str, Call] = {
    "cumsum": lambda c, k: behind(c, k).cumsum(1),
    "cumsum.dtype": lambda c, k: (behind(c, k) * 4).long().cumsum(1, dtype=torch.float64),
    "cumsum.whole": lambda c, k: (behind(c, k) > 0).cumsum(1),
    "cumprod": lambda c, k: behind(c, k).cumprod(1),
    "logcumsumexp": lambda c, k: behind(c, k).logcumsumexp(-2),
    "cummax": lambda c, k: torch.cummax(behind(c, k).mul(2).round(), 1),
    "cummin": lambda c, k: torch.cummin(behind(c, k).mul(2).round(), 1),
    "cumsum.in_the_middle": lambda c, k: torch.cat([c, k[:, None], c], 1).cumsum(1),
    "cumsum.two_targets": lambda c, k: torch.cat([c, k[:, None], k[:, None].exp()], 1).cumsum(1),
}


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_scans_are_equal(length: int):
    check_model(Function(lambda c, k: [f(c, k) for f in SCANS.values()]).eval(), randn(3, length, 4), randn(N, 4))


@pytest.mark.parametrize("name", SCANS)
def test_most_of_it_is_the_requests(name: str):
    call, operator = SCANS[name], name.split(".")[0]
    assert Rate.REQUEST in rates(call, operator, Level.LINEAR, TOKENS)
    assert Rate.REQUEST not in rates(call, operator, Level.REQUEST, TOKENS)


WHOLE: dict[str, Call] = {  # near misses that another law takes: the whole axis, as one tensor
    "target_in_front": lambda c, k: torch.cat([k[:, None], c], 1).cumsum(1),
    "every_other_position": (lambda c, k: torch.stack([c, k[:, None].expand(-1, 5, -1)], 2).flatten(1, 2).cumsum(1)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_it_is_the_candidates(name: str):
    models = check_model(Function(WHOLE[name]).eval(), *TOKENS)
    assert rates_of(models["full"], "cumsum") == {Rate.PAIR}
