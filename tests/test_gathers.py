"""Pairs that index lists choose, multiplied and summed: gathers of a candidate's fields are products."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import Function, assert_equal, check_model, kept, repeated
from torch import Tensor, nn

from rankhoist import HoistedModel, verify
from rankhoist.capture import capture
from rankhoist.compiler.algebra import contract

OFFSETS = [0, 4, 4, 11]
Summed = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def weighed(v: Tensor, i: Tensor, j: Tensor, w: Tensor, _: Tensor) -> Tensor:
    """A number per pair."""
    return ((v[:, i] * v[:, j]).sum(-1) * w).sum(1)


def by_matrix(v: Tensor, i: Tensor, j: Tensor, _: Tensor, m: Tensor) -> Tensor:
    """A matrix per pair."""
    return ((v[:, i].unsqueeze(2) @ m).squeeze(2) * v[:, j]).sum((1, 2))


def selected(v: Tensor, i: Tensor, j: Tensor, w: Tensor, _: Tensor) -> Tensor:
    return torch.einsum("bpd,bpd,p->b", v.index_select(1, i), v.index_select(1, j), w)


def counted(v: Tensor, i: Tensor, j: Tensor, w: Tensor, _: Tensor) -> Tensor:
    """Every pair counts one."""
    return (v[:, i] * v[:, j]).sum((1, 2))


SUMS: dict[str, Summed] = {"weighed": weighed, "by_matrix": by_matrix, "selected": selected, "counted": counted}


class Pairs(nn.Module):
    """Fields of the candidate between those of the context; all pairs, in random order."""

    def __init__(self, fields: tuple[int, int], width: int, summed: Summed) -> None:
        super().__init__()
        self.before, self.summed, count = fields[0] // 2, summed, sum(fields)
        pairs = torch.triu_indices(count, count, 1)[:, torch.randperm(count * (count - 1) // 2)]
        self.register_buffer("i", pairs[0])
        self.register_buffer("j", pairs[1])
        self.w = nn.Parameter(torch.randn(pairs.shape[1]))
        self.m = nn.Parameter(torch.randn(pairs.shape[1], width, width))

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        v = torch.cat([context[:, : self.before], candidate, context[:, self.before :]], 1)
        return self.summed(v, self.i, self.j, self.w, self.m)


def hoisted_pairs(fields: tuple[int, int], width: int, summed: Summed, seed: int) -> HoistedModel:
    """Every form kept, as after the check that scores are equal."""
    torch.manual_seed(seed)
    model = Pairs(fields, width, summed).double().eval()
    context, candidate = (torch.randn(11, n, width, dtype=torch.float64) for n in fields)
    hoisted = kept(capture(model, (context, candidate), ["context"]))
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(11, -1, -1), candidate))
    expected = model(repeated(context[:3], OFFSETS), candidate)
    assert_equal(hoisted(context[:3], candidate, request_offsets=OFFSETS), expected)
    return hoisted


def gathered(hoisted: HoistedModel) -> int:
    """Elements per candidate that are gathered at constant places."""
    own = [n for n in hoisted.plan.nodes if n.rate.per_candidate and n.op is torch.ops.aten.index_select.default]
    return sum(math.prod(n.shape) for n in own)


def worked(hoisted: HoistedModel) -> int:
    """Multiply-adds and elements written per candidate."""
    own = [n.work for n in hoisted.plan.nodes if n.rate.per_candidate]
    return sum(w.multiply_adds + w.elements for w in own)


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("seed", range(2))
def test_a_candidates_fields_meet_what_is_summed_up_for_them(name: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    """Of Fc Fk pairs of both sides Fk products are left; those of the candidate with itself are gathered for."""
    generator = torch.Generator().manual_seed(seed)
    fc, fk, width = (int(torch.randint(*x, (), generator=generator)) for x in ((5, 9), (2, 4), (2, 6)))
    found = hoisted_pairs((fc, fk), width, SUMS[name], seed)
    assert gathered(found) <= fk * (fk - 1) * width
    monkeypatch.setattr(contract, "as_products", lambda b, factors, *_: factors)
    as_it_was = hoisted_pairs((fc, fk), width, SUMS[name], seed)
    assert gathered(as_it_was) >= fc * fk * width
    assert worked(found) < worked(as_it_was)


NEAR_MISSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "no_place_twice": lambda c, k, i, w: (k[:, i[:3]] * k[:, :3]).sum(2) @ w[:3] * c[:, 0, 0],
    "pairs_are_results": lambda c, k, i, w: (c[:, :6] * k[:, i]).sum(2) * w,
    "nonlinear_between": lambda c, k, i, w: ((c[:, :6] * k[:, i]).sum(2).tanh() * w).sum(1),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_stays_a_gather(name: str):
    torch.manual_seed(0)
    index = torch.tensor([0, 2, 1, 1, 0, 2])
    model = Function(NEAR_MISSES[name], i=index, w=torch.randn(6, dtype=torch.float64)).eval()
    context, candidate = torch.randn(3, 7, 4, dtype=torch.float64), torch.randn(7, 4, 4, dtype=torch.float64)
    models = check_model(model, context, candidate)
    assert gathered(models["kept"]) >= (3 if name == "no_place_twice" else 6) * 4


# -- maps of what is gathered

Chosen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MAPPED: dict[str, Chosen] = {
    "joined": lambda x, i, j, w, m: torch.cat([x[:, i], x[:, j]], 2) @ w,
    "by_matrix": lambda x, i, j, w, m: x[:, i] @ m,
    "selected": lambda x, i, j, w, m: torch.einsum("bpd,de->bpe", x.index_select(1, j), m) * x[:, i],
    "by_candidate": lambda x, i, j, w, m: torch.einsum("bpd,bd->bp", x[:, i], x[:, 0]),
}
PAIR_BY_PAIR: dict[str, Chosen] = {
    "no_place_twice": lambda x, i, j, w, m: x[:, [3, 1, 6, 0]] @ m,
    "a_matrix_per_pair": lambda x, i, j, w, m: torch.einsum("bpd,pde->bpe", x[:, i], torch.ones(49, 1, 1) * m),
}


def mapped(name: str) -> HoistedModel:
    """Four fields of the context, three of the candidate, and each is a function of both sides, so nothing of it is
    the request's; all pairs of them.
    """
    torch.manual_seed(0)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
    weights = dict(i=pairs[0], j=pairs[1], w=torch.randn(10, 1).double(), m=torch.randn(5, 5).double())

    def forward(c: Tensor, k: Tensor, **given: Tensor) -> Tensor:
        both = torch.cat([c, k], 1)
        return (MAPPED | PAIR_BY_PAIR)[name](torch.tanh(both + both.sum(1, keepdim=True)), **given).tanh().sum(1)

    model = Function(forward, **weights).eval()
    context, candidate = (torch.randn(11, n, 5, dtype=torch.float64) for n in (4, 3))
    hoisted = kept(capture(model, (context, candidate), ["context"]))
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(11, -1, -1), candidate))
    expected = model(repeated(context[:3], OFFSETS), candidate)
    assert_equal(hoisted(context[:3], candidate, request_offsets=OFFSETS), expected)
    return hoisted


@pytest.mark.parametrize(
    "name, multiply_adds",
    # a map per field, not per pair; below, a place is read once, and every place by a matrix of its own
    {"joined": 7 * 10, "by_matrix": 7 * 25, "selected": 7 * 25, "by_candidate": 7 * 5,
     "no_place_twice": 4 * 25, "a_matrix_per_pair": 49 * 25}.items(),
)  # fmt: skip
def test_maps_fields_and_not_their_pairs(name: str, multiply_adds: int):
    own = [n.work.multiply_adds for n in mapped(name).plan.nodes if n.rate.per_candidate]
    assert sum(own) == multiply_adds


def test_gathers_side_by_side_are_one():
    """The seven fields are joined, and not the 49 that are read of them."""
    nodes = [n for n in mapped("by_matrix").plan.nodes if n.rate.per_candidate]
    assert [n.shape for n in nodes if n.op is torch.ops.aten.cat.default] == [(7, 5)]
    assert len([n for n in nodes if n.op is torch.ops.aten.index_select.default]) == 1


def test_moves_to_another_dtype():
    torch.manual_seed(0)
    model = Pairs((6, 3), 4, weighed).eval()
    hoisted = kept(capture(model, (torch.randn(5, 6, 4), torch.randn(5, 3, 4)), ["context"]))
    assert verify(hoisted, model, seed=1, candidates=[1, 9], requests=[1, 3]).passed
