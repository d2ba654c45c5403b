"""Concatenations, paddings, broadcasts and repeats; rows under rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, rates_of, reasons
from torch import Tensor

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    FIELDS,
    HISTORY,
    PAIR,
    ROWS,
    C,
    Equal,
    K,
    NearMiss,
    behind,
    declines,
    equal_at_every_level,
    fields,
    numbers,
    rates,
)

randn = numbers(4)


def one_part(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Tokens, folded with the rows by what packs tensors of any depth, here one."""
    return F.linear(torch.cat([fields(c, k).reshape(-1, 5)]), w).view(-1, 7, 3)


def padded(c: Tensor, k: Tensor) -> Tensor:
    """Tokens with copies of others before and behind them, added up: `[rows, 15]`."""
    x = fields(c, k).transpose(1, 2)
    around = F.pad(x, (2, 3), mode="circular") + F.pad(x, (1, 4), mode="reflect")
    return F.pad(around, (1, 2), mode="replicate").relu().sum(1)


def heads(c: Tensor, k: Tensor) -> Tensor:
    """Two of every token, folded with the rows: `[(rows 2), 7, 2]`."""
    return behind(c, k).view(-1, 7, 2, 2).transpose(1, 2).reshape(-1, 7, 2)


def other_folds(c: Tensor, k: Tensor) -> Tensor:
    """The same 14 places of a row, once as heads and tokens, once as they are, beside a number for each."""
    x, y = heads(c, k).reshape(-1, 2), behind(c, k).view(-1, 14, 2).reshape(-1, 2)
    return (torch.cat([x.new_ones(x.shape[0], 1), x], 1).exp()[:, :2] * (x + y).exp()).view(-1, 14, 2).sum(1)


