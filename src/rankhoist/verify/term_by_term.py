"""Sums added term by term, as some library adds them: the rounding that a plan of the same sums may have.

K terms added one after another are rounded K times, which comes to about sqrt(K) u of what is added, u half a unit in
the last place; in b partial sums it is about sqrt(K / b) u (Higham and Mary, "A new approach to probabilistic rounding
error analysis", 2019). Which of them a library takes depends on how many rows there are and on how the operands lie in
memory: MKL adds one row times `[K, H]` term by term, and the same row times a transposed `[H, K]` in parts. So a plan
that computes the same sums may be several times as far off as the original, and is no worse for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class TermByTerm(TorchDispatchMode):
    """While it is entered, products of matrices are added term by term, in float32 at least, as libraries do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        added = ADDED.get(func)
        if added is None or kwargs or not args[0].is_floating_point():
            return func(*args, **(kwargs or {}))
        return added(*args).to(args[0].dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`[..., n, K]` times `[..., K, m]`."""
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    total = a.new_zeros(*a.shape[:-1], b.shape[-1])
    for k in range(a.shape[-1]):
        total.addcmul_(a[..., k, None], b[..., None, k, :])
    return total


ADDED: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.mv.default: lambda a, b: _product(a, b[:, None])[:, 0],
    aten.addmm.default: lambda c, a, b: c + _product(a, b),
    aten.baddbmm.default: lambda c, a, b: c + _product(a, b),
}
