"""The best of a whole catalogue for one request: block by block, so that memory does not grow with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.arguments import whole_number
from rankhoist.errors import InputError
from rankhoist.runtime.catalogue.index import Ids, Index

BLOCK = 8192  # items that are scored at once


def best(index: Index, k: int, scored: Callable[[Tensor], Any]) -> tuple[Ids, Tensor]:
    """Ids and scores of the k items with the highest scores, the best first; `scored` is given rows `[N]`.

    Raises:
        InputError: `k` is less than 1, or what is scored is not one number per item.
    """
    if whole_number(k, "k") < 1:
        raise InputError(f"k is {k}: the number of items wanted, 1 or more")
    order = np.argsort(index.rows, kind="stable")  # rows one after the other are read fastest
    places, scores = torch.empty(0, dtype=torch.int64), torch.empty(0)
    for start in range(0, len(order), BLOCK):
        own = torch.from_numpy(order[start : start + BLOCK])
        found = _numbers(scored(torch.from_numpy(index.rows[own.numpy()])), len(own))
        together = torch.cat([scores.to(found.dtype), found])
        chosen = together.topk(min(k, len(together)), sorted=True).indices
        places, scores = torch.cat([places, own])[chosen], together[chosen]
    return index.ids[places.numpy()], scores


def _numbers(result: Any, rows: int) -> Tensor:
    shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
    if not isinstance(result, Tensor) or result.shape[:1] != (rows,) or result.numel() != rows:
        raise InputError(f"items are ranked by one number each, [N], got {shape}; pass by=, which picks it of a result")
    return result.reshape(rows).cpu()
