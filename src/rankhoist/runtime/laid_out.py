"""Weights as the operators of a CPU read them fastest.

`x W^T` is given W `[n, k]` row by row, as it was trained, and MKL turns it around in every call. The same W column by
column, strides `(1, n)`, is turned around once: 16 to 100 rows then take 0.6 to 0.9 of the time, 1000 rows 0.85 to 1,
2 to 8 rows 0.6 to 1.25 (float32, k and n of 64 to 1024, one thread of a Xeon with AMX, torch 2.13). So is W where many
rows meet it: candidates, or the elements of a request.

All other operators read rows. Results lie as their operands do: a transposed weight times a row is a transposed tensor,
and its product in bfloat16 took 2.9 ms instead of 0.5 (124 rows, 900 x 900, there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.compiler.emit import Stage
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import aten

WEIGHT: Mapping[Callable[..., Any], int] = {
    aten.linear.default: 1, kernels.linear_from: 1, kernels.linear_onto: 2, kernels.linear_onto_: 2,
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16)
MANY = 16  # rows
LINE, PAGE = 64, 4096  # bytes
LIMIT = 2**26  # bytes of a model's weights that there may be twice


class LaidOut:
    """Copies of one version of a model's weights, each made once for all stages, as long as there is room."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], Tensor] = {}
        self._left = LIMIT

    def of(self, stage: Stage, arguments: Sequence[Any], each: int = 1) -> list[Any]:
        """A stage's arguments, its weights laid out for what it does; it treats `each` rows at a time, or more."""
        placeholders = [n for n in stage.module.graph.nodes if n.op == "placeholder"]
        own = placeholders[len(placeholders) - len(arguments) :]  # after numbers of rows, owners and offsets
        return [self._laid_out(a, n, each) if _movable(a) else a for n, a in zip(own, arguments, strict=True)]

    def _laid_out(self, weight: Tensor, placeholder: fx.Node, each: int) -> Tensor:
        if not _multiplies(placeholder):
            return self._copy(weight, False) if _transposed(weight) else weight
        many = max(each * _elements(user) for user in placeholder.users) >= MANY
        return self._copy(weight, True) if many and torch.backends.mkl.is_available() else weight

    def _copy(self, weight: Tensor, turned: bool) -> Tensor:
        """Column by column if it is `turned`, else row by row; the weight itself where there is no room."""
        made = self._made.get((id(weight), turned))
        if made is not None or weight.nbytes > self._left:
            return weight if made is None else made
        self._left -= weight.nbytes
        made = _turned(weight) if turned else weight.contiguous()
        self._made[id(weight), turned] = made
        return made


def _movable(weight: Any) -> bool:
    """A matrix on the CPU."""
    own = isinstance(weight, Tensor) and weight.device.type == "cpu"
    return own and weight.dtype in DTYPES and weight.dim() == 2


def _turned(weight: Tensor) -> Tensor:
    """Column by column; columns that begin a page apart would be in each other's way in the cache."""
    n, k = weight.shape
    size = weight.element_size()
    room = n + (LINE // size if n * size % PAGE == 0 else 0)
    return weight.new_empty(k, room)[:, :n].copy_(weight.t()).t()


def _transposed(weight: Tensor) -> bool:
    return weight.stride(1) > 1 and weight.shape[1] > 1


def _multiplies(placeholder: fx.Node) -> bool:
    """Whether a stage reads it as the weight of products, and as nothing else."""
    return bool(placeholder.users) and all(
        [i for i, x in enumerate(user.args) if x is placeholder] == [WEIGHT.get(user.target)]  # type: ignore[arg-type]
        for user in placeholder.users
    )


def _elements(product: fx.Node) -> int:
    """Rows of a product, for each row of its stage."""
    return math.prod(product.meta.get("shape", ())[:-1])
