"""Operators of ONNX that choose, move and count: on tensors, and on whole numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.capture.onnx.elementwise import Operator, dtype_of
from rankhoist.capture.onnx.graph import Node, as_tensor
from rankhoist.capture.onnx.values import Value, as_value, number, numbers, tensor
from rankhoist.errors import UnsupportedModelError

# -- on tensors


def _axes(node: Node, axes: Value, x: Tensor) -> list[int]:
    """Axes by an input or, in older files, by an attribute; all of them where neither is given."""
    given = node.get("axes") if axes is None else numbers(axes, f"axes of {node}")
    return [int(a) % x.dim() for a in given] if given is not None else list(range(x.dim()))


def _reshaped(node: Node, value: Value, shape: Value) -> Tensor:
    x, sizes = tensor(value), numbers(shape, f"shape of {node}")
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _flattened(node: Node, value: Value) -> Tensor:
    x, axis = tensor(value), node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transposed(node: Node, value: Value) -> Tensor:
    x = tensor(value)
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


def _squeezed(node: Node, value: Value, axes: Value = None) -> Tensor:
    x = tensor(value)
    if axes is None and node.get("axes") is None:
        return x.squeeze([i for i, n in enumerate(x.shape) if isinstance(n, int) and n == 1])
    return x.squeeze(_axes(node, axes, x))


def _unsqueezed(node: Node, value: Value, axes: Value = None) -> Tensor:
    x, given = tensor(value), numbers(axes, f"axes of {node}")
    for axis in sorted(int(a) % (x.dim() + len(given)) for a in given):
        x = x.unsqueeze(axis)
    return x


def _joined(node: Node, *values: Value) -> Tensor:
    return torch.cat([tensor(v) for v in values], node.get("axis"))


def _split(node: Node, value: Value, sizes: Value = None) -> tuple[Tensor, ...]:
    x, axis, parts = tensor(value), node.get("axis", 0), len(node.outputs)
    if sizes is not None:
        return torch.split(x, numbers(sizes, f"sizes of {node}"), axis)
    return torch.split(x, -(-x.shape[axis] // parts), axis)


def _along(x: Tensor, axis: int, index: Any) -> Tensor:
    """`x[:, ..., index]`, all of the axes before."""
    return x[(slice(None),) * axis + (index,)]


def _sliced(node: Node, value: Value, *given: Value) -> Tensor:
    x = tensor(value)
    starts, ends, axes, steps = _slice_of(node, x.dim(), given)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            x = _along(x, axis, slice(start, end, step))
        else:
            x = x.index_select(axis, torch.tensor(range(x.shape[axis])[slice(start, _end(x.shape[axis], end), step)]))
    return x


def _end(size: int, end: Any) -> Any:
    """Where a slice that runs backwards ends: before the first place, if it is as far below as the standard allows."""
    return None if end < -size else end


def _slice_of(node: Node, dims: int, given: Sequence[Value]) -> tuple[list[Any], list[Any], list[int], list[int]]:
    starts, ends, axes, steps = (
        *(numbers(v, f"bounds of {node}") if v is not None else None for v in given),
        None,
        None,
    )[:4]
    assert starts is not None and ends is not None, "the standard asks for them"
    axes = list(range(len(starts))) if axes is None else axes
    return starts, ends, [int(a) % dims for a in axes], [int(s) for s in steps] if steps else [1] * len(starts)


def _gathered(node: Node, value: Value, index: Value) -> Tensor:
    x, axis = tensor(value), node.get("axis", 0)
    axis = axis % x.dim()
    if isinstance(index, np.ndarray):  # whole numbers: places
        if index.ndim == 0:
            return x.select(axis, number(index, "index"))
        return x.index_select(axis, tensor(index) % x.shape[axis])
    return _along(x, axis, tensor(index))


def _gathered_elements(node: Node, value: Value, index: Value) -> Tensor:
    x, axis = tensor(value), node.get("axis", 0)
    return torch.gather(x, axis, torch.remainder(tensor(index), x.shape[axis]))


def _expanded(node: Node, value: Value, shape: Value) -> Tensor:
    x, sizes = tensor(value), numbers(shape, f"shape of {node}")
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    return x.expand([o if isinstance(n, int) and n == 1 else n for n, o in zip(sizes, own, strict=True)])


def _tiled(node: Node, value: Value, repeats: Value) -> Tensor:
    return tensor(value).repeat(numbers(repeats, f"repeats of {node}"))


def _padded(node: Node, value: Value, pads: Value, fill: Value = None, axes: Value = None) -> Tensor:
    x, amounts, mode = tensor(value), numbers(pads, f"pads of {node}"), node.get("mode", "constant")
    if mode != "constant":
        raise UnsupportedModelError(f"{node} pads by {mode!r}, which is not read")
    places, sides = _axes(node, axes, x), [0] * (2 * x.dim())
    for k, axis in enumerate(places):
        sides[2 * (x.dim() - 1 - axis)] = amounts[k]
        sides[2 * (x.dim() - 1 - axis) + 1] = amounts[k + len(places)]
    return F.pad(x, sides, value=0 if fill is None else number(fill, f"what {node} fills with"))


def _one_hot(node: Node, ids: Value, depth: Value, values: Value) -> Tensor:
    index, count, (off, on) = tensor(ids), number(depth, f"depth of {node}"), tensor(values).unbind()
    places = torch.arange(count)
    axis = node.get("axis", -1) % (index.dim() + 1)
    places = places.reshape([count if i == axis else 1 for i in range(index.dim() + 1)])
    return torch.where(torch.where(index < 0, index + count, index).unsqueeze(axis) == places, on, off)


def _filled(node: Node, shape: Value) -> Value:
    fill, sizes = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(-1), numbers(shape, f"shape of {node}")
    if fill.dtype == np.int64 and len(sizes) == 1 and isinstance(sizes[0], int):
        few = as_value(np.full(sizes[0], fill[0]))
        if few is not None:
            return few
    return as_tensor(fill)[0].expand(sizes)


def _counted(node: Node, *bounds: Value) -> Tensor:
    return torch.arange(*(number(x, f"a bound of {node}") for x in bounds))


def _shape(node: Node, value: Value) -> np.ndarray:
    sizes = list(tensor(value).shape)[slice(node.get("start", 0), node.get("end"))]
    return np.array([*sizes, None], dtype=object)[:-1]


def _size(node: Node, value: Value) -> np.ndarray:
    return np.array(tensor(value).numel(), dtype=object)


def _triangle(node: Node, value: Value, diagonal: Value = None) -> Tensor:
    k = 0 if diagonal is None else number(diagonal, f"diagonal of {node}")
    return (torch.triu if node.get("upper", 1) else torch.tril)(tensor(value), k)


def _best(node: Node, value: Value, count: Value) -> tuple[Tensor, Tensor]:
    largest, in_order = bool(node.get("largest", 1)), bool(node.get("sorted", 1))
    made = torch.topk(tensor(value), number(count, f"k of {node}"), node.get("axis", -1), largest, in_order)
    return made.values, made.indices


# -- on whole numbers


def _arithmetic(function: Any) -> Operator:
    return lambda node, x, y: np.asarray(np.frompyfunc(function, 2, 1)(x, y), dtype=object)


def _quotient(x: Any, y: Any) -> Any:
    """Towards zero."""
    whole = x // y
    return whole + 1 if isinstance(whole, int) and whole < 0 and whole * y != x else whole


def _choice(node: Node, condition: Value, yes: Value, no: Value) -> np.ndarray:
    return np.asarray(np.frompyfunc(lambda c, x, y: x if c else y, 3, 1)(condition, yes, no), dtype=object)


def _part(node: Node, value: Any, *given: Value) -> np.ndarray:
    starts, ends, _, steps = _slice_of(node, 1, given)
    made: np.ndarray = value[slice(starts[0], ends[0], steps[0])]
    return made


def _multiplied(node: Node, value: Any, axes: Value = None) -> np.ndarray:
    return np.array([np.prod(value)] if node.get("keepdims", 1) else np.prod(value), dtype=object)


def _cast(node: Node, value: Any) -> Value:
    dtype = dtype_of(node.get("to"))
    if dtype == torch.bool:
        return np.asarray(np.frompyfunc(bool, 1, 1)(value), dtype=object)
    if dtype not in (torch.int32, torch.int64):
        return tensor(value).to(dtype)
    return np.asarray(np.frompyfunc(lambda x: int(x) if isinstance(x, bool) else x, 1, 1)(value), dtype=object)


WHOLE: dict[str, Operator] = {
    "Add": _arithmetic(operator.add), "Sub": _arithmetic(operator.sub), "Mul": _arithmetic(operator.mul),
    "Div": _arithmetic(_quotient), "Mod": _arithmetic(operator.mod), "Max": _arithmetic(max), "Min": _arithmetic(min),
    "Equal": _arithmetic(operator.eq), "Less": _arithmetic(operator.lt), "Greater": _arithmetic(operator.gt),
    "And": _arithmetic(lambda x, y: bool(x and y)), "Or": _arithmetic(lambda x, y: bool(x or y)),
    "Not": lambda node, x: np.asarray(np.frompyfunc(operator.not_, 1, 1)(x), dtype=object), "Where": _choice,
    "Identity": lambda node, x: x, "Cast": _cast,
    "Gather": lambda node, x, index: np.asarray(x[index.astype(np.int64)], dtype=object),
    "Concat": lambda node, *parts: np.concatenate([np.atleast_1d(p) for p in parts]),
    "Slice": _part,
    "Squeeze": lambda node, x, axes=None: x.reshape(()),
    "Reshape": lambda node, x, shape: x.reshape([int(n) for n in shape]),
    "Unsqueeze": lambda node, x, axes=None: x.reshape(1),
    "ReduceProd": _multiplied,
}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    "Reshape": _reshaped, "Flatten": _flattened, "Transpose": _transposed, "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed, "Concat": _joined, "Split": _split, "Slice": _sliced, "Gather": _gathered,
    "GatherElements": _gathered_elements, "Expand": _expanded, "Tile": _tiled, "Pad": _padded, "OneHot": _one_hot,
    "ConstantOfShape": _filled, "Range": _counted, "Shape": _shape, "Size": _size, "Trilu": _triangle, "TopK": _best,
}  # fmt: skip
