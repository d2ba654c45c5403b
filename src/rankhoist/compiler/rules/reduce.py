"""Reductions and other operators along axes that hold no rows. Sums keep the form; the rest works block by block."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

from rankhoist.compiler.algebra import grid, joins, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

JOINS = {
    "amax": aten.maximum.default,
    "amin": aten.minimum.default,
    "any": aten.logical_or.default,
    "all": aten.logical_and.default,
    "prod": aten.mul.Tensor,
    "logsumexp": aten.logaddexp.default,
}
NEUTRAL = {"amax": -math.inf, "amin": math.inf}  # of these there is no value of no position


def sum_(call: Call) -> Form:
    """`sum`: linear, so terms keep their coefficients."""
    return _linear(call, 1.0)


def mean(call: Call) -> Form:
    """`mean`: a sum with a scale."""
    value = call.form("self")
    count = math.prod(value.sizes[d] for d in value.dims_of(call.value("dim")))
    if count == 0:
        raise Elsewhere(f"axis {call.value('dim')} of {value.axes} has no mean")
    return _linear(call, 1.0 / count)


def _linear(call: Call, scale: float) -> Form:
    value = call.form("self")
    dims = value.dims_of(call.value("dim"))
    if not value.arithmetic or value.dtype != call.out.dtype:
        raise Elsewhere(f"adds {value.dtype} up to {call.out.dtype}")
    axes = sorted(value.axis(d) for d in dims)
    result = grid.sum_dims(call.builder, call.tidy(value), dims, scale)
    return moves.with_axes(result, axes) if call.value("keepdim") else result


def of_parts(call: Call) -> Form:
    """`amax`, `any`, ...: of the parts that are known equally often, then of these."""
    value, dims, cut = _cut(call)
    parts = joins.segments(value, cut)
    made: list[Form]
    if call.name in NEUTRAL and value.varies(cut):
        if not value.dtype.is_floating_point or len(dims) > 1:
            raise Elsewhere(f"a part of axis {call.value('dim')} of {value.axes} may have no position")
        pairs = (joins.with_one_more(call.builder, part, cut, NEUTRAL[call.name]) for part in parts)
        made = [_along(call, part, [dim]) for part, dim in pairs]
    else:
        made = [_along(call, part, dims) for part in parts]
    return reduce(lambda x, y: call.each(JOINS[call.name], x, y), made)


def norm_of_parts(call: Call) -> Value:
    """The norm of the norms of the parts, `|[a; b]|_p = |[|a|_p; |b|_p]|_p`."""
    value, dims, cut = _cut(call)
    order = 2 if call.value("ord", "p") is None else call.value("ord", "p")
    if order == 0:
        raise Elsewhere("counts what is not 0, and counts of the parts would count as one each")
    if value.varies(cut) and not 0 < order < math.inf:
        raise Elsewhere(f"a part of axis {call.value('dim')} of {value.axes} may have no position")
    own = [
        call.along(x, dims, lambda part, axes: _again(call, part, axes, keepdim=True))
        for x in joins.segments(value, cut)
    ]
    return _along(call, joins.along_axis(call.builder, own, value.axis(cut)), dims)


def _cut(call: Call) -> tuple[Form, list[int], int]:
    """What is reduced, along which dims, and the one of them that has parts."""
    value = call.tidy(call.form("self"))
    dims = value.dims_of(call.value("dim"))
    cut = [d for d in dims if len(value.dims[d]) > 1]
    if len(cut) != 1 or not value.mixed or value.dtype != call.out.dtype:
        raise Elsewhere(f"axis {call.value('dim')} of {value.axes} is one block")
    return value, dims, cut[0]


def along(call: Call) -> Value:
    """`softmax`, `max`, `sort`, ...: one tensor along the named axes, block by block along the others."""
    value, axis = call.form("self"), call.value("dim")
    dims = value.dims_of(axis)
    if isinstance(axis, int) and len(dims) > 1:
        raise Decline(f"works along several folded axes: axis {axis} of {value.axes}")
    return _along(call, value, dims)


def transformed(call: Call) -> Value:
    """A Fourier transform along several axes."""
    value, axes = call.form("self"), call.value("dim")
    if axes is None:
        raise Decline(f"transforms all axes of {value.axes}, the rows among them")
    dims = value.dims_of(axes)
    if any(len(value.dims_of(axis)) != 1 for axis in axes):
        raise Decline(f"transforms folded axes: axes {axes} of {value.axes}")
    return _along(call, value, dims)


def _along(call: Call, value: Form, dims: list[int]) -> Value:
    return call.along(value, dims, lambda part, axes: _again(call, part, axes))


def _again(call: Call, part: Form, axes: list[int], **changed: Value) -> Any:
    """The operator on a part."""
    return call.again(self=part, dim=axes[0] if isinstance(call.value("dim"), int) else axes, **changed)


LAWS = [
    *law("sums", Level.REQUEST, {"sum": sum_, "mean": mean}, blocks=Level.LINEAR),
    *law("largest of parts", Level.LINEAR, {"any all prod logsumexp": of_parts}),
    *law("largest of parts", Level.LINEAR, {"amax amin": of_parts}, ties=True),
    *law("norm of parts", Level.LINEAR, {"linalg_vector_norm norm": norm_of_parts}),
    *law("one side alone", Level.REQUEST, {
        "log_softmax _log_softmax cumsum cumprod logcumsumexp cummax cummin": along,
        "sort argsort topk kthvalue sum mean logsumexp any all prod": along,
        "max.default max.dim min.default min.dim amax amin argmax argmin": along,
        "var std var_mean std_mean linalg_vector_norm norm": along,
        "median nanmedian mode nansum count_nonzero": along,
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft": along,
        "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn": transformed,
        "_fft_c2c _fft_r2c _fft_c2r": transformed,
    }, blocks=Level.LINEAR),
]  # fmt: skip
