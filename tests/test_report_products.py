"""Products that are made later count for the operator that multiplies, and not for one of context alone beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankhoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.report.make import make_report


class Searched(nn.Module):
    """Attention over the best events of a history, each with a bias of features of its own, which `beta` weighs."""

    def __init__(self, by_sum: bool) -> None:
        super().__init__()
        self.by_sum, self.items, self.beta = by_sum, nn.Embedding(100, 8), nn.Linear(3, 1, bias=False)
        self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, history: Tensor, cross: Tensor, item: Tensor) -> Tensor:
        events = self.items(history)
        q, k = self.q(self.items(item)), self.k(events)
        products = (q.unsqueeze(1) * k).sum(-1) if self.by_sum else (k @ q.unsqueeze(-1)).squeeze(-1)
        scores = products / 8**0.5 + self.beta(cross).squeeze(-1)
        best = scores.topk(5, 1).indices
        seen = events.gather(1, best.unsqueeze(-1).expand(-1, -1, 8))
        return (scores.gather(1, best).softmax(1).unsqueeze(-1) * seen).sum((1, 2))


@pytest.mark.parametrize(("by_sum", "multiplies"), [(False, "matmul"), (True, "sum_1")])
def test_the_products_of_q_and_k_are_their_own(by_sum: bool, multiplies: str) -> None:
    example = (torch.randint(0, 100, (6, 40)), torch.rand(6, 40, 3), torch.randint(0, 100, (6,)))
    report = rankhoist.hoist(Searched(by_sum).eval(), example, context=["history", "cross"]).report()
    found = {o.name: o for o in report.operators}
    assert found[multiplies].candidate.multiply_adds == 40 * 8
    assert "depends on context and candidate" in (found[multiplies].reason or "")
    (beta,) = (o for o in report.operators if o.module == "beta")
    assert (beta.candidate.multiply_adds, beta.request.multiply_adds) == (0, 40 * 3)


class Kernel(nn.Module):
    """`p' K q` of every two fields, in words: a history that a product pools, and two of the item."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.kernel = nn.Embedding(100, 8), nn.Parameter(torch.randn(8, 3, 8))

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        pooled = torch.bmm((history > 0).float().unsqueeze(1), self.items(history))
        fields = torch.cat([pooled, self.items(item)], 1)
        p, q = fields[:, [0, 0, 1]], fields[:, [1, 2, 2]]
        weighted = (p.unsqueeze(1) * self.kernel).sum(-1).transpose(1, 2)
        return (weighted * q).sum(-1).relu().sum(1)


def test_products_of_an_item_count_for_no_operator_on_context() -> None:
    example = (torch.randint(0, 100, (6, 20)), torch.randint(0, 100, (6, 2)))
    program = capture(Kernel().eval(), example, ["history"], all_rules())
    found = {o.name: o for o in make_report(attempt(Task(program, Level.FULL, Workload()))).operators}
    assert found["bmm"].candidate.multiply_adds == 0
    assert found["sum_1"].candidate.multiply_adds == 8 * 8
    assert found["sum_1"].reason == "reads candidate inputs"
