"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """`[B, width] -> [B, hidden[-1]]`; per layer `h = dropout(relu(norm(W h + b)))`.

    Parameters: sum of (in + 1) * out over the layers, and 2 * out each with batch norm.
    Cost per row: sum of in * out multiply-adds.
    """

    def __init__(self, width: int, hidden: Sequence[int], *, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for wide, narrow in pairwise((width, *hidden)):
            steps.append(nn.Linear(wide, narrow))
            if batch_norm:
                steps.append(nn.BatchNorm1d(narrow))
            steps.append(nn.ReLU())
            if dropout:
                steps.append(nn.Dropout(dropout))
        self.steps = nn.Sequential(*steps)
        self.width = hidden[-1] if hidden else width

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, width] -> [B, hidden[-1]]`."""
        output: Tensor = self.steps(hidden)
        return output
