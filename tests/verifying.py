"""What the tests of verification share: a ranker, rows for it, and which checks of a certificate failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.verify import Certificate

USER = (torch.arange(6), torch.linspace(-1, 1, 12).view(6, 2))  # id, dense
ITEM = torch.linspace(-2, 2, 18).view(6, 3).sin()


class Ranker(nn.Module):
    """Two scores, one of them without bias, the best column of the item, and the user as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.hidden = nn.Embedding(6, 4), nn.Linear(9, 8)
        self.click, self.like = nn.Linear(8, 1), nn.Linear(8, 1, bias=False)

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> dict[str, Any]:
        x = torch.relu(self.hidden(torch.cat([self.ids(user), dense, item], 1)))
        return {"click": self.click(x).squeeze(), "like": [self.like(x)], "best": item.argmax(1), "user": user}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def failed(certificate: Certificate) -> list[str]:
    return [c.name for c in certificate.checks if not c.passed]
