"""DeepFM: a factorisation machine and an MLP over the same embeddings.

Huifeng Guo, Ruiming Tang, Yunming Ye, Zhenguo Li, Xiuqiang He, "DeepFM: A Factorization-Machine based Neural Network
for CTR Prediction", arXiv 1703.04247.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rankhoist.nn.embedding import FeatureEmbedding, Field, concatenate
from rankhoist.nn.mlp import MLP


class FactorizationMachine(nn.Module):
    """`sum_{i<j} <v_i, v_j> = 1/2 sum_d [(sum_i v_id)^2 - sum_i v_id^2]`, from `[B, F, k]` to `[B]`.

    Parameters: none. Cost per row: 2 F k multiply-adds instead of the F^2 k / 2 of the left side.
    Source: Steffen Rendle, "Factorization Machines", ICDM 2010, lemma 3.1; arXiv 1703.04247, equation 2.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """`[B, F, k] -> [B]`."""
        square_of_sum = vectors.sum(dim=1).square()
        sum_of_squares = vectors.square().sum(dim=1)
        return 0.5 * (square_of_sum - sum_of_squares).sum(dim=1)


class DeepFM(nn.Module):
    """`logit = sum_i w_i + FM(v) + w . mlp([v_1 .. v_F]) + b`; named features with B rows -> logits `[B]`.

    Every field has a vector v_i of the same width k and a first-order weight w_i of width 1. A list or a dense group
    counts as one field. Parameters: embeddings of width k + 1, and those of the MLP on F k columns and its head.
    Cost per row: 2 F k, and that of the MLP. Source: arXiv 1703.04247, equations 1 to 4.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        hidden: Sequence[int] = (256, 128),
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len({field.width for field in fields}) != 1 or not fields[0].width:
            widths = {field.name: field.width for field in fields}
            raise ValueError(f"DeepFM needs one width above 0 for all fields, got {widths}")
        self.first_order = FeatureEmbedding([replace(field, width=1) for field in fields])
        self.embedding = FeatureEmbedding(fields)
        self.fm = FactorizationMachine()
        self.mlp = MLP(self.embedding.width, hidden, batch_norm=batch_norm, dropout=dropout)
        self.head = nn.Linear(self.mlp.width, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Named features with B rows -> logits `[B]`."""
        first_order = concatenate(self.first_order(features)).sum(dim=1)
        vectors = self.embedding(features)
        pairs: Tensor = self.fm(torch.stack(vectors, dim=1))
        deep: Tensor = self.head(self.mlp(concatenate(vectors)))
        return first_order + pairs + deep.squeeze(1)
