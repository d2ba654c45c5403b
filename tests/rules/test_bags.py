"""Bags of values: what is made of the bags of one side is that side's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bagged import IDS, bags, check, ends, starts
from helpers import rates_of
from torch import Tensor, nn

from rankhoist import HoistedModel
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import Call, numbers

WIDTH = 4
SIZES = (0, 3, 6, 1, 0, 7, 2, 5)
randn = numbers(11)
TABLE = {"w": randn(IDS, WIDTH)}
SIDES: tuple[dict[str, Any], dict[str, Any]] = (
    {"c": bags((4, 0, 9), True, 1)},
    {"k": bags(SIZES, seed=2), "x": randn(len(SIZES), WIDTH)},
)
ROWS = {"c": bags(SIZES, True, 3), "k": bags(SIZES[::-1], seed=4), "x": randn(len(SIZES), WIDTH)}


class Bagged(nn.Module):
    """A function of the ids `c [total]` of the context, with weights `v` and lengths `n [rows]`, of the candidate's ids
    `k` with lengths `m`, and of its numbers `x [rows, WIDTH]`.
    """

    def __init__(self, call: Call, w: Tensor) -> None:
        super().__init__()
        self.call, self.w = call, nn.Parameter(w, requires_grad=False)

    def forward(self, c: Tensor, v: Tensor, n: Tensor, k: Tensor, m: Tensor, x: Tensor) -> Any:
        return self.call(c, v, n, k, m, x, self.w)


def arguments(rows: dict[str, Any]) -> tuple[Tensor, ...]:
    context, candidate = rows["c"], rows["k"]
    return *context.values, context.lengths, *candidate.values, candidate.lengths, rows["x"]


@functools.cache
def checked(call: Call, levels: Sequence[Level] = tuple(Level)) -> list[HoistedModel]:
    """Equal at these levels."""
    model, lengths = Bagged(call, **TABLE).eval(), {"lengths": "n"}
    jagged = {"c": lengths, "v": lengths, "k": {"lengths": "m"}}
    context = ["c", "v", "n"]
    return check(model, arguments(ROWS), context, jagged, SIDES, lambda rows: model(*arguments(rows)), levels)


def one(n: Tensor, m: Tensor) -> list[int]:
    """How many values each side has, as a model reads it."""
    sizes = [n.sum().item(), m.sum().item()]
    for size in sizes:
        torch._check(size >= 0)
    return sizes


def of_keys(c: Tensor, n: Tensor, k: Tensor, m: Tensor, w: Tensor) -> Tensor:
    """The bags of both sides by one lookup, as containers of features do it: `[2, rows, WIDTH]`."""
    found = F.embedding_bag(torch.cat([c, k]), w, starts(torch.cat([n, m])), mode="sum")
    return found.view(2, n.shape[0], WIDTH)


def by_key(c: Tensor, n: Tensor, k: Tensor, m: Tensor, w: Tensor) -> Tensor:
    """The values of both sides cut at sums of lengths by key."""
    sizes = [s.item() for s in torch.stack([n, m]).sum(1).unbind(0)]
    for size in sizes:
        torch._check(size >= 0)
    left, right = torch.cat([c, k]).split(sizes)
    return F.embedding_bag(left, w, starts(n)) * F.embedding_bag(right, w, starts(m))


EQUAL: dict[str, Call] = {
    "sum": lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, starts(n), mode="sum"),
    "mean": lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, ends(n), include_last_offset=True),
    "max": lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, starts(n), mode="max", padding_idx=3),
    "weights": lambda c, v, n, k, m, x, w: (
        x * F.embedding_bag(c, w, starts(n), mode="sum", per_sample_weights=v)
    ),
    "padded": lambda c, v, n, k, m, x, w: (
        x * F.embedding_bag(c, w, F.pad(n.cumsum(0), (1, 0)), mode="sum", include_last_offset=True)
    ),
    "starts_of_ends": lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, ends(n)[:-1]),
    "lengths_again": lambda c, v, n, k, m, x, w: x * (n.cumsum(0) - starts(n))[:, None],
    "of_keys": lambda c, v, n, k, m, x, w: (x * of_keys(c, n, k, m, w)).sum(0),
    "by_key": lambda c, v, n, k, m, x, w: x * by_key(c, n, k, m, w),
    "cut": lambda c, v, n, k, m, x, w: (
        x * F.embedding_bag(torch.cat([c, k])[: one(n, m)[0]], w, starts(n), mode="sum")
    ),
    "of_one_length": lambda c, v, n, k, m, x, w: x * of_one_length(F.embedding(c, w), n).softmax(1).sum(1).tanh(),
    "apart": lambda c, v, n, k, m, x, w: (
        x.new_zeros(x.shape).index_add(0, owner(n), torch.tanh(F.embedding(c, w) @ w[:WIDTH]) * 2) * x
    ),
}  # fmt: skip


def of_one_length(values: Tensor, n: Tensor) -> Tensor:
    """The first values of each bag, `[rows, 5, WIDTH]`, and zeros."""
    return torch.ops.aten._jagged_to_padded_dense_forward(values, [ends(n)], [5], 0.0)


def owner(lengths: Tensor) -> Tensor:
    """The row of every value."""
    return torch.repeat_interleave(torch.arange(lengths.shape[0]), lengths)


NEAR_MISSES: dict[str, tuple[Call, str, str]] = {
    "other_bags": (
        lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, starts(n.flip(0))), "embedding_bag",
        "cut into bags by other lengths than their own",
    ),
    "lengths_of_others": (
        lambda c, v, n, k, m, x, w: x * of_one_length(F.embedding(c, w), n.flip(0)).sum(1),
        "_jagged_to_padded_dense_forward", "cut into bags by other lengths than their own",
    ),
    "of_both": (
        lambda c, v, n, k, m, x, w: x * of_one_length(F.embedding(torch.cat([c, k]), w), torch.cat([n, m])).sum((0, 1)),
        "_jagged_to_padded_dense_forward", "of several inputs together",
    ),
    "no_first_bag": (
        lambda c, v, n, k, m, x, w: x * F.embedding_bag(c, w, ends(n)).sum(0),
        "embedding_bag", "offsets that are not those of their lengths",
    ),
    "computed_table": (
        lambda c, v, n, k, m, x, w: x * F.embedding_bag(c.clamp(max=1), x, starts(n)), "embedding_bag",
        "the table is no weight",
    ),
    "weights_of_rows": (
        lambda c, v, n, k, m, x, w: (
            x * F.embedding_bag(c, w, starts(n), mode="sum", per_sample_weights=v.softmax(0))
        ), "softmax", "works along the row axis",
    ),
    "not_behind_zero": (
        lambda c, v, n, k, m, x, w: x * F.pad(n.cumsum(0), (1, 0), value=1.0)[1:, None], "pad",
        "something other than 0 before sums of lengths",
    ),
    "other_lengths": (
        lambda c, v, n, k, m, x, w: x * (m.cumsum(0) - n)[:, None], "sub", "other than lengths of the same bags",
    ),
    "kept_axis": (lambda c, v, n, k, m, x, w: x * n.sum(0, keepdim=True), "sum", "keeps the axis of rows"),
    "no_inputs_lengths": (lambda c, v, n, k, m, x, w: x * (n + m).sum(), "sum", "no lengths of an input"),
    "cut_in_the_middle": (
        lambda c, v, n, k, m, x, w: x * ends(n)[0:1], "slice", "cuts sums of lengths from 0 to 1",
    ),
    "first_values": (
        lambda c, v, n, k, m, x, w: x * v[:1].sum(), "slice", "cuts values where those of no input end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_equal_at_every_level(name: str):
    checked(EQUAL[name])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name: str):
    call, operator, reason = NEAR_MISSES[name]
    hoisted = checked(call, (Level.REQUEST, Level.FULL))[-1]
    named = {n.name for n in hoisted.program.graph.nodes if str(n.target).startswith(f"aten.{operator}.")}
    why = hoisted.plan.reasons
    declined = [name for name in named if reason in why.get(name, "")]
    assert declined, why
    assert [name for name in declined if Rate.REQUEST in hoisted.plan.interpreter.outcomes[name].rates] == []


def test_what_reads_a_padded_history_is_done_per_request():
    for hoisted in checked(EQUAL["of_one_length"])[2:]:
        assert rates_of(hoisted, "softmax") == {Rate.REQUEST}, hoisted.level


@pytest.mark.parametrize("name", ["sum", "mean", "max", "weights", "padded", "starts_of_ends", "of_keys", "by_key"])
def test_bags_of_the_context_are_looked_up_per_request(name: str):
    for hoisted in checked(EQUAL[name])[1:]:
        assert Rate.REQUEST in rates_of(hoisted, "embedding_bag"), hoisted.level
