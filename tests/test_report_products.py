"""Products that are made later count for the operator that multiplies, and not for one of context alone beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankhoist


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
