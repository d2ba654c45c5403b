"""Functions of elements whose gradient is written over the one that they are handed, as their result is over `x`.

Whoever calls them knows that both are theirs alone: nobody else reads x, and the gradient is made by the product that
is the one reader of the result. New memory of a step comes from the system page by page, which takes longer than to
fill it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.graph.node import Op, aten

BACKWARD: dict[Op, tuple[Any, tuple[float, ...]]] = {  # over x -> of the gradient, the result and numbers
    aten.relu_.default: (aten.threshold_backward, (0,)),
    aten.sigmoid_.default: (aten.sigmoid_backward, ()),
    aten.tanh_.default: (aten.tanh_backward, ()),
}


class _Over(torch.autograd.Function):
    """One of the functions above."""

    @staticmethod
    def forward(x: Tensor, op: Op) -> Tensor:
        return op(x)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Op], output: Tensor) -> None:
        ctx.mark_dirty(output)
        ctx.save_for_backward(output)
        ctx.op = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,), (backward, numbers) = ctx.saved_tensors, BACKWARD[ctx.op]
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            return backward.default(gradient, result, *numbers), None
        return backward.grad_input(gradient, result, *numbers, grad_input=gradient), None


def over(x: Tensor, op: Op) -> Tensor:
    """`op` of x, written over it. What compiles the stage arranges memory by itself."""
    if torch.compiler.is_compiling():
        return op(x)  # type: ignore[no-any-return]
    return _Over.apply(x, op)  # type: ignore[no-any-return, no-untyped-call]
