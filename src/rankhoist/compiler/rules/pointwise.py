"""Elementwise operators. Law: `f` of blocks is the blocks of `f`; arithmetic with a request-rate operand keeps the
form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import fx

from rankhoist.capture.program import operator_name
from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.contract import arrange, settle, small_product
from rankhoist.compiler.algebra.forms import Block, Decline, Factor, Form, Labels, Term, one_block
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import aten
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.arguments import form, named, tidy
from rankhoist.compiler.rules.numbers import aligned, folded
from rankhoist.compiler.rules.table import table

ARITHMETIC = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def elementwise(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`f(x, y, ...)`: block by block, each at the rate of its own operands."""
    if not isinstance(node.meta["val"], torch.Tensor):
        raise Decline("makes several tensors")
    return _blockwise(interpreter, node.target, args, kwargs, node.meta["val"].dtype)


def _blockwise(
    interpreter: Interpreter, op: Any, args: Sequence[Value], kwargs: dict[str, Value], dtype: torch.dtype
) -> Form:
    forms, places = _forms(interpreter, args)

    def build(blocks: list[Block]) -> Block:
        return _apply(interpreter, op, args, kwargs, blocks, forms, places, dtype)

    return grid.map_blocks(aligned(interpreter, op, args, kwargs, forms, places), dtype, build)


def apply_op(interpreter: Interpreter, op: Any, args: Sequence[Value], dtype: torch.dtype | None = None) -> Form:
    """An elementwise operator that a rule is made of, on forms and numbers; `dtype` is the first form's by default."""
    first = next(a for a in args if isinstance(a, Form))
    return _blockwise(interpreter, op, args, {}, dtype or first.dtype)


def plus(interpreter: Interpreter, x: Form, y: Form) -> Form:
    """`x + y` of one dtype inside a rule, unevaluated but where a number decides it."""

    def build(blocks: list[Block]) -> Block:
        known = folded(interpreter, aten.add.Tensor, [x, y], {}, blocks, (0, 1), (x.dtype, y.dtype), x.dtype)
        return known if known is not None else _sum(blocks, (1.0, 1.0))

    operands = aligned(interpreter, aten.add.Tensor, [x, y], {}, [x, y], (0, 1))
    return grid.map_blocks(operands, x.dtype, build)


