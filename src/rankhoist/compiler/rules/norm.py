"""Normalisation.

Law 1: BatchNorm in eval mode is `s * x + t` with weights s, t.
Law 2: a row norm over mixed blocks takes its statistics from those of the blocks (Chan, Golub and LeVeque, 1983),

    mean = sum_b n_b mean_b / n,    n var = sum_b M2_b + n_b (mean_b - mean)^2,

and is then `(x - mean) * s * weight + bias` with atoms `s` and `mean s` of width 1: a linear map that follows never
sees the normalised values. Context blocks contribute their statistics once per request.
Law 3: a row norm along axes that no cut goes through is the norm of every block, at the block's own rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from rankhoist.compiler.algebra import grid, joins, moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Form, plain, row_layout
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Node, Rate, aten
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import reduce as reductions
from rankhoist.compiler.rules.arguments import form, named, tidy
from rankhoist.compiler.rules.pointwise import ARITHMETIC, apply_op
from rankhoist.compiler.rules.table import table


def batch_norm(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`s * x + t` along axis 1, `s = weight / sqrt(var + eps)`, `t = bias - s * mean`."""
    arguments = named(node, args, kwargs)
    x = form(arguments["input"])
    if arguments.get("training"):
        raise Decline(f"batch statistics of {x.axes} mix its rows")
    if ROW in x.layout[1] or len(x.layout[1]) != 1:
        raise Decline(f"normalises axis 1 of {x.axes}, which is not channels alone")
    scale, shift = _scale_and_shift(interpreter, arguments)
    axes: tuple[tuple[int, ...], ...] = ((), (0,), *(() for _ in x.layout[2:]))
    s, t = (replace(plain(n, n.dtype, row_layout(1, rows=False)), layout=axes) for n in (scale, shift))
    if x.dtype != s.dtype:
        raise Decline(f"normalises {x.dtype} by statistics of {s.dtype}")
    scaled = grid.multiply(interpreter.b, [x, s], x.dtype)
    result = grid.total(interpreter.b, [scaled, t], x.dtype, (1.0, 1.0))
    return result if isinstance(node.meta["val"], torch.Tensor) else [result, *[None] * (len(node.meta["val"]) - 1)]


def _scale_and_shift(interpreter: Interpreter, arguments: dict[str, Value]) -> tuple[Node, Node]:
    """Both `[channels]`, in the weights stage."""
    builder = interpreter.b

    def weight(name: str, *others: str) -> Node | None:
        value = next((arguments[n] for n in (name, *others) if arguments.get(n) is not None), None)
        return None if value is None else joins.materialise(builder, form(value), interpreter.workload)

    mean, var = weight("running_mean", "mean"), weight("running_var", "var")
    if mean is None or var is None:
        raise Decline("no running mean and variance: batch statistics mix rows")
    scale = builder.pointwise(
        aten.rsqrt.default, (builder.pointwise(aten.add.Scalar, (var, arguments["eps"]), var.dtype),), var.dtype
    )
    gamma, beta = weight("weight"), weight("bias")
    if gamma is not None:
        scale = builder.pointwise(aten.mul.Tensor, (scale, gamma), gamma.dtype)
    shift = builder.pointwise(aten.mul.Tensor, (scale, mean), scale.dtype)
    if beta is not None:
        return scale, builder.pointwise(aten.sub.Tensor, (beta, shift), scale.dtype)
    return scale, builder.pointwise(aten.neg.default, (shift,), scale.dtype)


