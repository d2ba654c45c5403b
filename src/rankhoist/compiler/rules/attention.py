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


def softmax(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Along one axis: by log-sum-exp over its blocks from level `first` on, else as one tensor."""
    a = named(node, args, kwargs)
    value = form(a["self"])
    if not _by_blocks(c, value, dim_of(value, a["dim"])) or node.meta["val"].dtype != value.dtype:
        return reductions.along(c, node, args, kwargs)
    return softmax_of(c, value, dim_of(value, a["dim"]))


def _by_blocks(c: Interpreter, value: Form, dim: int) -> bool:
    joined = tidy(c, value)
    return c.level >= Level.FIRST and len(joined.dims[dim]) > 1 and joined.mixed and value.dtype in ARITHMETIC


def softmax_of(c: Interpreter, value: Form, dim: int) -> Form:
    """Softmax along a dim, unevaluated."""
    value = tidy(c, c.settled(tidy(c, value)))
    axis = value.axis(dim)
    parts = [joins.segment(value, dim, k) for k in range(len(value.dims[dim]))]
    highest = [_amax(c, part, dim) for part in parts]
    lowest = torch.finfo(value.dtype).min  # a fully masked block has peak -inf, and -inf - -inf is no number
    peaks = [apply_op(c, aten.clamp_min.default, [p, lowest]) for p in highest]
    powers = [
        apply_op(c, aten.exp.default, [apply_op(c, aten.sub.Tensor, [x, p])]) for x, p in zip(parts, peaks, strict=True)
    ]
    sums = [c.settled(moves.with_axes(grid.sum_dims(c.b, p, [dim]), [axis])) for p in powers]
    peak = reduce(lambda x, y: apply_op(c, aten.maximum.default, [x, y]), highest)
    peak = apply_op(c, aten.clamp_min.default, [peak, lowest])
    shares = [apply_op(c, aten.exp.default, [apply_op(c, aten.sub.Tensor, [p, peak])]) for p in peaks]
    weighted = [apply_op(c, aten.mul.Tensor, [s, g]) for s, g in zip(sums, shares, strict=True)]
    norm = reduce(lambda x, y: apply_op(c, aten.add.Tensor, [x, y]), weighted)
    gains = [apply_op(c, aten.div.Tensor, [g, norm]) for g in shares]
    results = [grid.multiply(c.b, [p, g], value.dtype) for p, g in zip(powers, gains, strict=True)]
    return joins.assemble(c.b, value, dim, results)


def _amax(c: Interpreter, part: Form, dim: int) -> Form:
    """The largest along a dim, which keeps its axis, block by block."""
    shape = part.extents
    shape[part.axis(dim)] = (1, False)

    def call(x: Any, axes: list[int], shapes: Any) -> list[Any]:
        return [c.b.call(aten.amax.default, (x, axes, True), x.rate, shapes[0], part.dtype)]

    return reductions.by_blocks(c, part, [dim], [shape], [part.dtype], call, of_numbers=True)[0]


def attention(c: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`softmax(q k^T scale + mask) v`: from level `first` on by its parts, where they are known at different rates."""
    a = named(node, args, kwargs)
    q, k, v = (form(a[n]) for n in ("query", "key", "value"))
    operands = [q, k, v]
    alike = not any(o.mixed for o in operands) and len({o.rate.per_candidate for o in operands}) == 1
    if c.level < Level.FIRST or alike or a["dropout_p"] or a.get("enable_gqa") or len(q.layout) != len(k.layout):
        return rowwise_attention(c, node, args, kwargs)
    batch = [f"b{i}" for i in range(len(q.layout) - 2)]
    width = q.sizes[dim_of(q, -1)]
    scale = a["scale"] if a["scale"] is not None else width**-0.5
    scores = contract(c, (q, k), ([*batch, "i", "d"], [*batch, "j", "d"]), [*batch, "i", "j"])
    mask, sees = _mask(c, a, scores)
    scores = grid.total(c.b, [scores], q.dtype, (scale,))
    if mask is not None:
        scores = plus(c, scores, mask)
    scores = moves.ordered(c.settled(scores))
    last = dim_of(scores, -1)
    whole = tidy(c, scores)
    weights = softmax_of(c, whole, last) if len(whole.dims[last]) > 1 else _plain_softmax(c, scores, last)
    result = contract(c, (c.simplified(weights), v), ([*batch, "i", "j"], [*batch, "j", "e"]), [*batch, "i", "e"])
    return result if sees is None else _where(c, sees, result, 0.0)


def _plain_softmax(c: Interpreter, scores: Form, dim: int) -> Form:
    def call(x: Any, axes: list[int], shapes: Any) -> list[Any]:
        return [c.b.call(aten.softmax.int, (x, axes[0]), x.rate, shapes[0], scores.dtype)]

    return reductions.by_blocks(c, scores, [dim], [scores.extents], [scores.dtype], call)[0]


def _mask(c: Interpreter, a: dict[str, Value], scores: Form) -> tuple[Form | None, Form | None]:
    """What is added to the scores; and whether a query sees any key: attention to nothing is zero, not 0 / 0.

    A causal mask needs no second part: every query sees the first key.
    """
    if a["is_causal"]:
        return _added(c, _causal(c, scores), scores.dtype), None
    if a["attn_mask"] is None:
        return None, None
    mask = _added(c, form(a["attn_mask"]), scores.dtype)
    highest = _amax(c, mask, dim_of(mask, -1))
    return mask, apply_op(c, aten.gt.Scalar, [highest, -math.inf], torch.bool)


def _causal(c: Interpreter, scores: Form) -> Form:
    """True where a query comes after a key or with it, `[queries, keys]`."""
    ordered = moves.ordered(scores)
    i, j = (ordered.sizes[e[0]] for e in ordered.layout[-2:])
    allowed = c.b.constant(torch.ones(i, j, dtype=torch.bool).tril())
    return plain(allowed, torch.bool, row_layout(2, rows=False))


def _added(c: Interpreter, mask: Form, dtype: torch.dtype) -> Form:
    """A boolean mask as 0 where it is true and -inf elsewhere; another is added as it is."""
    zero = plain(c.b.number(0.0, dtype), dtype, ())
    return moves.ordered(_where(c, mask, zero, -math.inf)) if mask.dtype == torch.bool else mask


def _where(c: Interpreter, chosen: Form, yes: Form, no: float) -> Form:
    other = plain(c.b.number(no, yes.dtype), yes.dtype, ())
    return apply_op(c, aten.where.self, [chosen, yes, other], yes.dtype)


RULES = table([
    ("softmax _softmax", softmax),
    ("scaled_dot_product_attention", attention),
])  # fmt: skip
