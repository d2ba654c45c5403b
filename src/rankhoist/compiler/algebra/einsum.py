"""Contraction by the names of axes. Law: a product of sums is the sum of products, whatever is summed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.zeros import cut_at_zeros


def contract(
    evaluator: Evaluator, operands: Sequence[Form], axes: Sequence[Sequence[str]], result: Sequence[str]
) -> Form:
    """Einsum over original axes: multiply, then sum over the names that the result lacks. Unevaluated."""
    dtype = operands[0].dtype
    if not operands[0].arithmetic or any(o.dtype != dtype for o in operands):
        raise Decline(f"product of {', '.join(str(o.dtype) for o in operands)}")
    names = [*result, *dict.fromkeys(n for own in axes for n in own if n not in result)]
    if any(len(set(own)) != len(own) for own in axes):
        raise Decline(f"an operand names an axis twice: {_equation(operands, axes, result)}")
    placed = []
    for operand, own in zip(operands, axes, strict=True):
        entries = dict(zip(own, operand.layout, strict=True))
        placed.append(replace(operand, layout=tuple(entries.get(n, ()) for n in names)))
    product = grid.multiply(evaluator.b, cut_at_zeros(evaluator, placed), dtype)
    inner = [d for entry in product.layout[len(result) :] for d in entry]
    if ROW in inner:
        raise Decline(f"sums over the rows: {_equation(operands, axes, result)}")
    return grid.sum_dims(evaluator.b, product, inner)


def _equation(operands: Sequence[Form], axes: Sequence[Sequence[str]], result: Sequence[str]) -> str:
    """A contraction to read: `b i, b j -> i j of [rows, 6], [rows, 4]`."""
    left = ", ".join(" ".join(own) for own in axes)
    return f"{left} -> {' '.join(result)} of {', '.join(o.axes for o in operands)}"
