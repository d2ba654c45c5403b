"""How far two results are apart: the one measure of error, relative to the scale of each output.

    scale  =  largest finite |truth| of the output over all batches (1 where that is 0)
    error  =  |value - truth| / scale        NaN equals NaN, an infinity equals itself; anything else is infinitely far

One scale per output, not one per element: a sum that cancels to almost zero is as exact as its terms allow. Integers
and truth values are equal (error 0) or not (error infinite).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.capture.named import leaves_with_path

FLOAT64_TOLERANCE = 1e-10


def tolerance(original_error: float, dtype: torch.dtype) -> float:
    """The error allowed in the model's own dtype: twice the original's, or a few units in the last place.

    The original's is that of its own kernels or that of its sums term by term, the larger one.
    """
    return max(2 * original_error, 8 * torch.finfo(dtype).eps)


def half_of_the_digits(dtype: torch.dtype) -> float:
    """An error that leaves half of the dtype's digits right: a larger one is no rounding.

    So far may the original be from its captured graph in float64; twice its own error is no bound there, for the graph
    is what defines that error.
    """
    return math.sqrt(torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Outputs:
    """A result's leaves, on the CPU, with their paths: `output`, `output[0]`, `output['click']`."""

    names: tuple[str, ...]
    leaves: tuple[Any, ...]


def outputs(result: Any) -> Outputs:
    """Flatten what a model returned."""
    found = leaves_with_path(result)
    names = tuple("output" + pytree.keystr(path) for path, _ in found)
    return Outputs(names, tuple(x.detach().cpu() if isinstance(x, Tensor) else x for _, x in found))


@dataclass(frozen=True)
class Difference:
    """The largest error of one output over all batches, and where it is; `at` is None where nothing differs."""

    error: float
    at: tuple[int, tuple[int, ...]] | None  # batch, index


def mismatch(actual: Outputs, expected: Outputs, *, same_dtype: bool) -> str | None:
    """Why two results cannot be compared element by element, or None."""
    if actual.names != expected.names:
        return f"the outputs are {', '.join(actual.names)}, expected {', '.join(expected.names)}"
    for name, a, e in zip(actual.names, actual.leaves, expected.leaves, strict=True):
        if not isinstance(e, Tensor) or not isinstance(a, Tensor):
            if type(a) is not type(e) or a != e:
                return f"{name} is {a!r}, expected {e!r}"
        elif a.shape != e.shape:
            return f"{name} has shape {list(a.shape)}, expected {list(e.shape)}"
        elif (a.dtype != e.dtype) if same_dtype else (a.is_floating_point() != e.is_floating_point()):
            return f"{name} has dtype {a.dtype}, expected {e.dtype}"
    return None


def scale_of(truths: Sequence[Any]) -> float:
    """The scale of one output: its largest finite magnitude over all batches."""
    largest = 0.0
    for truth in truths:
        if isinstance(truth, Tensor) and truth.numel():
            largest = max(largest, truth.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item())
    return largest or 1.0


def difference(actual: Sequence[Any], expected: Sequence[Any], scale: float) -> Difference:
    """The largest error of one output; both sequences have one leaf per batch, of equal shapes."""
    worst = Difference(0.0, None)
    for batch, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if not isinstance(e, Tensor) or not e.numel():
            continue
        error = _elementwise(a, e, scale)
        largest = error.max().item()
        if largest > worst.error:
            place = torch.unravel_index(error.argmax(), error.shape) if error.dim() else ()
            worst = Difference(largest, (batch, tuple(int(i) for i in place)))
    return worst


def _elementwise(a: Tensor, e: Tensor, scale: float) -> Tensor:
    if not e.is_floating_point():
        return torch.where(a == e, 0.0, math.inf)
    a, e = a.double(), e.double()
    same = (a == e) | (a.isnan() & e.isnan())
    return torch.where(same, 0.0, (a - e).abs().nan_to_num(math.inf, math.inf) / scale)


def distance(actual: Outputs, expected: Outputs) -> float:
    """The largest error of two results of one batch; infinite where they cannot be compared."""
    if mismatch(actual, expected, same_dtype=False):
        return math.inf
    pairs = zip(actual.leaves, expected.leaves, strict=True)
    return max((difference([a], [e], scale_of([e])).error for a, e in pairs), default=0.0)
