"""Reductions and other operators along axes that hold no rows. Sums keep the form; the rest works block by block."""

from __future__ import annotations

import math

from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law


def sum_(call: Call) -> Form:
    """`sum`: linear, so terms keep their coefficients."""
    return _linear(call, 1.0)


def mean(call: Call) -> Form:
    """`mean`: a sum with a scale."""
    value = call.form("self")
    return _linear(call, 1.0 / math.prod(value.sizes[d] for d in value.dims_of(call.value("dim"))))


def _linear(call: Call, scale: float) -> Form:
    value = call.form("self")
    dims = value.dims_of(call.value("dim"))
    if not value.arithmetic or value.dtype != call.out.dtype:
        raise Elsewhere(f"adds {value.dtype} up to {call.out.dtype}")
    axes = sorted(value.axis(d) for d in dims)
    result = grid.sum_dims(call.builder, call.tidy(value), dims, scale)
    return moves.with_axes(result, axes) if call.value("keepdim") else result


def along(call: Call) -> Value:
    """`softmax`, `max`, `sort`, ...: one tensor along the named axes, block by block along the others."""
    value, axis = call.form("self"), call.value("dim")
    dims = value.dims_of(axis)
    single = isinstance(axis, int)
    if single and len(dims) > 1:
        raise Decline(f"works along several folded axes: axis {axis} of {value.axes}")
    return call.along(value, dims, lambda part, axes: call.again(self=part, dim=axes[0] if single else axes))


LAWS = [
    *law("sums", Level.REQUEST, {"sum": sum_, "mean": mean}, blocks=Level.LINEAR),
    *law("one side alone", Level.REQUEST, {
        "log_softmax _log_softmax cumsum cumprod logcumsumexp cummax cummin": along,
        "sort argsort topk kthvalue sum mean logsumexp any all prod": along,
        "max.default max.dim min.default min.dim amax amin argmax argmin": along,
        "var std var_mean std_mean linalg_vector_norm norm": along,
        "median nanmedian mode nansum count_nonzero": along,
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft": along,
    }, blocks=Level.LINEAR),
]  # fmt: skip
