"""Whether what stands in for a model computes what it does: rounding is no difference, a misread operator is."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6  # of a scale: results that are all 0


def alike(made: Tensor, truth: Tensor, share: float) -> bool:
    """Whether two results are equal but for a share of the largest number; NaN is equal to NaN."""
    if made.shape != truth.shape:
        return False
    made, truth = made.double(), truth.double()
    scale = max(float(truth.abs().nan_to_num(0, 0, 0).max()) if truth.numel() else 0.0, LEAST)
    return torch.allclose(made, truth, 0, share * scale, equal_nan=True)
