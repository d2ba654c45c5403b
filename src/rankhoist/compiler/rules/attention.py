"""Softmax over mixed blocks, and attention.

Law (log-sum-exp): blocks are normalised by themselves and rescaled,

    softmax(x)_b = exp(x_b - m_b) * g_b,   g_b = exp(m_b - M) / sum_b' S_b' exp(m_b' - M),

with the running max `m_b` and sum `S_b` of each block and `M = max m_b`. For a context block everything but the scalar
`g_b` is computed once per request, and `g_b` is an atom of width 1: the form survives the product with the values.
Source: rank-aware decomposition (arXiv 2605.27450), section 4.3, made exact for scores that exist per candidate
only in part.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.algebra import grid, joins, moves
from rankhoist.compiler.algebra.forms import Form, plain, row_layout
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import aten
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import reduce as reductions
from rankhoist.compiler.rules.arguments import dim_of, form, named, tidy
from rankhoist.compiler.rules.linear import contract
from rankhoist.compiler.rules.pointwise import ARITHMETIC, apply_op, plus
from rankhoist.compiler.rules.rowwise import attention as rowwise_attention
from rankhoist.compiler.rules.table import table


def softmax(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Along one axis: by log-sum-exp over its blocks from level `first` on, else as one tensor."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    if not _by_blocks(interpreter, value, dim_of(value, arguments["dim"])) or node.meta["val"].dtype != value.dtype:
        return reductions.along(interpreter, node, args, kwargs)
    return softmax_of(interpreter, value, dim_of(value, arguments["dim"]))


def _by_blocks(interpreter: Interpreter, value: Form, dim: int) -> bool:
    joined = tidy(interpreter, value)
    return interpreter.level >= Level.FIRST and len(joined.dims[dim]) > 1 and joined.mixed and value.dtype in ARITHMETIC


def softmax_of(interpreter: Interpreter, value: Form, dim: int) -> Form:
    """Softmax along a dim, unevaluated."""
    value = tidy(interpreter, interpreter.settled(tidy(interpreter, value)))
    axis = value.axis(dim)
    parts = [joins.segment(value, dim, k) for k in range(len(value.dims[dim]))]
    highest = [_amax(interpreter, part, dim) for part in parts]
    lowest = torch.finfo(value.dtype).min  # a fully masked block has peak -inf, and -inf - -inf is no number
    peaks = [apply_op(interpreter, aten.clamp_min.default, [p, lowest]) for p in highest]
    powers = [
        apply_op(interpreter, aten.exp.default, [apply_op(interpreter, aten.sub.Tensor, [x, p])])
        for x, p in zip(parts, peaks, strict=True)
    ]
    sums = [interpreter.settled(moves.with_axes(grid.sum_dims(interpreter.b, p, [dim]), [axis])) for p in powers]
    peak = reduce(lambda x, y: apply_op(interpreter, aten.maximum.default, [x, y]), highest)
    peak = apply_op(interpreter, aten.clamp_min.default, [peak, lowest])
    shares = [
        apply_op(interpreter, aten.exp.default, [apply_op(interpreter, aten.sub.Tensor, [p, peak])]) for p in peaks
    ]
    weighted = [apply_op(interpreter, aten.mul.Tensor, [s, g]) for s, g in zip(sums, shares, strict=True)]
    norm = reduce(lambda x, y: apply_op(interpreter, aten.add.Tensor, [x, y]), weighted)
    gains = [apply_op(interpreter, aten.div.Tensor, [g, norm]) for g in shares]
    results = [grid.multiply(interpreter.b, [p, g], value.dtype) for p, g in zip(powers, gains, strict=True)]
    return joins.assemble(interpreter.b, value, dim, results)


def _amax(interpreter: Interpreter, part: Form, dim: int) -> Form:
    """The largest along a dim, which keeps its axis, block by block."""
    shape = part.extents
    shape[part.axis(dim)] = (1, False)

    def call(x: Any, axes: list[int], shapes: Any) -> list[Any]:
        return [interpreter.b.call(aten.amax.default, (x, axes, True), x.rate, shapes[0], part.dtype)]

    return reductions.by_blocks(interpreter, part, [dim], [shape], [part.dtype], call, of_numbers=True)[0]


def attention(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`softmax(q k^T scale + mask) v`: from level `first` on by its parts, where they are known at different rates."""
    arguments = named(node, args, kwargs)
    q, k, v = (form(arguments[n]) for n in ("query", "key", "value"))
    operands = [q, k, v]
    alike = not any(o.mixed for o in operands) and len({o.rate.per_candidate for o in operands}) == 1
    if (
        interpreter.level < Level.FIRST
        or alike
        or arguments["dropout_p"]
        or arguments.get("enable_gqa")
        or len(q.layout) != len(k.layout)
    ):
        return rowwise_attention(interpreter, node, args, kwargs)
    batch = [f"b{i}" for i in range(len(q.layout) - 2)]
    width = q.sizes[dim_of(q, -1)]
    scale = arguments["scale"] if arguments["scale"] is not None else width**-0.5
    scores = contract(interpreter, (q, k), ([*batch, "i", "d"], [*batch, "j", "d"]), [*batch, "i", "j"])
    mask, sees = _mask(interpreter, arguments, scores)
    scores = grid.total(interpreter.b, [scores], q.dtype, (scale,))
    if mask is not None:
        scores = plus(interpreter, scores, mask)
    scores = moves.ordered(interpreter.settled(scores))
    last = dim_of(scores, -1)
    whole = tidy(interpreter, scores)
    weights = (
        softmax_of(interpreter, whole, last) if len(whole.dims[last]) > 1 else _plain_softmax(interpreter, scores, last)
    )
    result = contract(
        interpreter, (interpreter.simplified(weights), v), ([*batch, "i", "j"], [*batch, "j", "e"]), [*batch, "i", "e"]
    )
    return result if sees is None else _where(interpreter, sees, result, 0.0)


