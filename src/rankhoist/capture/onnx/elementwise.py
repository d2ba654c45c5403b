"""Elementwise operators of ONNX, with the standard's own defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.capture.onnx.graph import Node
from rankhoist.capture.onnx.values import Value, number, tensor
from rankhoist.errors import UnsupportedModelError

Operator = Callable[..., Any]

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def of_tensors(function: Callable[..., Tensor]) -> Operator:
    """An operator whose operands are all tensors, and which has no attribute."""
    return lambda node, *values: function(*map(tensor, values))


def dtype_of(number: int) -> torch.dtype:
    """A dtype by its number in the standard."""
    if number not in DTYPES:
        raise UnsupportedModelError(f"the ONNX file computes in dtype number {number}, which is not read")
    return DTYPES[number]


def _cast(node: Node, value: Value) -> Tensor:
    return tensor(value).to(dtype_of(node.get("to")))


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _power(node: Node, value: Value, exponent: Value) -> Tensor:
    """Of the dtype of the base; a constant exponent as a number, as a model's author would write it."""
    x = tensor(value)
    y = tensor(exponent) if isinstance(exponent, Tensor) else number(exponent, "an exponent")
    return torch.pow(x, y).to(x.dtype)


def _modulo(node: Node, x: Value, y: Value) -> Tensor:
    return (torch.fmod if node.get("fmod", 0) else torch.remainder)(tensor(x), tensor(y))


def _clipped(node: Node, value: Value, low: Value = None, high: Value = None) -> Tensor:
    made = tensor(value)
    made = made if low is None else torch.maximum(made, tensor(low))
    return made if high is None else torch.minimum(made, tensor(high))


def _gelu(node: Node, value: Value) -> Tensor:
    return F.gelu(tensor(value), approximate=node.get("approximate", "none"))


def _selu(node: Node, value: Value) -> Tensor:
    x = tensor(value)
    alpha: float = node.get("alpha", 1.67326319217681884765625)
    gamma: float = node.get("gamma", 1.05070102214813232421875)
    return torch.where(x > 0, x, torch.expm1(x) * alpha) * gamma


def _hard_sigmoid(node: Node, value: Value) -> Tensor:
    slope: float = node.get("alpha", 0.2)
    start: float = node.get("beta", 0.5)
    return (tensor(value) * slope + start).clamp(0, 1)


def _prelu(node: Node, value: Value, slope: Value) -> Tensor:
    x = tensor(value)
    return torch.where(x < 0, x * tensor(slope), x)


def _dropout(node: Node, value: Value, ratio: Value = None, training: Value = None) -> tuple[Value, Value]:
    if training is not None and number(training, f"the mode of {node}"):
        raise UnsupportedModelError(f"{node} drops values out, as in training: export the model in eval mode")
    return value, None


def _with(function: Callable[..., Tensor], **defaults: float) -> Operator:
    """An operator of one tensor, and of numbers that are attributes in the order of `defaults`."""
    return lambda node, value: function(tensor(value), *(node.get(name, own) for name, own in defaults.items()))


def _each(function: Callable[..., Tensor]) -> Operator:
    """An operator of two tensors, of any number of them."""
    return lambda node, *values: reduce(function, map(tensor, values))


def _mean(node: Node, *values: Value) -> Tensor:
    return reduce(torch.add, map(tensor, values)) / len(values)


OPERATORS: dict[str, Operator] = {
    **{name: of_tensors(getattr(torch, name.lower())) for name in (
        "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Relu", "Erf", "Floor", "Ceil", "Round",
        "Sign", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "IsNaN",
    )},
    "Add": of_tensors(torch.add), "Sub": of_tensors(torch.sub), "Mul": of_tensors(torch.mul),
    "Div": of_tensors(_divided), "Pow": _power, "Mod": _modulo,
    "Equal": of_tensors(torch.eq), "Greater": of_tensors(torch.gt), "Less": of_tensors(torch.lt),
    "GreaterOrEqual": of_tensors(torch.ge), "LessOrEqual": of_tensors(torch.le),
    "And": of_tensors(torch.logical_and), "Or": of_tensors(torch.logical_or), "Xor": of_tensors(torch.logical_xor),
    "Not": of_tensors(torch.logical_not), "Where": of_tensors(torch.where),
    "Max": _each(torch.maximum), "Min": _each(torch.minimum), "Sum": _each(torch.add), "Mean": _mean,
    "Cast": _cast, "CastLike": lambda node, x, like: tensor(x).to(tensor(like).dtype),
    "Clip": _clipped, "Identity": lambda node, x: x, "Dropout": _dropout,
    "Gelu": _gelu, "Selu": _selu, "PRelu": _prelu, "HardSigmoid": _hard_sigmoid,
    "HardSwish": of_tensors(F.hardswish), "Mish": of_tensors(F.mish), "Softsign": of_tensors(F.softsign),
    "Softplus": of_tensors(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Elu": _with(F.elu, alpha=1.0), "Celu": _with(F.celu, alpha=1.0), "LeakyRelu": _with(F.leaky_relu, alpha=0.01),
    "ThresholdedRelu": _with(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0),
}  # fmt: skip
