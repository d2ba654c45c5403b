"""Operators that PyTorch's exporter to ONNX lacks, or writes in a way that loses something, in those that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.compiler.graph.node import aten


def written_out(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program in operators that the exporter has, and writes as they are."""
    found = {n.target for n in program.graph.nodes} & WRITTEN.keys()
    return program.run_decompositions({op: WRITTEN[op] for op in found}) if found else program


def _scaled_from(start: Tensor, x: Tensor, scale: Tensor, *, value: float = 1) -> Tensor:
    """The exporter's multiplies all rows by 1, too."""
    return start + (x * scale if value == 1 else value * x * scale)


def _log_sigmoid(x: Tensor) -> Tensor:
    """Of -1000 it is -1000; the exporter's is the logarithm of 0."""
    return x.clamp(max=0) - x.abs().neg().exp().log1p()


def _log_of_sums(x: Tensor, dim: int) -> Tensor:
    """Each sum by its own largest number, as one far above may come later."""
    return _of_all_before(x, dim, -torch.inf, lambda before: before.logsumexp(-1))


def _products(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return _of_all_before(x if dtype is None else x.to(dtype), dim, 1, lambda before: before.prod(-1))


def _largest(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """And where each is, of equal ones the last."""
    least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    values = _of_all_before(x, dim, least, lambda before: before.amax(-1))
    places = torch.arange(x.shape[dim], device=x.device).view(-1, *[1] * (x.dim() - 1 - dim % x.dim()))
    return values, _of_all_before(torch.where(x == values, places, 0), dim, 0, lambda before: before.amax(-1))


def _smallest(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    values, places = _largest(-x if x.is_floating_point() else -1 - x, dim)
    return -values if x.is_floating_point() else -1 - values, places


def _kth(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = (t.narrow(dim, k - 1, 1) for t in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of the two in the middle."""
    return _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """With four axes, which is what the exporter takes."""
    if enable_gqa or query.dim() == key.dim() == value.dim() == 4:
        return NotImplemented
    outside = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])

    def in_four(t: Tensor) -> Tensor:
        return t.expand(*outside, *t.shape[-2:]).reshape(1, -1, *t.shape[-2:])

    mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else in_four(attn_mask)
    made = F.scaled_dot_product_attention(
        in_four(query), in_four(key), in_four(value), mask, dropout_p, is_causal, scale=scale
    )
    return made.reshape(*outside, *made.shape[-2:])


def _of_all_before(x: Tensor, dim: int, nothing: float, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """At each place along an axis something of all that is not behind it, where `nothing` changes nothing."""
    last = x.movedim(dim, -1) if x.dim() else x.unsqueeze(0)
    later = torch.ones(last.shape[-1], last.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    made = reduce(last.unsqueeze(-2).masked_fill(later, nothing))
    return made.movedim(-1, dim) if x.dim() else made.squeeze(0)


def _search(
    bounds: Tensor, x: Tensor, *, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where x belongs among sorted bounds: behind as many of them as are not above it, or not as large."""
    right = right or side == "right"
    bounds = bounds if sorter is None else bounds.gather(-1, sorter)
    if bounds.dim() == 1:
        return torch.bucketize(x, bounds, out_int32=out_int32, right=right)
    below = bounds.unsqueeze(-2), x.unsqueeze(-1)
    behind = ~(below[0] > below[1] if right else below[0] >= below[1])  # of what is no number all
    return behind.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


WRITTEN: dict[Any, Callable[..., Any]] = {
    aten.addcmul.default: _scaled_from,
    aten.cummax.default: _largest,
    aten.cummin.default: _smallest,
    aten.cumprod.default: _products,
    aten.kthvalue.default: _kth,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.logcumsumexp.default: _log_of_sums,
    aten.median.dim: _median,
    aten.scaled_dot_product_attention.default: _attention,
    aten.searchsorted.Scalar: lambda bounds, x, **how: _search(bounds, bounds.new_tensor(x), **how),
    aten.searchsorted.Tensor: _search,
}
