"""Elementwise operators. Law: `f` of blocks is the blocks of `f`; arithmetic with a request-rate operand keeps the
form.
"""

from __future__ import annotations

from dataclasses import replace

from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law


def elementwise(call: Call) -> Form:
    """`f(x, y, ...)`: block by block, each at the rate of its own operands."""
    return call.each()


def prelu(call: Call) -> Form:
    """`x if x > 0 else w x`, one `w` for all or one per channel (axis 1)."""
    value, weight = call.forms("self", "weight")
    if len(weight.layout) == 1 and len(value.layout) > 1:
        weight = replace(weight, layout=((), weight.layout[0], *(() for _ in value.layout[2:])))
    return call.each(aten._prelu_kernel.default, value, weight)


def identity(call: Call) -> Form:
    """Copies and inactive dropout change nothing."""
    if call.value("train"):
        raise Decline("drops out in training mode")
    return call.form()


def cast(call: Call) -> Form:
    """A change of dtype, or nothing."""
    return call.cast(call.form(), call.out.dtype)


def conjugate(call: Call) -> Form:
    """The conjugate of every number, as new elements."""
    return call.each(aten.conj_physical.default, call.form())


def of_pairs(call: Call) -> Form:
    """`[..., 2] -> [...]`: `x_0 + i x_1`, wherever in memory the two lie."""
    value = call.form()
    dims = value.dims_of(-1)
    if len(dims) > 1:
        raise Decline(f"pairs along several folded axes: the last of {value.axes}")

    def joined(part: Form, axes: list[int]) -> Value:
        return call.run(aten.complex.default, *(call.run(aten.select.int, part, axes[0], i) for i in (0, 1)))

    joint: Form = call.along(value, dims, joined)
    return joint


def in_pairs(call: Call) -> Form:
    """`[...] -> [..., 2]`: real and imaginary part of every number."""
    return call.by_element(call.tidy(call.form()), lambda part: call.again(self=part))


def fill(call: Call) -> Form:
    """`full`, `zeros_like`, ...: one number, constant along every axis, whatever the row count."""
    value = 1 if "ones" in call.name else 0
    if "full" in call.name or call.name == "scalar_tensor":
        value = call.value("fill_value", "s")
    if not isinstance(value, int | float | bool):
        raise Decline("filled with a value that is no number")
    return grid.constant_form(call.builder, value, call.out.dtype, call.out.extents)


# -- arithmetic


def add(call: Call) -> Form:
    """`x + alpha y`: terms side by side."""
    return call.arithmetic(scales=(1.0, _alpha(call)))


def subtract(call: Call) -> Form:
    """`x - alpha y`: terms side by side."""
    return call.arithmetic(scales=(1.0, -_alpha(call)))


def subtract_from(call: Call) -> Form:
    """`y - alpha x`: terms side by side."""
    return call.arithmetic(scales=(-_alpha(call), 1.0))


def negate(call: Call) -> Form:
    """`-x`: the scale of every term."""
    return call.arithmetic(scales=(-1.0,))


def _alpha(call: Call) -> float:
    alpha = call.value("alpha")
    if isinstance(alpha, complex):
        raise Elsewhere("a factor is complex")
    return float(alpha)


def multiply(call: Call) -> Form:
    """`x * y`: where one side does not depend on the candidate, it joins the coefficients of the other."""
    return call.arithmetic(powers=(1, 1))


def divide(call: Call) -> Form:
    """`x / y`, y per request or less: its reciprocal joins the coefficients of x."""
    if call.value("rounding_mode") is not None:
        raise Elsewhere("rounds the quotient")
    return call.arithmetic(powers=(1, -1))


UNARY = """
abs acos acosh angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min clip cos cosh deg2rad
detach digamma elu erf erfc erfinv exp exp2 expm1 fix floor frac gelu hardshrink hardsigmoid hardswish hardtanh i0
isfinite isinf isnan isneginf isposinf leaky_relu lgamma log log10 log1p log2 log_sigmoid logical_not logit mish
nan_to_num polygamma positive rad2deg reciprocal relu relu6 round rsqrt selu sgn sigmoid sign signbit silu sin sinc
sinh softplus softshrink special_bessel_j0 special_bessel_j1 special_entr special_erfcx special_expit special_i0e
special_i1 special_i1e special_log_ndtr special_ndtri sqrt square tan tanh tanhshrink threshold trunc
"""
SEVERAL = """
__and__ __lshift__ __or__ __rshift__ __xor__ add addcdiv addcmul atan2 bitwise_and bitwise_left_shift bitwise_or
bitwise_right_shift bitwise_xor complex copysign div eq floor_divide fmax fmin fmod gcd ge greater greater_equal gt
heaviside hypot igamma igammac lcm ldexp le lerp less less_equal logaddexp logaddexp2 logical_and logical_or
logical_xor lt masked_fill maximum minimum mul multiply ne neg nextafter not_equal polar pow remainder rsub
special_xlog1py special_xlogy special_zeta sub subtract true_divide where xlogy
"""


LAWS = [
    *law("sums keep their terms", Level.FULL, {
        "add": add,
        "sub": subtract,
        "rsub": subtract_from,
        "neg": negate,
    }),
    *law("a factor per request", Level.FULL, {"mul": multiply, "div": divide}),
    *law("elementwise on blocks", Level.EXPAND, {
        "clone alias lift lift_fresh lift_fresh_copy contiguous": identity,
    }),
    *law("elementwise on blocks", Level.LOOKUP, {"_to_copy to _cast_Float float": cast}),
    *law("elementwise on blocks", Level.REQUEST, {
        UNARY + SEVERAL + "max.other min.other": elementwise,
        "dropout feature_dropout alpha_dropout": identity,
        "prelu _prelu_kernel": prelu,
        "_conj _conj_physical conj_physical": conjugate,
        "resolve_conj resolve_neg": identity,
        "view_as_complex": of_pairs,
        "view_as_real": in_pairs,
    }, blocks=Level.LINEAR),
    *law("constants and broadcasts", Level.REQUEST, {
        "full full_like new_full zeros zeros_like new_zeros ones ones_like new_ones": fill,
        "empty empty_like new_empty scalar_tensor": fill,
    }, blocks=Level.LINEAR),
]  # fmt: skip
