"""One whole industrial ranker: 200 features of which 140 are context, a history of 100, three tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankhoist.bench.models import CrossLayers, MixedExperts, TargetAttention

ITEMS, CATEGORIES, IDS = 50_000, 500, 2_000
WIDTH, ITEM_WIDTH, STEPS = 16, 32, 100
USER_IDS = [f"user_{i}" for i in range(118)]
USER_DENSE = [f"user_dense_{i}" for i in range(20)]
ITEM_IDS = [f"item_{i}" for i in range(48)]
ITEM_DENSE = [f"item_dense_{i}" for i in range(10)]


class IndustrialRanker(nn.Module):
    """Embeddings and dense features, target attention, a low-rank cross network over all of it, experts per task.

    Features, each an input of its own: 118 ids and 20 numbers of the user, the history's items and categories; 48 ids
    and 10 numbers of the candidate, its item and its category.
    """

    def __init__(self, rank: int = 128, depth: int = 3, ids: int = IDS) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(ids, WIDTH) for name in [*USER_IDS, *ITEM_IDS]})
        self.items, self.categories = nn.Embedding(ITEMS, ITEM_WIDTH), nn.Embedding(CATEGORIES, ITEM_WIDTH)
        self.attention = TargetAttention(2 * ITEM_WIDTH)
        numbers = len(USER_DENSE) + len(ITEM_DENSE)
        columns = WIDTH * len(self.tables) + numbers + 4 * ITEM_WIDTH
        self.cross = CrossLayers(columns, depth, 512, rank)
        self.experts = MixedExperts(512, tasks=3, shared=4)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        def embedded(ids: list[str], dense: list[str]) -> list[Tensor]:
            found = [self.tables[name](features[name]) for name in ids]
            return [*found, torch.stack([features[name] for name in dense], 1)]

        history = torch.cat([self.items(features["history_item"]), self.categories(features["history_category"])], 2)
        target = torch.cat([self.items(features["item"]), self.categories(features["category"])], 1)
        pooled = self.attention(history, target)
        candidate = torch.cat([*embedded(ITEM_IDS, ITEM_DENSE), target, pooled], 1)
        x = torch.relu(self.cross(torch.cat(embedded(USER_IDS, USER_DENSE), 1), candidate))
        return dict(zip(("click", "like", "buy"), self.experts.mixed(x), strict=True))