def _plain_softmax(interpreter: Interpreter, scores: Form, dim: int) -> Form:
    def call(x: Any, axes: list[int], shapes: Any) -> list[Any]:
        return [interpreter.b.call(aten.softmax.int, (x, axes[0]), x.rate, shapes[0], scores.dtype)]

    return reductions.by_blocks(interpreter, scores, [dim], [scores.extents], [scores.dtype], call)[0]


def _mask(interpreter: Interpreter, arguments: dict[str, Value], scores: Form) -> tuple[Form | None, Form | None]:
    """What is added to the scores; and whether a query sees any key: attention to nothing is zero, not 0 / 0.

    A causal mask needs no second part: every query sees the first key.
    """
    if arguments["is_causal"]:
        return _added(interpreter, _causal(interpreter, scores), scores.dtype), None
    if arguments["attn_mask"] is None:
        return None, None
    mask = _added(interpreter, form(arguments["attn_mask"]), scores.dtype)
    highest = _amax(interpreter, mask, dim_of(mask, -1))
    return mask, apply_op(interpreter, aten.gt.Scalar, [highest, -math.inf], torch.bool)


def _causal(interpreter: Interpreter, scores: Form) -> Form:
    """True where a query comes after a key or with it, `[queries, keys]`."""
    ordered = moves.ordered(scores)
    i, j = (ordered.sizes[e[0]] for e in ordered.layout[-2:])
    allowed = interpreter.b.constant(torch.ones(i, j, dtype=torch.bool).tril())
    return plain(allowed, torch.bool, row_layout(2, rows=False))


def _added(interpreter: Interpreter, mask: Form, dtype: torch.dtype) -> Form:
    """A boolean mask as 0 where it is true and -inf elsewhere; another is added as it is."""
    zero = plain(interpreter.b.number(0.0, dtype), dtype, ())
    return moves.ordered(_where(interpreter, mask, zero, -math.inf)) if mask.dtype == torch.bool else mask


def _where(interpreter: Interpreter, chosen: Form, yes: Form, no: float) -> Form:
    other = plain(interpreter.b.number(no, yes.dtype), yes.dtype, ())
    return apply_op(interpreter, aten.where.self, [chosen, yes, other], yes.dtype)


RULES = table([
    ("softmax _softmax", softmax),
    ("scaled_dot_product_attention", attention),
])  # fmt: skip