def for_all_rows(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Heads times a matrix of each, which is repeated for every row, and for two of every row."""
    x = heads(c, k)
    twice = torch.cat([x.view(-1, 2, 7, 2)] * 2, 1).view(-1, 7, 2)
    scores = x.bmm(w.repeat(x.shape[0] // 2, 1, 1)).exp().view(-1, 2, 7, 3).sum(1)
    return scores.sum(1) + twice.bmm(w.repeat(2 * len(c), 1, 1)).exp().view(-1, 28, 3).sum(1)


def repeated_each(c: Tensor, k: Tensor) -> Tensor:
    """Tokens, each as often as a constant says, times a number of columns and rows that are all repeated twice."""
    x, two = behind(c, k), torch.tensor([2])
    tokens = x.repeat_interleave(torch.tensor([3, 0, 2, 1, 0, 4, 6]), 1).exp().flatten(1)
    halves = x.repeat_interleave(two, -1, output_size=8).exp().sum((1, 2))
    rows = halves.repeat_interleave(two, 0, output_size=2 * x.shape[0])
    return tokens * rows.view(-1, 2).sum(1, keepdim=True)


EQUAL: dict[str, Equal] = {
    "one_part": (one_part, FIELDS, dict(w=randn(3, 5))),
    "padded_by_copies": (padded, FIELDS, {}),
    "expand_repeat": (
        lambda c, k: (c.unsqueeze(1).expand(-1, 3, -1) + k[:, 0].view(-1, 1, 1)).sum(2) + k[:, :1].repeat(1, 3),
        ROWS,
        {},
    ),
    "repeat_interleave": (lambda c, k: (c.repeat_interleave(2, 0).view(-1, 2, C) * k[:, None, :1]).sum(1), ROWS, {}),
    "repeated_each": (repeated_each, HISTORY, {}),
    "for_all_rows": (for_all_rows, HISTORY, dict(w=randn(2, 2, 3))),
    "stacked_nested": (
        lambda c, k: (
            torch.cat([torch.cat([c, k]), k]).sigmoid().view(3, -1, K).prod(0)
            + torch.cat([torch.cat([c, k]), k]).narrow(0, c.shape[0], c.shape[0])
        ),
        PAIR,
        {},
    ),
    "stacked_with_numbers": (
        lambda c, k: (
            torch.cat([x := torch.cat([c, k]), torch.where(x > 0, x, torch.full_like(x, -3.0) * 2)], 1)
            .view(2, -1, 2 * K)
            .prod(0)
        ),
        PAIR,
        {},
    ),
    "numbers_beside_stacked": (
        lambda c, k: torch.cat([torch.ones_like(x := torch.cat([c, k])) * 2, x], 1).view(2, -1, 2 * K).prod(0),
        PAIR,
        {},
    ),
    "padded_heads": (
        lambda c, k: F.pad(heads(c, k), (0, 0, 2, 1), value=0.5).exp().view(-1, 2, 10, 2).sum((1, 2)),
        HISTORY,
        {},
    ),
    "other_folds": (other_folds, HISTORY, {}),
    "stacked_repeat": (lambda c, k: (c.repeat(2, 1) * torch.cat([k, k + 1])).view(2, -1, K).prod(0), PAIR, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "rows_padded_by_copies": (
        lambda c, k: F.pad((c[:, :4] * k).t()[None], (0, 1), mode="replicate")[0, :, 1:].t(),
        "pad",
        "works along the row axis",
        {},
    ),
    "repeated_by_an_input": (
        lambda c, k: (
            k.repeat_interleave((k[:, 0] * 0).long() + 2, 0, output_size=2 * k.shape[0]).view(-1, 2, K) * 2
        ).sum(1),
        "repeat_interleave",
        "as often as a tensor says that depends on the inputs",
        {},
    ),
    "stacked_inside": (
        lambda c, k: torch.cat([c[:, :4].repeat_interleave(2, 0), k])[: c.shape[0]] + k,
        "cat",
        "puts [(rows 2), 4] under rows: another axis is folded inside of its rows",
        {},
    ),
    "stacked_with_a_weight": (
        lambda c, k, w: torch.cat([k, w])[: k.shape[0]] * c[:, :4],
        "cat",
        "or it has none",
        dict(w=randn(2, 4)),
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize("name", ["stacked_with_numbers", "numbers_beside_stacked"])
def test_numbers_take_the_order_of_rows_and_parts(name: str):
    call, inputs, _ = EQUAL[name]
    assert not [r for r in reasons(check_model(Function(call).eval(), *inputs)["full"]) if "fold rows" in r]


@pytest.mark.parametrize("name", ["padded_heads", "other_folds"])
def test_what_is_folded_with_the_rows_keeps_its_rates(name: str):
    call, inputs, _ = EQUAL[name]
    assert {Rate.REQUEST, Rate.ITEM} <= rates(call, "exp", Level.LINEAR, inputs)


def test_constants_for_all_rows_keep_what_they_meet():
    assert rates(for_all_rows, "bmm", Level.LINEAR, HISTORY, w=randn(2, 2, 3)) == {Rate.REQUEST, Rate.ITEM}


def test_what_is_repeated_by_constants_keeps_its_rates():
    made = check_model(Function(repeated_each).eval(), *HISTORY)["kept"]
    assert rates_of(made, "exp") == {Rate.REQUEST, Rate.ITEM}
    assert not reasons(made)


def test_one_part_and_copies_keep_what_is_computed_once():
    w = randn(3, 5)
    plain = check_model(Function(lambda c, k, w: F.linear(fields(c, k), w), w=w).eval(), *FIELDS)
    packed = check_model(Function(one_part, w=w).eval(), *FIELDS)
    around = Function(lambda c, k, w: F.linear(F.pad(fields(c, k), (0, 0, 2, 2), mode="circular"), w), w=w)
    wrapped = check_model(around.eval(), *FIELDS)
    for level in ("linear", "full"):
        own = plain[level].plan.cost.multiply_adds
        assert packed[level].plan.cost.multiply_adds == own, level
        assert wrapped[level].plan.cost.multiply_adds < 1.01 * own, "copies of the context are the request's"
