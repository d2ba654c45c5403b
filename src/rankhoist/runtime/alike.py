"""How far apart two results of one call are: what is checked before anything is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.1}  # of an output's scale
TF32 = 1e-2  # the same where products of float32 are rounded to 10 bits
NOTHING = 1e30  # the error where there is no result to compare; a number, so that records are plain JSON


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """How far apart results may be there, of an output's scale."""
    precision: Any = torch.backends.cuda.matmul
    if dtype is torch.float32 and device.type == "cuda" and precision.fp32_precision == "tf32":
        return TF32
    return TOLERANCE[dtype]


def error(actual: Any, truth: Any, least: float = 0.0) -> float:
    """Of all outputs, relative to each one's largest value, or to the `least` share of the largest of all."""
    one, other = pytree.tree_leaves(actual), pytree.tree_leaves(truth)
    if len(one) != len(other):
        return NOTHING
    floor = least * max((_scale(b) for b in other if isinstance(b, Tensor)), default=0.0) if least else 0.0
    return max((_distance(a, b, floor) for a, b in zip(one, other, strict=True)), default=NOTHING)


def _scale(b: Tensor) -> float:
    """Its largest value."""
    return float(b.double().abs().nan_to_num(0.0, 0.0).max()) if b.numel() else 0.0


def _distance(a: Any, b: Any, floor: float) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if type(a) is type(b) and a == b else NOTHING
    if a.shape != b.shape:
        return NOTHING
    a, b = a.double(), b.double()
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())  # infinite alike is alike
    if not apart.numel():
        return 0.0
    scale = max(_scale(b), floor, 1e-30)
    return min(float((apart.max() / scale).nan_to_num(NOTHING)), NOTHING)
