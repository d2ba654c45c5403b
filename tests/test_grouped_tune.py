"""Tuned steps of grouped models: what is measured decides, and nothing but that is changed. No test reads a clock."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from helpers import repeated
from torch import Tensor, nn

from rankhoist import GroupedModel, Workload, grouped, verify_gradients
from rankhoist.compiler.plan import Way
from rankhoist.compiler.targets.timing import Timing
from rankhoist.errors import InputError, VerificationError
from rankhoist.runtime import tune
from rankhoist.training.graph import Graph

BATCH = Workload(400, 4)
OFFSETS = [0, 100, 100, 250, 400]


class Ranker(nn.Module):
    """A batch norm over both sides, dropout on the context, and wide layers that pay."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.drop = nn.Embedding(20, 64, sparse=True), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(72)
        self.top = nn.Sequential(nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.top(self.norm(torch.cat([self.drop(self.user(user)), item], 1))).squeeze(1)


def rows(count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(count)
    return torch.randint(20, (count,), generator=g), torch.randn(count, 8, generator=g)


@lru_cache
def made(dropout: str, level: str) -> GroupedModel:
    torch.manual_seed(0)
    return grouped(Ranker(), rows(9), context=["user"], workload=BATCH, dropout=dropout, level=level)


def group(dropout: str = "rows", level: str = "linear") -> GroupedModel:
    """A copy: others read the one that it is made from."""
    return copy.deepcopy(made(dropout, level))


@pytest.fixture
def wins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times as they are told: the plan that is in the list takes one millisecond, all others more by their numbers."""
    told = [0]

    def timed(calls: Mapping[Way, Callable[[], Any]], *args: Any, **kwargs: Any) -> dict[Way, Timing]:
        for call in calls.values():
            call()
        medians = {key: 1.0 if key.plan in told else 2.0 + key.plan for key in calls}
        return {key: Timing(m, m, m, 5) for key, m in medians.items()}

    monkeypatch.setattr(tune, "interleaved", timed)
    monkeypatch.setattr(tune, "HOPELESS", 1e9)
    return told


def assert_of_rows(step: GroupedModel) -> None:
    users, items = rows(400)
    expected = copy.deepcopy(step.original)(repeated(users[:4], OFFSETS), items)
    assert torch.allclose(step(users[:4], items, request_offsets=OFFSETS), expected, atol=1e-5)


def test_what_won_is_used_and_shown(wins):
    step = group(level="full")
    step.drop.eval()
    plain = step.graph
    assert step.tune() is step
    assert step.graphs.at(400, 4) is step.graph is not plain
    text = str(step.report())
    assert "Tuned on " in text and "the original" in text, text
    assert_of_rows(step)
    assert verify_gradients(step, candidates=(400,), requests=(4,))
    wins[0] = original = step.graphs.plans.original
    step.tune([300], [4])
    assert step.graphs.at(300, 4) is step.graphs.graphs[original] is not step.graph
    assert step.graphs.at(20, 4) is step.graphs.at(300, 1) is step.graph, "elsewhere the plan for the workload stands"
    assert_of_rows(step)
    assert verify_gradients(step, candidates=(300,), requests=(4,))


def test_nothing_else_is_changed(wins):
    step = group()
    state, random = copy.deepcopy(step.state_dict()), torch.get_rng_state()
    kept = step.top[0].weight.grad = torch.ones_like(step.top[0].weight)
    step.tune()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(x, state[name]) for name, x in step.state_dict().items())
    assert step.top[0].weight.grad is kept and bool((kept == 1).all())
    assert all(p.grad is None for p in step.parameters() if p is not step.top[0].weight)


def test_every_mode_is_tuned_by_itself(wins):
    step = group().tune()
    tuning = step.graphs.tuning
    assert tuning is not None and step.eval().graphs.tuning is None
    assert_of_rows(step)
    assert step.train().graphs.tuning is tuning
    other = copy.deepcopy(step)
    assert other.graphs.tuning is tuning and other.graph.places["p_user_weight"][0] is other.original.user
    step.forget()
    assert step.graphs.tuning is None


def test_a_plan_with_another_gradient_is_not_timed(wins, monkeypatch):
    run = Graph.run

    def doubled(self: Graph, *args: Any) -> Any:
        scores = run(self, *args)
        return scores if self.blueprint.plans.main.level.name == "EXPAND" else 2 * scores - scores.detach()

    monkeypatch.setattr(Graph, "run", doubled)
    (point,) = group("rows").tune().graphs.tuning.points
    assert point.won.level == "original"
    assert [t.level for t in point.trials if "differs by 1e+00" in t.problem] == ["linear"]
    with pytest.raises(VerificationError, match="no plan computes 400 candidates of 4 requests"):
        group("request").tune()  # the original has no mask per request


def test_a_mask_per_request_stays_one_per_request(wins):
    (point,) = group("request").tune().graphs.tuning.points
    assert "it draws a mask per row" in next(t for t in point.trials if t.level == "original").problem
    (point,) = group("rows").tune().graphs.tuning.points
    assert all(not t.problem for t in point.trials)


def test_sizes_are_checked():
    with pytest.raises(InputError, match="numbers from 1 on"):
        group().tune([0])
