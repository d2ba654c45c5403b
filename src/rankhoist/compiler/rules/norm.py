"""Normalisation.

Law 1: BatchNorm in eval mode is `s * x + t` with weights s, t.
Law 2: a row norm over mixed blocks takes its statistics from those of the blocks (Chan, Golub and LeVeque, 1983),

    mean = sum_b n_b mean_b / n,    n var = M2_a + M2_b + n_a n_b / (n_a + n_b) (mean_a - mean_b)^2,

and is then `(x - mean) * s * weight + bias` with atoms of width 1, `s` and the blocks' parts of `mean s`: a linear map
that follows never sees the normalised values. Context blocks contribute their statistics once per request.
Law 3: a row norm along axes that no cut goes through is the norm of every block, at the block's own rate.
Law 4: a norm of groups is law 3, or law 2, along what is in a group, then `x * weight + bias` with weights per channel;
whatever the first axis folds, a row with its tokens, groups of other rows and tokens do not meet.
Law 5: the deviation of mixed blocks is by law 2 a length, `sqrt(n var) = |x - mean| = |(|x_a - mean_a|, |x_b - mean_b|,
sqrt(n_a n_b / (n_a + n_b)) (mean_a - mean_b))|`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from rankhoist.compiler.algebra import folds, grid, joins, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law


def batch_norm(call: Call) -> Value:
    """`s * x + t` along axis 1, `s = weight / sqrt(var + eps)`, `t = bias - s * mean`."""
    x = call.tidy(call.form("input"))
    if call.value("training"):
        raise Decline(f"batch statistics of {x.axes} mix its rows")
    if ROW in x.layout[1] or len(x.layout[1]) != 1:
        raise Decline(f"normalises axis 1 of {x.axes}, which is not channels alone")
    axes: tuple[tuple[int, ...], ...] = ((), (0,), *(() for _ in x.layout[2:]))
    scale, shift = (replace(weight, layout=axes) for weight in _scale_and_shift(call))
    if x.dtype != scale.dtype:
        raise Decline(f"normalises {x.dtype} by statistics of {scale.dtype}")
    scaled = grid.multiply(call.builder, [x, scale], x.dtype)
    return grid.total(call.builder, [scaled, shift], x.dtype, (1.0, 1.0))


def _scale_and_shift(call: Call) -> tuple[Form, Form]:
    """Both `[channels]`, in the weights stage."""
    if call.value("running_mean", "mean") is None or call.value("running_var", "var") is None:
        raise Decline("no running mean and variance: batch statistics mix rows")
    mean, var = call.form("running_mean", "mean"), call.form("running_var", "var")
    scale = call.run(aten.rsqrt.default, call.run(aten.add.Scalar, var, call.value("eps", "epsilon")))
    if call.value("weight") is not None:
        scale = call.run(aten.mul.Tensor, scale, call.form("weight"))
    shift = call.run(aten.mul.Tensor, scale, mean)
    if call.value("bias") is not None:
        return scale, call.run(aten.sub.Tensor, call.form("bias"), shift)
    return scale, call.run(aten.neg.default, shift)


def norm_of_cut_axis(call: Call) -> Value:
    """Law 2: `layer_norm` (or `rms_norm`, which has no mean) of blocks along one cut axis, unevaluated."""
    x, count = _normalised(call)
    joined = call.tidy(x)
    cut = [d for e in x.layout[len(x.layout) - count :] for d in e if len(joined.dims[d]) > 1]
    if len(cut) != 1 or not joined.mixed or not x.arithmetic:
        raise Elsewhere(f"{len(cut)} of the normalised axes of {x.axes} hold both context and candidate")
    eps = call.value("eps") if call.value("eps") is not None else torch.finfo(x.dtype).eps
    return _affine(call, _by_statistics(call, x, count, len(_weights(call)) > 1, eps))


def norm_of_cut_groups(call: Call) -> Value:
    """Law 2 of `group_norm` along what is in a group, unevaluated."""
    x = _in_groups(call)
    if not x.mixed or len(x.dims[x.dim(2)]) == 1 or not x.arithmetic:
        raise Elsewhere(f"no group of {call.form('input').axes} holds both context and candidate")
    return _out_of_groups(call, _by_statistics(call, x, 1, True, call.value("eps")))


def norm_of_blocks(call: Call) -> Value:
    """Law 3: where the normalised axes are whole in every block, as tokens of a sequence are: block by block."""
    x, count = _normalised(call)
    x = call.tidy(x)
    last = x.layout[len(x.layout) - count :]
    if not (x.mixed or x.read) or not x.arithmetic or any(len(x.dims[d]) > 1 for e in last for d in e):
        raise Elsewhere(f"a normalised axis of {x.axes} is cut, or all of it is known at one rate")
    if any(len(e) != 1 for e in last):
        raise Elsewhere(f"a normalised axis of {x.axes} is folded")
    weights = [call.form(n) if call.value(n) is not None else None for n in _weights(call)]
    if any(w is not None and not w.of_weights for w in weights):
        raise Decline("normalises with weights that are computed from inputs")
    op = aten.layer_norm.default if len(weights) > 1 else aten.rms_norm.default
    dims = [d for e in last for d in e]
    sizes, eps = [x.sizes[d] for d in dims], call.value("eps")
    return call.along(x, dims, lambda part, _: call.run(op, part, sizes, *weights, eps))


def norm_of_groups(call: Call) -> Value:
    """Law 4, or every row for itself where no group is known before the others."""
    x, _ = _normalised(call)
    if x.layout[0] == (ROW,) and not x.mixed:
        return call.rowwise()
    grouped = _in_groups(call)
    dim = grouped.dim(2)
    if x.layout[0] == (ROW,) and len(grouped.dims[dim]) > 1:
        return call.rowwise()
    size, eps = grouped.sizes[dim], call.value("eps")
    normed = call.along(
        grouped, [dim], lambda part, _: call.run(aten.layer_norm.default, part, [size], None, None, eps)
    )
    return _out_of_groups(call, normed)


def _in_groups(call: Call) -> Form:
    """`[rows, channels, ...]` as `[rows, groups, all that is in one]`."""
    x, _ = _normalised(call)
    groups = call.number("num_groups")
    inside = math.prod(size for size, _ in x.extents[1:]) // groups
    return call.tidy(folds.to_shape(call.builder, x, [x.extents[0], (groups, False), (inside, False)]))


def _out_of_groups(call: Call, normed: Form) -> Form:
    """With the axes of what is normalised, by weights per channel."""
    own = call.form("input").extents
    axes: tuple[tuple[int, ...], ...] = ((), (0,), *(() for _ in own[2:]))
    return _affine(call, folds.to_shape(call.builder, normed, own), axes)


def norm_of_rows(call: Call) -> Value:
    """Every row for itself, as one tensor."""
    x, _ = _normalised(call)
    if call.value("normalized_shape") is None and x.layout[0] != (ROW,):
        raise Decline(f"normalises groups of {x.axes}, whose first axis is not the rows")
    return call.rowwise()


def spread_of_cut_axis(call: Call) -> Value:
    """Law 5: `var`, `std`, and with the mean, of blocks along one cut axis."""
    given = call.form("self")
    free = _degrees_taken(call)
    dims = given.dims_of(call.value("dim"))
    joined = call.tidy(given)
    cut = [d for d in dims if len(joined.dims[d]) > 1]
    if len(cut) != 1 or joined.varies(cut[0]) or not joined.mixed or not given.arithmetic:
        raise Elsewhere(f"axis {call.value('dim')} of {given.axes} is one block")
    x = call.tidy(call.settled(joined))
    size, cut = math.prod(x.sizes[d] for d in dims), [d for d in dims if len(x.dims[d]) > 1]
    if not cut or size <= free:
        raise Elsewhere(f"axis {call.value('dim')} of {given.axes} is known at one rate, or has no variance")
    axes = sorted(x.axis(d) for d in dims)
    aside = [y for pair in _centred(call, x, dims, axes, 1) for y in pair if y is not None]
    apart = joins.along_axis(call.builder, [_length(call, y, dims, True) for y in aside], x.axis(cut[0]))
    spread = _length(call, apart, dims, bool(call.value("keepdim")))
    spread = call.each(aten.div.Scalar, spread, math.sqrt(size - free))
    made = _square(call, spread) if call.name.startswith("var") else spread
    return [made, _mean(call, x, dims, axes if call.value("keepdim") else [])] if call.name.endswith("mean") else made


def _normalised(call: Call) -> tuple[Form, int]:
    """What is normalised, and along how many last axes; none of them are the rows."""
    x, sizes = call.form("input"), call.value("normalized_shape")
    count = len(x.layout) - 1 if sizes is None else len(sizes)
    if any(ROW in e for e in x.layout[len(x.layout) - count :]):
        raise Decline(f"normalises over the rows of {x.axes}")
    return x, count


def _weights(call: Call) -> tuple[str, ...]:
    return ("weight",) if "rms_norm" in call.name else ("weight", "bias")


def _degrees_taken(call: Call) -> float:
    """Of freedom: 1, or what is asked for."""
    asked = call.value("correction", "unbiased")
    return 1.0 if asked is None else float(asked)


def _length(call: Call, x: Form, dims: list[int], keepdim: bool) -> Form:
    """Of vectors along `dims`; the gradient at 0 is 0."""
    length: Form = call.along(x, dims, lambda part, at: call.run(aten.linalg_vector_norm.default, part, 2, at, keepdim))
    return length


def _by_statistics(call: Call, x: Form, count: int, centred: bool, eps: float) -> Form:
    """Law 2 along the last axes, without weights."""
    x = call.tidy(call.settled(call.tidy(x)))
    dims = [d for e in x.layout[len(x.layout) - count :] for d in e]
    if all(len(x.dims[d]) == 1 for d in dims):
        raise Elsewhere(f"both sides of the normalised axes of {x.axes} are known at one rate once they are computed")
    axes = sorted(x.axis(d) for d in dims)
    scale = call.each(aten.rsqrt.default, _mean_square(call, x, dims, axes, centred, eps))
    parts = [grid.multiply(call.builder, [x, scale], x.dtype)]
    if centred:
        parts.append(grid.multiply(call.builder, [_parts_of_mean(call, x, dims, axes), scale], x.dtype))
    return grid.total(call.builder, parts, x.dtype, (1.0, -1.0)[: len(parts)])


def _affine(call: Call, normed: Form, axes: tuple[tuple[int, ...], ...] | None = None) -> Form:
    """`x * weight + bias`, as far as there are such, which lie along `axes`, by default along the last."""
    weight, bias = (None if call.value(n) is None else call.form(n) for n in ("weight", "bias"))
    if weight is not None:
        own = replace(weight, layout=axes or weight.layout)
        normed = grid.multiply(call.builder, [normed, own], normed.dtype)
    if bias is not None:
        normed = grid.total(call.builder, [normed, replace(bias, layout=axes or bias.layout)], normed.dtype, (1.0, 1.0))
    return normed


def _mean(call: Call, x: Form, dims: list[int], axes: list[int]) -> Form:
    return call.settled(_parts_of_mean(call, x, dims, axes))


def _parts_of_mean(call: Call, x: Form, dims: list[int], axes: list[int]) -> Form:
    """The mean as the sum of what each block adds to it."""
    scale = 1.0 / math.prod(x.sizes[d] for d in dims)
    return moves.with_axes(grid.sum_dims(call.builder, x, dims, scale), axes)


def _mean_square(call: Call, x: Form, dims: list[int], axes: list[int], centred: bool, eps: float) -> Form:
    """`eps` and the mean square, or the mean square distance from the mean."""
    size = math.prod(x.sizes[d] for d in dims)
    parts = [(grid.constant_form(call.builder, eps, x.dtype, ()), 1.0)]
    for block, apart in _centred(call, x, dims, axes, size) if centred else ((b, None) for b in _as_known(x, dims)):
        if apart is not None:
            parts.append((_square(call, apart), 1.0))
        own = math.prod(block.sizes[d] for d in dims)
        parts.append((_mean(call, _square(call, block), dims, axes), own / size))
    return _sum(call, [p for p, _ in parts], [s for _, s in parts])


def _centred(call: Call, x: Form, dims: list[int], axes: list[int], size: int) -> Iterator[tuple[Form, Form | None]]:
    """Every block less its mean, and what its mean adds to those before: squares of all are the `n var` of law 2.

    Blocks of n and m elements, whose means are a and b, are one in which `n m / (n + m) (a - b)^2` is added to the
    squares, here by `size`. What is known first is joined first.
    """
    before, count = None, 0  # mean and number of the elements of the blocks so far
    for block in _as_known(x, dims):
        own = math.prod(block.sizes[d] for d in dims)
        middle, apart = _mean(call, block, dims, axes), None
        block = call.each(aten.sub.Tensor, block, middle)
        if before is not None:
            share = math.sqrt(count * own / (count + own) / size)
            apart = _sum(call, [before, middle], [share, -share])
            middle = _sum(call, [before, middle], [count / (count + own), own / (count + own)])
        before, count = middle, count + own
        yield block, apart


def _as_known(x: Form, dims: list[int]) -> list[Form]:
    """The blocks along the axis that is cut, what is known first in front."""
    cut = next(d for d in dims if len(x.dims[d]) > 1)
    return sorted(joins.segments(x, cut), key=lambda block: block.rate)


def _square(call: Call, x: Form) -> Form:
    return call.each(aten.square.default, x)


def _sum(call: Call, forms: Sequence[Form], scales: Sequence[float]) -> Form:
    """Evaluated."""
    return call.settled(grid.total(call.builder, forms, forms[0].dtype, scales))


BY_AXES = "layer_norm native_layer_norm rms_norm"

LAWS = [
    *law("batch norm", Level.REQUEST, {
        "batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm": batch_norm,
    }, blocks=Level.LINEAR),
    *law("layer norm over blocks", Level.FULL, {BY_AXES: norm_of_cut_axis, "group_norm": norm_of_cut_groups}),
    *law("spread over blocks", Level.FULL, {"var std var_mean std_mean": spread_of_cut_axis}),
    *law("norm of blocks", Level.LINEAR, {BY_AXES: norm_of_blocks}),
    *law("one side alone", Level.REQUEST, {
        f"{BY_AXES} native_group_norm": norm_of_rows,
        "group_norm": norm_of_groups,
    }, blocks=Level.LINEAR),
]  # fmt: skip
