"""Functions of torch that do not export, or fix the number of rows, in other words that mean the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankhoist.capture.one_row import mapped
from rankhoist.errors import UnsupportedModelError


class OtherWords(TorchFunctionMode):
    """While a model is exported."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return WORDS.get(func, mapped(func, args, kwargs))(*args, **(kwargs or {}))


def _combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """`[n] -> [n choose r, r]`, at places that its length decides. torch finds them by a mask, a size of data."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    if not r or not isinstance(input.shape[0], int):
        return torch.combinations(input, r, with_replacement)
    places = torch.tensor([*choose(range(input.shape[0]), r)], dtype=torch.int64, device=input.device)
    return input[places.reshape(-1, r)]


def _take_along_dim(
    self: Tensor | None = None, indices: Tensor | None = None, dim: int | None = None, *, input: Tensor | None = None
) -> Tensor:
    """A `gather` of operands that are broadcast against each other: torch compares their sizes as numbers."""
    x: Any = input if self is None else self
    index: Any = indices
    if dim is None or x.dim() != index.dim():
        return torch.take_along_dim(x, index, dim)
    own = dim % x.dim()
    sizes = ([1 if d == own else n for d, n in enumerate(t.shape)] for t in (x, index))
    common = list(torch.broadcast_shapes(*sizes))
    shapes = ([*common[:own], t.shape[own], *common[own + 1 :]] for t in (x, index))
    x, index = (t.expand(shape) for t, shape in zip((x, index), shapes, strict=True))
    gathered: Tensor = x.gather(own, index)
    return gathered


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """`[..., P, D], [..., R, D] -> [..., P, R]`. How many points there are decides how torch computes, so those that
    are rows are batches of one.
    """
    if isinstance(x1.shape[-2], torch.SymInt) and isinstance(x2.shape[-2], int):
        return torch.cdist(x1.unsqueeze(-2), x2.unsqueeze(-3), p, compute_mode).squeeze(-2)
    if isinstance(x2.shape[-2], torch.SymInt) and isinstance(x1.shape[-2], int):
        return torch.cdist(x1.unsqueeze(-3), x2.unsqueeze(-2), p, compute_mode).squeeze(-1).transpose(-1, -2)
    return torch.cdist(x1, x2, p, compute_mode)


def _fake_quantize(
    input: Tensor, scale: float | Tensor, zero_point: float | Tensor, quant_min: int, quant_max: int
) -> Tensor:
    """`(clamp(round(x / s) + z, low, high) - z) s`; of 32 bits, whatever x is."""
    return _rounded(input, scale, zero_point, quant_min, quant_max).float().to(input.dtype)


def _fake_quantize_channels(
    input: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """The same with a scale and a zero of every place of an axis, of as many bits as x."""
    if zero_point.is_floating_point():  # it is added before the sum is rounded
        return torch.fake_quantize_per_channel_affine(input, scale, zero_point, axis, quant_min, quant_max)
    shape = [-1 if d == axis else 1 for d in range(input.dim())]
    return _rounded(input, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max).to(input.dtype)


def _rounded(x: Tensor, scale: float | Tensor, zero_point: float | Tensor, low: int, high: int) -> Tensor:
    """By 1 / s and s of 32 bits, as torch has them."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    size, zero = (torch.as_tensor(n, dtype=torch.float32, device=x.device) for n in (scale, zero_point))
    inverse, size, zero = (n.to(x.dtype) for n in (size.reciprocal(), size, zero))
    return (((x * inverse).round() + zero).clamp(low, high) - zero) * size


def _unbind(input: Tensor, dim: int = 0) -> Any:
    """One by one: of rows, torch says that their number is fixed only once all is exported, and not where."""
    if isinstance(input.shape[dim], torch.SymInt):
        raise UnsupportedModelError(
            "rows are gone through one by one in Python (a loop over them, unbind, tolist), and every call has another "
            "number of them: compute with the whole tensor, and return it"
        )
    return input.unbind(dim)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """With statistics that are there, of rows that a mask chose: torch asks whether there are any."""
    if training or running_mean is None or running_var is None or not _by_data(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    scale, shift = (x.view(-1, *[1] * (input.dim() - 2)) for x in (scale, shift))
    return input * scale + shift


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Of rows that a mask chose: torch asks whether a group is more than one number."""
    own = torch.group_norm if _by_data(input) else F.group_norm
    return own(input, num_groups, weight, bias, eps)


def _instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Of rows that a mask chose: a group norm with a group for each channel, or a batch norm."""
    if not _by_data(input):
        given = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        return F.instance_norm(input, *given)
    if use_input_stats:
        return torch.group_norm(input, input.shape[1], weight, bias, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of rows that a mask chose: torch asks whether there are any."""
    if not _by_data(input1):
        return torch.bilinear(input1, input2, weight, bias)
    made = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return made if bias is None else made + bias


def _by_data(x: Tensor) -> bool:
    """Whether data says how many elements there are."""
    sizes: list[Any] = [size for size in x.shape if isinstance(size, torch.SymInt)]
    return any(s.node.shape_env.is_unbacked_symint(symbol) for s in sizes for symbol in s.node.expr.free_symbols)


def _data(x: Tensor, *_: Any) -> Tensor:
    """The same elements and memory; torch would take it for a constant."""
    return x.detach()


def _set_data(x: Tensor, new: Tensor) -> None:
    """No graph shows it; the same elements may be put where they are."""
    if (_memory(x), x.shape, x.stride(), x.dtype) != (_memory(new), new.shape, new.stride(), new.dtype):
        raise UnsupportedModelError(
            "forward gives a tensor other elements, `x.data = ...`: compute with what it is given"
        )


def _memory(x: Tensor) -> tuple[int, Any]:
    return x.untyped_storage()._cdata, x.storage_offset()


WORDS: dict[Any, Callable[..., Any]] = {
    Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.unbind: _unbind,
    Tensor.unbind: _unbind,
    torch.combinations: _combinations,
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    torch.cdist: _cdist,
    torch.bilinear: _bilinear,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    torch.fake_quantize_per_tensor_affine: _fake_quantize,
    torch.fake_quantize_per_channel_affine: _fake_quantize_channels,
}
