"""Values of an ONNX graph while it is run: tensors, and whole numbers that are known without the inputs' values.

Files compute shapes by operators (`Shape`, `Gather`, `Concat`, then `Reshape`). Such numbers are kept as Python's, in a
numpy array of objects with at most one axis, so that the number of rows may be a symbol among them. A constant without
axes (an exponent, what a padding is filled with) stays a numpy array, too, for operators that need to know it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rankhoist.capture.onnx.graph import as_tensor
from rankhoist.errors import UnsupportedModelError

Value: TypeAlias = "Tensor | np.ndarray | None"  # None: left out
LARGEST = 1024  # numbers that are kept as Python's


def as_value(array: np.ndarray) -> np.ndarray | None:
    """A constant as numbers that are known, or None: it is a tensor."""
    if array.dtype in (np.int32, np.int64) and array.ndim <= 1 and array.size <= LARGEST:
        return array.astype(object)
    return array if array.ndim == 0 else None


def is_whole(value: Value) -> bool:
    """Whether it is whole numbers."""
    return isinstance(value, np.ndarray) and value.dtype == object


def numbers(value: Value, what: str) -> list[Any]:
    """Numbers that are known, among which may be the number of rows.

    Raises:
        UnsupportedModelError: they depend on the values of inputs.
    """
    if isinstance(value, Tensor) or value is None:
        raise UnsupportedModelError(f"{what} depends on the values of inputs")
    return [x.item() if isinstance(x, np.generic) else x for x in np.atleast_1d(value)]


def number(value: Value, what: str) -> Any:
    """One of them."""
    return numbers(value, what)[0]


def tensor(value: Value) -> Tensor:
    """Any value as a tensor; whole numbers are of int64, conditions on them booleans."""
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise UnsupportedModelError("an operand is left out")
    if not is_whole(value):
        return as_tensor(value)
    if all(isinstance(x, int) for x in np.atleast_1d(value)):
        return torch.tensor(value.tolist(), dtype=None if value.size else torch.int64)
    parts = [torch.scalar_tensor(x, dtype=torch.int64) for x in np.atleast_1d(value)]
    return parts[0] if value.ndim == 0 else torch.stack(parts)
