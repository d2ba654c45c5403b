"""Deep & Cross Network V2.

Ruoxi Wang, Rakesh Shivanna, Derek Z. Cheng, Sagar Jain, Dong Lin, Lichan Hong, Ed H. Chi, "DCN V2: Improved Deep &
Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", arXiv 2008.13535.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rankhoist.nn.embedding import FeatureEmbedding, Field, concatenate
from rankhoist.nn.mlp import MLP


class CrossNetV2(nn.Module):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, from `[B, D]` to `[B, D]`; `*` is elementwise.

    With `low_rank` r, `W_l = U_l V_l^T` with U_l and V_l `[D, r]`: cheaper while r < D / 2.

    Parameters: L * (D^2 + D), or L * (2 r D + D). Cost per row: L * D^2, or L * 2 r D, multiply-adds.
    Source: arXiv 2008.13535, equations 1 and 2 (without the mixture of experts).
    """

    def __init__(self, width: int, layers: int, *, low_rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(cross_weight(width, low_rank) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, D] -> [B, D]`."""
        crossed = x
        for layer in self.layers:
            crossed = x * layer(crossed) + crossed
        return crossed


class DCNv2(nn.Module):
    """Embeddings, cross network and MLP; named features with B rows -> logits `[B]`.

    parallel  `logit = w . [cross(x), mlp(x)] + b`
    stacked   `logit = w . mlp(cross(x)) + b`

    with x `[B, D]` the concatenated fields. Parameters: those of the parts, and one more than the width of w.
    Cost per row: that of the parts. Source: arXiv 2008.13535, figure 1.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        cross_layers: int = 3,
        low_rank: int | None = None,
        hidden: Sequence[int] = (256, 128),
        structure: Literal["parallel", "stacked"] = "parallel",
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = FeatureEmbedding(fields)
        width = self.embedding.width
        self.cross = CrossNetV2(width, cross_layers, low_rank=low_rank)
        self.mlp = MLP(width, hidden, batch_norm=batch_norm, dropout=dropout)
        self.structure = structure
        self.head = nn.Linear(self.mlp.width + (width if structure == "parallel" else 0), 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Named features with B rows -> logits `[B]`."""
        x = concatenate(self.embedding(features))
        crossed = self.cross(x)
        parallel = self.structure == "parallel"
        logits: Tensor = self.head(torch.cat([crossed, self.mlp(x)], dim=1) if parallel else self.mlp(crossed))
        return logits.squeeze(1)


def cross_weight(width: int, low_rank: int | None) -> nn.Module:
    """The map `x -> W x + b` of one cross layer."""
    if low_rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, low_rank, bias=False), nn.Linear(low_rank, width))