def prelu(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x if x > 0 else w x`, one `w` for all or one per channel (axis 1)."""
    value, weight = form(args[0]), form(args[1])
    if len(weight.layout) == 1 and len(value.layout) > 1:
        weight = replace(weight, layout=((), weight.layout[0], *(() for _ in value.layout[2:])))
    return apply_op(interpreter, aten._prelu_kernel.default, [value, weight])


def _forms(interpreter: Interpreter, args: Sequence[Value]) -> tuple[list[Form], list[int]]:
    places = [
        i for i, a in enumerate(args) if not isinstance(a, int | float | bool | complex | None | list | torch.dtype)
    ]
    return [tidy(interpreter, form(args[i])) for i in places], places


def _apply(
    interpreter: Interpreter, op: Any, args: Sequence[Value], kwargs: dict[str, Value], blocks: list[Block],
    forms: list[Form], places: list[int], dtype: torch.dtype,
) -> Block:  # fmt: skip
    """The operator on one cell's blocks, evaluated."""
    known = folded(interpreter, op, args, kwargs, blocks, places, [f.dtype for f in forms], dtype)
    if known is not None:
        return known
    factors = [settle(interpreter.b, block, interpreter.workload).factor for block in blocks]
    labels = _all_labels(blocks[0], factors)
    if not labels and len({f.dtype for f in forms}) > 1:
        factors = _promoted(interpreter, factors, forms)
    shown = list(args)
    for place, factor, own in zip(places, factors, forms, strict=True):
        # A 0-dim tensor must stay one: it takes no part in type promotion.
        shown[place] = factor.node if not own.layout else arrange(interpreter.b, factor, labels)
    return one_block(Factor(interpreter.b.pointwise(op, shown, dtype, _plain(kwargs)), labels), blocks[0].labels)


def _promoted(interpreter: Interpreter, factors: Sequence[Factor], forms: Sequence[Form]) -> list[Factor]:
    """Each in the dtype that the operator would bring it to; it leaves 0-dim tensors aside, as blocks of a larger form
    may be.
    """

    def kind(dtype: torch.dtype) -> tuple[bool, ...]:
        return dtype == torch.bool, dtype.is_floating_point, dtype.is_complex

    result = []
    for factor, own in zip(factors, forms, strict=True):
        alike = [f.dtype for f in forms if f.layout and kind(f.dtype) == kind(own.dtype)]
        dtype = reduce(torch.promote_types, alike) if alike else own.dtype
        result.append(factor if dtype == own.dtype else _cast_factor(interpreter, factor, dtype))
    return result


def _cast_factor(interpreter: Interpreter, f: Factor, dtype: torch.dtype) -> Factor:
    node = interpreter.b.call(
        aten._to_copy.default, (f.node,), f.node.rate, f.node.shape, dtype, kwargs={"dtype": dtype}
    )
    return Factor(node, f.labels)


def _all_labels(block: Block, factors: Sequence[Factor]) -> Labels:
    """Every label some factor has, in the order of the factor computed most often."""
    leader = max(factors, key=lambda f: (f.node.rate, len(f.labels)))
    have = {x for f in factors for x in f.labels}
    missing = [x for x in block.visible if x in have and x not in leader.labels]
    return (*missing, *leader.labels) if missing else leader.labels


def _plain(kwargs: dict[str, Value]) -> dict[str, Any]:
    return {
        k: v
        for k, v in kwargs.items()
        if k not in ("layout", "device", "pin_memory", "memory_format") and v is not None
    }


def identity(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Copies, detachments and inactive dropout change nothing."""
    return form(args[0])


def cast(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """A change of dtype, or nothing."""
    value, dtype = form(args[0]), node.meta["val"].dtype
    if dtype == value.dtype:
        return value
    return to_dtype(interpreter, value, dtype)


def to_dtype(interpreter: Interpreter, value: Form, dtype: torch.dtype) -> Form:
    """All blocks in another dtype."""
    value = tidy(interpreter, value)
    blocks = {}
    for cell, block in value.blocks.items():
        factor = settle(interpreter.b, block, interpreter.workload).factor
        blocks[cell] = one_block(_cast_factor(interpreter, factor, dtype), block.labels)
    return Form(value.dims, blocks, value.layout, dtype)


# -- arithmetic


def add(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x + alpha y`: terms side by side."""
    alpha = _alpha(args, kwargs)
    return _arithmetic(interpreter, node, args, kwargs, lambda blocks: _sum(blocks, (1.0, alpha)))


def subtract(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x - alpha y`: terms side by side."""
    alpha = _alpha(args, kwargs)
    return _arithmetic(interpreter, node, args, kwargs, lambda blocks: _sum(blocks, (1.0, -alpha)))


def subtract_from(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`y - alpha x`: terms side by side."""
    alpha = _alpha(args, kwargs)
    return _arithmetic(interpreter, node, args, kwargs, lambda blocks: _sum(blocks, (-alpha, 1.0)))


def _alpha(args: list[Value], kwargs: dict[str, Value]) -> float:
    return float(kwargs["alpha"] if "alpha" in kwargs else args[2] if len(args) > 2 else 1)


def negate(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`-x`: the scale of every term."""
    return _arithmetic(interpreter, node, args, kwargs, lambda blocks: _sum(blocks, (-1.0,)))


def multiply(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x * y`: where one side does not depend on the candidate, it joins the coefficients of the other."""

    def build(blocks: list[Block]) -> Block | None:
        return None if interpreter.too_long([len(block.terms) for block in blocks]) else _product(blocks)

    return _arithmetic(interpreter, node, args, kwargs, build)


def divide(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x / y`, y per request or less: its reciprocal joins the coefficients of x."""
    if kwargs.get("rounding_mode") is not None:
        return elementwise(interpreter, node, args, kwargs)

    def build(blocks: list[Block]) -> Block | None:
        if blocks[1].rate.per_candidate:
            return None
        f = settle(interpreter.b, blocks[1], interpreter.workload).factor
        inverse = Factor(interpreter.b.pointwise(aten.reciprocal.default, (f.node,), f.node.dtype), f.labels)
        return _product([blocks[0], one_block(inverse, blocks[1].labels)])

    return _arithmetic(interpreter, node, args, kwargs, build)


def _arithmetic(
    interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value],
    build: Callable[[list[Block]], Block | None],
) -> Value:  # fmt: skip
    """Per cell: keep the form where that can save work (level `full`), else run the operator on evaluated blocks."""
    dtype = node.meta["val"].dtype
    places = [i for i, a in enumerate(args[:2]) if not isinstance(a, int | float)]
    forms = [tidy(interpreter, form(args[i])) for i in places]
    if interpreter.level < Level.FULL or dtype not in ARITHMETIC or any(f.dtype != dtype for f in forms):
        return elementwise(interpreter, node, args, kwargs)

    def number_block(place: int, like: Block) -> Block:
        return one_block(Factor(interpreter.b.number(args[place], dtype), ()), like.labels)

    def choose(own: list[Block]) -> Block:
        known = folded(interpreter, node.target, args, kwargs, own, places, [dtype] * len(own), dtype)
        if known is not None:
            return known
        given = [own[places.index(i)] if i in places else number_block(i, own[0]) for i in range(len(args[:2]))]
        lazy = build(given) if any(block.rate.per_candidate for block in own) else None
        if lazy is None or not grid.worth_keeping(lazy):
            return _apply(interpreter, node.target, args, kwargs, own, forms, places, dtype)
        return lazy

    return grid.map_blocks(aligned(interpreter, node.target, args, kwargs, forms, places), dtype, choose)


def _sum(blocks: list[Block], scales: Sequence[float]) -> Block:
    terms = (Term(t.factors, t.scale * s) for block, s in zip(blocks, scales, strict=False) for t in block.terms)
    return Block(blocks[0].labels, tuple(terms))


def _product(blocks: list[Block]) -> Block | None:
    """Terms times terms; `None` where the per-candidate factors of both sides make something as large as the block."""
    block = grid.multiply_blocks(blocks)
    visible = set(block.visible)
    moving = [t for t in block.terms if sum(f.node.rate.per_candidate for f in t.factors) > 1]
    return block if all(small_product(t, visible) for t in moving) else None


def fill(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`full`, `zeros_like`, ...: one number, constant along every axis, whatever the row count."""
    fake = node.meta["val"]
    name = operator_name(node)
    value: Any = 1 if "ones" in name else 0
    if "full" in name or name == "scalar_tensor":
        value = named(node, args, kwargs).get("fill_value", args[0] if name == "scalar_tensor" else None)
    if not isinstance(value, int | float | bool):
        raise Decline("filled with a value that is no number")
    return grid.constant_form(interpreter.b, value, fake.dtype, interpreter.shape(fake))


UNARY = """
abs acos acosh asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min clip cos cosh deg2rad digamma
elu erf erfc erfinv exp exp2 expm1 fix floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf
isnan isneginf isposinf leaky_relu lgamma log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num
positive rad2deg reciprocal relu relu6 round rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus
softshrink special_expit sqrt square tan tanh tanhshrink threshold trunc
"""
SEVERAL = """
__and__ __lshift__ __or__ __rshift__ __xor__ addcdiv addcmul atan2 bitwise_and bitwise_left_shift bitwise_or
bitwise_right_shift bitwise_xor copysign eq floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot
le lerp less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill maximum minimum
multiply ne nextafter not_equal pow remainder special_xlogy subtract true_divide where xlogy
"""

CASTS = table([("_to_copy to type_as _cast_Float float", cast)])

RULES = CASTS | table([
    (UNARY + SEVERAL, elementwise),
    ("clone alias detach lift lift_fresh lift_fresh_copy contiguous dropout feature_dropout alpha_dropout", identity),
    ("prelu _prelu_kernel", prelu),
    ("add", add),
    ("sub", subtract),
    ("rsub", subtract_from),
    ("neg", negate),
    ("mul", multiply),
    ("div", divide),
    ("full full_like new_full zeros zeros_like new_zeros ones ones_like new_ones", fill),
    ("empty empty_like new_empty scalar_tensor", fill),
])  # fmt: skip
