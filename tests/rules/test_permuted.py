"""Rows in another order, and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, kept, rates_of, repeated
from torch import Tensor

from rankhoist import HoistedModel
from rankhoist.capture import capture
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    CANDIDATE,
    CONTEXT,
    OFFSETS,
    ROWS,
    C,
    Equal,
    K,
    N,
    NearMiss,
    declines,
    equal_at_every_level,
    numbers,
)

randn = numbers(17)

W = dict(w=randn(K, C))


def placed(order: Tensor) -> Tensor:
    """What undoes an order, as `torch.nn.utils.rnn` makes it."""
    undone = torch.empty_like(order)
    return undone.scatter_(0, order, torch.arange(order.shape[0]))


def assigned(order: Tensor) -> Tensor:
    undone = torch.zeros_like(order)
    undone[order] = torch.arange(order.shape[0])
    return undone


def there_and_back(undone: Callable[[Tensor], Tensor], by: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A layer over rows in the order of a number of each, and back."""

    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        order = by(c, k).argsort(descending=True)
        return F.linear(c[order], w).tanh()[undone(order)] * k

    return call


def sorted_twice(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """The numbers themselves are read in their order, and so are states on a later axis; both sides are ordered."""
    first, order = c[:, 0].sort(descending=True)
    _, undone = order.sort()
    states = F.linear(c.index_select(0, order) * first.unsqueeze(1), w).tanh().unsqueeze(0)
    own = torch.cat([c[order], k[order]], 1)[undone]
    return states[:, undone][0] * k + states.index_select(1, undone.clone()).squeeze(0) + own[:, 1 : 1 + K]


def own_places(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A place of every row, counted by the row's number."""
    order = c[:, 1].argsort()
    places = (c[order] > 0).sum(1)
    return (
        F.linear(F.pad(c, (0, 1))[order][torch.arange(k.shape[0]), places][order.argsort()].unsqueeze(1), w[:, :1]) * k
    )


def never_undone(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return (F.linear(c, w).tanh() * k)[k[:, 0].argsort()]


def another_order(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return F.linear(c[c[:, 0].argsort()], w).tanh()[k[:, 0].argsort().argsort()] * k


def the_same_order(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    order = k[:, 1].argsort()
    return F.linear(k[order], w[:, :K]).tanh()[order] * k + F.linear(k[order], w[:, :K])[order.argsort(descending=True)]


def two_orders(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    first, second = c[:, 0].argsort(), k[:, 0].argsort()
    return (k[first] * k[second])[second.argsort()]


def mixed_with_rows_as_they_are(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    order = k[:, 0].argsort()
    return (F.linear(c[order], w) + k)[order.argsort()]


of_context, of_candidate = (lambda c, k: c[:, 2]), (lambda c, k: k[:, 0])
EQUAL: dict[str, Equal] = {
    "sorted_again": (there_and_back(torch.argsort, of_context), ROWS, W),
    "by_a_candidate": (there_and_back(torch.argsort, of_candidate), ROWS, W),
    "assigned": (there_and_back(assigned, of_context), ROWS, W),
    "sorted_twice": (sorted_twice, ROWS, W),
    "own_places": (own_places, ROWS, W),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "several_numbers_per_row": (lambda c, k: k * c.sort(0)[0][:, :K], "sort", "reduces over the rows", {}),
    "rows_under_rows": (
        lambda c, k: k * torch.cat([c, c + 1])[c[:, 0].argsort()][:, :K],
        "index",
        "axis 0 of [(2 rows), 6] is read in an order of rows",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


UNDONE = {name: EQUAL[name][0] for name in ("sorted_again", "by_a_candidate", "assigned", "own_places")}


@pytest.mark.parametrize("call", [*UNDONE.values(), there_and_back(placed, of_context)])
def test_what_is_undone_is_never_done(call):
    """A layer of the request runs once per request, whatever sorts the rows."""
    made = hoisted_and_equal(call)
    assert rates_of(made, "tanh") <= {Rate.REQUEST} and orders_made(made) == 0


@pytest.mark.parametrize(
    ("call", "orders"),
    [(another_order, 2), (the_same_order, 1), (two_orders, 2), (never_undone, 1), (mixed_with_rows_as_they_are, 1)],
)
def test_rows_that_stay_in_another_order(call, orders):
    assert orders_made(hoisted_and_equal(call)) >= orders


def hoisted_and_equal(call: Callable[..., Tensor]) -> HoistedModel:
    model = Function(call, **W).eval()
    program = capture(model, (CONTEXT[torch.arange(8) % 3], CANDIDATE[torch.arange(8) % N]), ["context"])
    made = kept(program)
    assert_equal(made(CONTEXT, CANDIDATE, request_offsets=OFFSETS), model(repeated(CONTEXT, OFFSETS), CANDIDATE))
    one = CONTEXT[:1].expand(N, -1)
    assert_equal(made(CONTEXT[:1], CANDIDATE), model(one, CANDIDATE))
    return made


def orders_made(made: HoistedModel) -> int:
    """How often all rows are sorted."""
    kinds = [str(n.target) for v in made.stages.variants for n in v.candidate.module.graph.nodes]
    return sum(kind.startswith(("aten.sort", "aten.argsort")) for kind in kinds)
