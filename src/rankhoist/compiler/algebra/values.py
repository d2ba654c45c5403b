"""Values: what an argument or a result of a captured operator may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rankhoist.compiler.algebra.forms import Form
from rankhoist.compiler.algebra.ir import Node


@dataclass(frozen=True, eq=False)
class Opaque:
    """A tensor over all N rows whose axes do not follow the rows (`[N, N]`, or a mean over rows)."""

    node: Node
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class RowNumber:
    """`arange(0, step * rows, step)`: row i holds `step * i`. It marks "my own row" in an index."""

    dtype: torch.dtype
    step: int = 1


TensorValue = Form | Opaque | RowNumber
Value = Any  # TensorValue | list[Value] | sympy.Expr | int | float | bool | None | dtype | device


def flat(value: Any) -> list[Any]:
    """Everything in lists within lists (and the values of dicts), in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [x for v in value for x in flat(v)]
    return [value]
