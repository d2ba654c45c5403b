"""Chains of maps of a request's rows that end with few columns are taken from their end."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_equal, repeated
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.lower import lean
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.nn import CrossNetV2

C, K, N, OFFSETS = 40, 16, 11, [0, 4, 4, 11]


class Crossed(nn.Module):
    """Cross layers, then a layer with `out` columns."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.cross, self.top = CrossNetV2(C + K, 3), nn.Linear(C + K, out)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return self.top(self.cross(torch.cat([context, candidate], 1)))


def request_work(out: int, level: Level = Level.FULL) -> int:
    """Multiply-adds of a request where every form is kept, after the check that scores are equal."""
    torch.manual_seed(0)
    model = Crossed(out).double().eval()
    context, candidate = torch.randn(N, C, dtype=torch.float64), torch.randn(N, K, dtype=torch.float64)
    plan = attempt(Task(capture(model, (context, candidate), ["context"]), level, Workload()))
    hoisted = HoistedModel(plan.interpreter.program, plan)
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(N, C), candidate))
    expected = model(repeated(context[:3], OFFSETS), candidate)
    assert_equal(hoisted(context[:3], candidate, request_offsets=OFFSETS), expected)
    return sum(n.work.multiply_adds for n in plan.nodes if n.rate.stage == "request")


def test_one_score_meets_the_last_layer_before_a_candidates_entries_do(monkeypatch: pytest.MonkeyPatch):
    """Twice, K rows by a matrix C x C become one row of the last layer by it, which then meets the K rows."""
    short = request_work(1)
    monkeypatch.setattr(lean, "from_the_end", lambda *_: None)
    assert request_work(1) - short == 2 * K * C * C - C * C


def test_many_columns_stay_behind_the_rows(monkeypatch: pytest.MonkeyPatch):
    """With half as many columns as rows and more, and at a lower level, nothing is taken from the end."""
    found = [request_work(K // 2 + 1), request_work(1, Level.FIRST)]
    monkeypatch.setattr(lean, "from_the_end", lambda *_: None)
    assert found == [request_work(K // 2 + 1), request_work(1, Level.FIRST)]
