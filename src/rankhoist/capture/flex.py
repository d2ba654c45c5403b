"""FlexAttention as the operators that it stands for, while a model is exported.

PyTorch exports it as one operator with two graphs inside, of which nothing is known, and on a CPU not at all where a
parameter asks for gradients. What it computes of query i and key j of head h in row b, in 32 bits or more, is

    p_i = softmax_j(score(scale q_i k_j, b, h, i, j) where mask(b, h, i, j), else -inf),    y_i = sum_j p_ij v_j

with p_i = 0 where no key is left. `score` and `mask` are functions of numbers, mapped over all four axes. Which blocks
of keys a kernel leaves out follows from the mask, so a mask is its function here.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankhoist.capture.calling import calling
from rankhoist.errors import UnsupportedModelError

AXES = ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None))  # keys first


@contextlib.contextmanager
def flex_as_operators() -> Iterator[None]:
    """While a model is exported."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    with calling({flex.flex_attention: _attention, flex.create_block_mask: _block_mask}):
        yield


@dataclass(frozen=True)
class Mask:
    """In place of a block mask."""

    mask_mod: Callable[..., Tensor]


def _attention(
    query: Any, key: Any, value: Any, score_mod: Any = None, block_mask: Any = None, scale: Any = None,
    enable_gqa: bool = False, return_lse: bool = False, kernel_options: Any = None, *, return_aux: Any = None,
) -> Any:  # fmt: skip
    from rankhoist.capture.flex import attention  # its code runs in another module

    return attention(query, key, value, score_mod, block_mask, scale, return_lse, return_aux)


def _block_mask(mask_mod: Any, *_: Any, **__: Any) -> Any:
    from rankhoist.capture.flex import Mask

    return Mask(mask_mod)


def attention(
    query: Tensor, key: Tensor, value: Tensor, score: Callable[..., Tensor] | None, mask: Any, scale: float | None,
    lse: bool, auxiliary: Any,
) -> Any:  # fmt: skip
    """`[B, H, Q, D], [B, G, K, D], [B, G, K, E] -> [B, H, Q, E]`, G a divisor of H; log-sum-exps `[B, H, Q]` beside it.

    Raises:
        UnsupportedModelError: it is to return what only its kernels make.
    """
    if auxiliary is not None:
        raise UnsupportedModelError(
            "flex_attention is asked for auxiliary results (return_aux): leave them out to score"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    at = [torch.arange(n, device=query.device) for n in sizes]
    keep = None if mask is None else _mapped(mask.mask_mod, (), at)
    if score is None and not lse:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, keep, scale=scale)
    wide = torch.float64 if query.dtype is torch.float64 else torch.float32
    scores = (query.to(wide) @ key.to(wide).transpose(-2, -1)) * scale
    if score is not None:
        scores = _mapped(score, (scores,), at)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    nothing = (scores == float("-inf")).all(-1, keepdim=True)
    shares = scores.softmax(-1).masked_fill(nothing, 0)
    made = shares.to(query.dtype) @ value
    return (made, scores.logsumexp(-1)) if lse else made


def _mapped(function: Callable[..., Tensor], scores: tuple[Tensor, ...], at: Sequence[Tensor]) -> Tensor:
    """A function of numbers over rows, heads, queries and keys; it may read tables by them."""
    for axes in AXES:
        function = torch.vmap(function, in_dims=(*[0] * len(scores), *axes))
    with _ByIndex():
        return function(*scores, *at)


class _ByIndex(TorchFunctionMode):
    """`table[h, j]` for mapped numbers, which Python would ask for their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            table, places = args
            places = places if isinstance(places, tuple) else (places,)
            if all(isinstance(place, Tensor) for place in places):
                return torch.ops.aten.index.Tensor(table, places)
        return func(*args, **(kwargs or {}))
