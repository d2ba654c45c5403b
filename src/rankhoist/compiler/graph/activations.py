"""Functions of single elements that a product's kernel may end with, by name: a file holds the name."""

from __future__ import annotations

from torch import Tensor

from rankhoist.compiler.graph.node import Op, aten

OVER: dict[str, Op] = {
    "relu": aten.relu_.default, "sigmoid": aten.sigmoid_.default, "silu": aten.silu_.default,
    "gelu": aten.gelu_.default,
}  # fmt: skip
NAMES: dict[Op | str, str] = {getattr(aten, name).default: name for name in OVER}


def through(x: Tensor, activation: str) -> Tensor:
    """The function of all elements of `x`, written over it; `x` itself where none is named."""
    if activation:
        OVER[activation](x)
    return x