def row_norm(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`layer_norm`, `rms_norm`, by their blocks; `group_norm`: every row for itself, as one tensor."""
    arguments = named(node, args, kwargs)
    x: Form = form(arguments["input"])
    count = len(arguments["normalized_shape"]) if "normalized_shape" in arguments else len(x.layout) - 1
    last = x.layout[len(x.layout) - count :]
    if any(ROW in e for e in last):
        raise Decline(f"normalises over the rows of {x.axes}")
    if "normalized_shape" not in arguments and x.layout[0] != (ROW,):
        raise Decline(f"normalises groups of {x.axes}, whose first axis is not the rows")
    joined = tidy(interpreter, x)
    if "normalized_shape" not in arguments or not joined.mixed or x.dtype not in ARITHMETIC:
        return interpreter.run_rowwise(node, args, kwargs)
    cut = [d for e in last for d in e if len(joined.dims[d]) > 1]
    if not cut and all(len(e) == 1 for e in last):
        result = _norm_of_blocks(interpreter, node, arguments, joined, count)
    elif len(cut) == 1 and interpreter.level is Level.FULL:
        result = _block_norm(interpreter, node, arguments, x, count)
    else:
        return interpreter.run_rowwise(node, args, kwargs)
    return result if isinstance(node.meta["val"], torch.Tensor) else [result, None, None]


def _norm_of_blocks(interpreter: Interpreter, node: fx.Node, arguments: dict[str, Value], x: Form, count: int) -> Form:
    """Where the normalised axes are whole in every block, as tokens of a sequence are: block by block."""
    dims = [e[0] for e in x.layout[len(x.layout) - count :]]
    sizes = [x.sizes[d] for d in dims]
    names = ("weight",) if "rms_norm" in str(node.target) else ("weight", "bias")
    op = aten.rms_norm.default if "bias" not in names else aten.layer_norm.default
    weights = [
        None if arguments[n] is None else joins.materialise(interpreter.b, form(arguments[n]), interpreter.workload)
        for n in names
    ]
    if any(w is not None and w.rate is not Rate.WEIGHT for w in weights):
        raise Decline("normalises with weights that are computed from inputs")

    def call(block: Node, axes: list[int], shapes: Sequence[tuple[int, ...]]) -> list[Node]:
        return [interpreter.b.call(op, (block, sizes, *weights, arguments["eps"]), block.rate, shapes[0], x.dtype)]

    return reductions.by_blocks(interpreter, x, dims, [x.extents], [x.dtype], call)[0]


def _block_norm(interpreter: Interpreter, node: fx.Node, arguments: dict[str, Value], x: Form, count: int) -> Form:
    """`layer_norm` (or `rms_norm`, which has no mean) by law 2, unevaluated."""
    x = tidy(interpreter, interpreter.settled(tidy(interpreter, x)))
    dims = [d for e in x.layout[len(x.layout) - count :] for d in e]
    axes = sorted(x.axis(d) for d in dims)
    size = math.prod(x.sizes[d] for d in dims)
    centred = "rms_norm" not in str(node.target)
    mean = _mean(interpreter, x, dims, axes) if centred else None
    squares = _mean_square(interpreter, x, dims, axes, size, mean)
    eps = arguments["eps"] if arguments["eps"] is not None else torch.finfo(x.dtype).eps
    scale = apply_op(interpreter, aten.rsqrt.default, [apply_op(interpreter, aten.add.Scalar, [squares, eps])])
    parts = [grid.multiply(interpreter.b, [x, scale], x.dtype)]
    if mean is not None:
        parts.append(grid.multiply(interpreter.b, [mean, scale], x.dtype))
    result = grid.total(interpreter.b, parts, x.dtype, (1.0, -1.0)[: len(parts)])
    if arguments["weight"] is not None:
        result = grid.multiply(interpreter.b, [result, form(arguments["weight"])], x.dtype)
    if arguments.get("bias") is not None:
        result = grid.total(interpreter.b, [result, form(arguments["bias"])], x.dtype, (1.0, 1.0))
    return result


def _mean(interpreter: Interpreter, x: Form, dims: list[int], axes: list[int]) -> Form:
    scale = 1.0 / math.prod(x.sizes[d] for d in dims)
    return interpreter.settled(moves.with_axes(grid.sum_dims(interpreter.b, x, dims, scale), axes))


def _mean_square(
    interpreter: Interpreter, x: Form, dims: list[int], axes: list[int], size: int, mean: Form | None
) -> Form:
    """Mean square distance from `mean` (or from 0), block statistics first."""
    cut = next(d for d in dims if len(x.dims[d]) > 1)
    parts = []
    for k in range(len(x.dims[cut])):
        block = joins.segment(x, cut, k)
        own = math.prod(block.sizes[d] for d in dims)
        if mean is not None:
            middle = _mean(interpreter, block, dims, axes)
            shift = apply_op(interpreter, aten.square.default, [apply_op(interpreter, aten.sub.Tensor, [middle, mean])])
            parts.append((shift, own / size))
            block = apply_op(interpreter, aten.sub.Tensor, [block, middle])
        squares = apply_op(interpreter, aten.square.default, [block])
        parts.append((_mean(interpreter, squares, dims, axes), own / size))
    return interpreter.settled(grid.total(interpreter.b, [p for p, _ in parts], x.dtype, [s for _, s in parts]))


RULES = table([
    ("batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm", batch_norm),
    ("layer_norm native_layer_norm rms_norm group_norm native_group_norm", row_norm),
])  # fmt: skip
