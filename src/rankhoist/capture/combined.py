"""`combinations(x, r)`: x at places that its length decides. torch finds them by a mask, which makes a size of data."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Combined(TorchFunctionMode):
    """While a model is exported: combinations are read by a constant index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_combinations if func is torch.combinations else func)(*args, **(kwargs or {}))


def _combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """`[n] -> [n choose r, r]`."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    if not r or not isinstance(input.shape[0], int):
        return torch.combinations(input, r, with_replacement)
    places = torch.tensor([*choose(range(input.shape[0]), r)], dtype=torch.int64, device=input.device)
    return input[places.reshape(-1, r)]
