"""Normalisation. Law: BatchNorm in eval mode is `s * x + t` with weights s, t; the others normalise row by row."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from rankhoist.algebra import grid
from rankhoist.algebra.forms import ROW, Form, plain, row_layout
from rankhoist.algebra.interpret import Decline, Interpreter, Value
from rankhoist.algebra.ir import Node, aten
from rankhoist.rules.arguments import form, named
from rankhoist.rules.table import table


def batch_norm(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`s * x + t` along axis 1, `s = weight / sqrt(var + eps)`, `t = bias - s * mean`."""
    a = named(node, args, kwargs)
    x = form(a["input"])
    if a.get("training"):
        raise Decline("batch statistics mix rows")
    if ROW in x.layout[1] or len(x.layout[1]) != 1:
        raise Decline("normalises an axis that holds rows")
    scale, shift = _scale_and_shift(c, a)
    axes: tuple[tuple[int, ...], ...] = ((), (0,), *(() for _ in x.layout[2:]))
    s, t = (replace(plain(n, n.dtype, row_layout(1, rows=False)), layout=axes) for n in (scale, shift))
    if x.dtype != s.dtype:
        raise Decline(f"normalises {x.dtype} by statistics of {s.dtype}")
    scaled = grid.multiply(c.b, [x, s], x.dtype)
    result = grid.total(c.b, [scaled, t], x.dtype, (1.0, 1.0))
    return result if isinstance(node.meta["val"], torch.Tensor) else [result, *[None] * (len(node.meta["val"]) - 1)]


def _scale_and_shift(c: Interpreter, a: dict[str, Value]) -> tuple[Node, Node]:
    """Both `[channels]`, in the weights stage."""
    b = c.b

    def weight(name: str, *others: str) -> Node | None:
        value = next((a[n] for n in (name, *others) if a.get(n) is not None), None)
        return None if value is None else grid.materialise(b, form(value), c.rows)

    mean, var = weight("running_mean", "mean"), weight("running_var", "var")
    if mean is None or var is None:
        raise Decline("batch statistics mix rows")
    scale = b.pointwise(aten.rsqrt.default, (b.pointwise(aten.add.Scalar, (var, a["eps"]), var.dtype),), var.dtype)
    gamma, beta = weight("weight"), weight("bias")
    if gamma is not None:
        scale = b.pointwise(aten.mul.Tensor, (scale, gamma), gamma.dtype)
    shift = b.pointwise(aten.mul.Tensor, (scale, mean), scale.dtype)
    if beta is not None:
        return scale, b.pointwise(aten.sub.Tensor, (beta, shift), scale.dtype)
    return scale, b.pointwise(aten.neg.default, (shift,), scale.dtype)


def row_norm(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`layer_norm`, `rms_norm`, `group_norm`: every row for itself, as one tensor."""
    a = named(node, args, kwargs)
    x: Form = form(a["input"])
    count = len(a["normalized_shape"]) if "normalized_shape" in a else len(x.layout) - 1
    last = x.layout[len(x.layout) - count :]
    if any(ROW in e for e in last):
        raise Decline("normalises over the rows")
    if "normalized_shape" not in a and x.layout[0] != (ROW,):
        raise Decline("normalises groups of an axis other than the rows'")
    return c.run_rowwise(node, args, kwargs)


RULES = table([
    ("batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm", batch_norm),
    ("layer_norm native_layer_norm rms_norm group_norm native_group_norm", row_norm),
])  # fmt: skip
