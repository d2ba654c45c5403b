"""Functions that `vmap`, of a model written for one row, maps over one number of rows alone: in other words."""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def results_are_moved() -> Iterator[None]:
    """While a model is exported: `vmap` brings its axis to the place that a result has it at by what no graph shows."""
    vmap = importlib.import_module("torch._functorch.vmap")
    known = vmap._remove_batch_dim

    def moved(x: Tensor, level: int, size: int, place: int) -> Tensor:
        if torch._C._functorch.maybe_get_level(x) != level:  # it is one for all
            return known(x, level, size, place)  # type: ignore[no-any-return]
        own = torch._C._functorch.maybe_get_bdim(x)
        return known(x, level, size, own).movedim(own, place)  # type: ignore[no-any-return]

    with mock.patch.object(vmap, "_remove_batch_dim", moved):
        yield


def mapped(func: Any, args: Any, kwargs: Any) -> Any:
    """What to call in the place of a function; itself where none of its tensors is mapped."""
    if func in WORDS and any(
        torch._C._functorch.is_batchedtensor(x)
        for x in pytree.tree_leaves((args, kwargs or {}))
        if isinstance(x, Tensor)
    ):
        return WORDS[func]
    return func


def _cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Each is padded to all places, and at every place the one that has it is chosen."""
    dim = dim if axis is None else axis
    behind = tensors[0].dim() - 1 - dim % tensors[0].dim()  # axes
    ends = list(itertools.accumulate(x.shape[dim] for x in tensors))
    places = torch.arange(ends[-1], device=tensors[0].device).reshape(-1, *[1] * behind)
    first, *others = (
        F.pad(x, [0, 0] * behind + [end - x.shape[dim], ends[-1] - end]) for x, end in zip(tensors, ends, strict=True)
    )
    for x, start in zip(others, ends, strict=False):
        first = torch.where(places < start, first, x)
    return first


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    return _cat(tensors, min(1, tensors[0].dim() - 1))


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    """With a vector on the right: a column."""
    return (x @ y.unsqueeze(-1)).squeeze(-1) if y.dim() == 1 < x.dim() else x @ y


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """`(x - mean) / sqrt(variance + eps) weight + bias`."""
    variance, mean = torch.var_mean(input, tuple(range(-len(normalized_shape), 0)), correction=0, keepdim=True)
    x = (input - mean) * torch.rsqrt(variance + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


WORDS: dict[Any, Callable[..., Tensor]] = {
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.hstack: _hstack,
    torch.matmul: _matmul,
    torch.mv: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mv: _matmul,
    Tensor.__matmul__: _matmul,
    F.layer_norm: _layer_norm,
}
