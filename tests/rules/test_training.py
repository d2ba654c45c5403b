"""Operators in training mode: statistics by counts, and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from rankhoist import GroupedModel, Workload, grouped, verify_gradients
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.runtime.blueprint import Blueprint


class Norms(nn.Module):
    """A batch norm of both sides, by channels of each or by tokens, before anything mixes them."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.norm, self.tokens = nn.BatchNorm1d(8 if tokens else 16), tokens

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        if self.tokens:
            return self.norm(torch.stack([context, candidate], 2)).tanh().sum((1, 2))
        return self.norm(torch.cat([candidate[:, :3], context, candidate[:, 3:]], 1)).tanh().sum(1)


class Drops(nn.Module):
    """The user and the item with about half of their columns dropped, the user's twice."""

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dropped = nn.functional.dropout(torch.cat([user, item], 1), 0.5, self.training)
        return dropped[:, :50], dropped[:, 50:], nn.functional.dropout(user, 0.5, self.training)


def norm_of(tokens: bool, level: Level) -> tuple[set[str], set[str]]:
    """Laws and reasons at a level; gradients and statistics are those of rows."""
    example = (torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64))
    model = Norms(tokens).double()
    captured = capture(model, example, ["context"], all_rules(), training=True)
    plan = attempt(Task(captured, level, Workload(9, 3)))
    certificate = verify_gradients(GroupedModel(model, lambda _: Blueprint.of(captured, single(plan))))
    assert certificate.passed, certificate
    return {o.law for o in plan.interpreter.outcomes.values()}, set(plan.reasons.values())


def dropout_of(dropout: str, level: Level) -> tuple[set[str], set[str]]:
    """Laws and reasons at a level; masks are of rows, or of requests, and none is another."""
    ones = torch.ones(40, 50)
    captured = replace(capture(Drops(), (ones, ones), ["user"], all_rules(), training=True), dropout=dropout)
    plan = attempt(Task(captured, level, Workload(40, 2)))
    step = GroupedModel(Drops(), lambda _: Blueprint.of(captured, single(plan)))
    torch.manual_seed(0)
    user, item, other = step(ones[:2], ones, request_offsets=[0, 20, 40])
    for made in (user, item, other):
        assert set(made.unique().tolist()) == {0.0, 2.0}
        assert abs(float(made.mean()) - 1) < 0.25
    assert not torch.equal(user, other)
    outcomes = plan.interpreter.outcomes.values()
    apart = dropout == "request" and level >= Level.LINEAR  # below, both sides are one tensor, and all of it per row
    assert [len(x.unique(dim=0)) for x in (user, item)] == [2 if apart else 40, 40]
    assert len(other.unique(dim=0)) == (2 if dropout == "request" and level >= Level.REQUEST else 40)
    return {o.law for o in outcomes}, set(plan.reasons.values())


Case = tuple[Callable[[Level], tuple[set[str], set[str]]], str]
EQUAL: dict[str, Case] = {
    "channels_of_both": (partial(norm_of, False), "batch statistics by counts"),
    "masks_of_requests": (partial(dropout_of, "request"), "dropout per request"),
}
NEAR_MISSES: dict[str, Case] = {
    "tokens_of_both": (
        partial(norm_of, True),
        "an axis of [rows, 8, 2] that is not the channels holds both context and candidate",
    ),
    "masks_of_rows": (partial(dropout_of, "rows"), "draws for every row"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_at_every_level(name: str):
    run, law = EQUAL[name]
    for level in (Level.EXPAND, Level.REQUEST, Level.LINEAR, Level.FULL):
        laws, _ = run(level)
        assert (law in laws) == (level >= Level.LINEAR or (law == "dropout per request" and level >= Level.REQUEST))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name: str):
    run, reason = NEAR_MISSES[name]
    laws, reasons = run(Level.LINEAR)
    assert reason in reasons
    assert not laws & {law for _, law in EQUAL.values()}


def test_what_is_not_trained_has_no_mask():
    ones = torch.ones(40, 50)
    assert torch.equal(grouped(Drops().eval(), (ones, ones), context=["user"])(ones[:1], ones)[0], ones)


class Largest(nn.Module):
    """The largest of three numbers of which two are the user's, all scaled."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.user, self.item, self.of = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4)), of

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.of(torch.stack([user * self.user, user * self.user, item * self.item], 2))


LARGEST: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda x: x.amax(2),
    "amin": lambda x: x.amin(2),
    "max": lambda x: x.max(2).values,
    "max_pool": lambda x: nn.functional.max_pool1d(x, 3).squeeze(2),
    "adaptive_max_pool": lambda x: nn.functional.adaptive_max_pool1d(x, 1).squeeze(2),
}


@pytest.mark.parametrize("of", LARGEST)
def test_equal_numbers_share_a_gradient_as_on_rows(of: str):
    model, ones = Largest(LARGEST[of]).double(), torch.ones(6, 4, dtype=torch.float64)
    step = grouped(model, (torch.randn_like(ones), torch.randn_like(ones)), context=["user"])
    weights = [model.user, model.item]
    expected = torch.autograd.grad(model(ones, ones).sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(step(ones[:1], ones).sum(), weights), expected)
