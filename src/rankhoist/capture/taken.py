"""`take_along_dim` over a symbolic number of rows: a `gather` of operands that are broadcast against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TAKES = (torch.take_along_dim, Tensor.take_along_dim)


class TakenAlong(TorchFunctionMode):
    """While a model is exported: torch's own broadcasting of the two compares sizes as numbers, and fixes the rows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in TAKES:
            x, index, dim = _arguments(*args, **kwargs)
            if dim is not None and x.dim() == index.dim():
                return _gathered(x, index, dim)
        return func(*args, **kwargs)


def _arguments(
    self: Tensor | None = None, indices: Tensor | None = None, dim: int | None = None, *, input: Tensor | None = None
) -> Any:
    return input if self is None else self, indices, dim


def _gathered(x: Tensor, index: Tensor, dim: int) -> Tensor:
    own = dim % x.dim()
    sizes = (
        [1 if d == own else n for d, n in enumerate(x.shape)],
        [1 if d == own else n for d, n in enumerate(index.shape)],
    )
    common = list(torch.broadcast_shapes(*sizes))
    shapes = ([*common[:own], t.shape[own], *common[own + 1 :]] for t in (x, index))
    x, index = (t.expand(shape) for t, shape in zip((x, index), shapes, strict=True))
    return x.gather(own, index)
