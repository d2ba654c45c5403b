"""Whether what stands in for a model computes what it does: rounding is no difference, a misread operator is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LEAST = 1e-6  # of a scale: results that are all 0


def alike(made: Tensor, truth: Tensor, share: float) -> bool:
    """Whether two results are equal but for a share of the largest number; NaN is equal to NaN."""
    if made.shape != truth.shape:
        return False
    made, truth = made.double(), truth.double()
    scale = max(float(truth.abs().nan_to_num(0, 0, 0).max()) if truth.numel() else 0.0, LEAST)
    return torch.allclose(made, truth, 0, share * scale, equal_nan=True)


def rows_of(given: Any) -> int:
    """How many rows a call's tensors have; 0 where it has none."""
    return next((len(x) for x in pytree.tree_leaves(given) if isinstance(x, Tensor)), 0)


def at_rows(rows: list[int], given: Any) -> Any:
    """These rows of a call's tensors."""
    return pytree.tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, given)


def leaves_alike(made: Any, truth: Any) -> bool:
    """Whether two results of a call are equal, tensor by tensor, but for rounding."""
    pairs = zip(pytree.tree_leaves(made), pytree.tree_leaves(truth), strict=True)
    return all(_rounded_alike(x, y) for x, y in pairs)


def _rounded_alike(made: Any, truth: Any) -> bool:
    if not isinstance(truth, Tensor) or not truth.is_floating_point():
        return bool(torch.equal(made, truth)) if isinstance(truth, Tensor) else bool(made == truth)
    return alike(made, truth, torch.finfo(truth.dtype).eps ** 0.5)
