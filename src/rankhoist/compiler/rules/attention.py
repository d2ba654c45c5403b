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
from collections.abc import Sequence
from functools import partial, reduce

import numpy as np
import torch

from rankhoist.compiler.algebra import grid, joins, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law


def softmax(call: Call) -> Form:
    """Along one axis that holds blocks of different rates, by log-sum-exp; `softmax(x, dtype=d)` is that of x as d."""
    value = call.form("self")
    dim = value.dim(call.value("dim"))
    joined = call.tidy(value)
    if len(joined.dims[dim]) < 2 or not joined.mixed:
        raise Elsewhere(f"axis {value.axis(dim)} of {value.axes} is one block")
    return softmax_of(call, call.cast(value, call.out.dtype), dim)


def softmax_of_filled(call: Call) -> Form:
    """The same where a mask has filled scores with a finite number, on the condition that it hides them."""
    value = call.cast(call.form("self"), call.out.dtype)
    dim = value.dim(call.value("dim"))
    return softmax_of(call, call.hidden(value, dim), dim)


def softmax_of_one_block(call: Call) -> Form:
    """Along one axis, as one tensor."""
    value = call.form("self")
    dims = [value.dim(call.value("dim"))]
    made: Form = call.along(value, dims, lambda part, axes: call.again(self=part, dim=axes[0]))
    return made


def softmax_of(call: Call, value: Form, dim: int, of_none: bool = False) -> Form:
    """Softmax along a dim, unevaluated; of minus infinities alone 0 / 0, or `of_none` zeros."""
    value = call.tidy(call.settled(call.tidy(value)))
    _remark_what_is_seen(call, value, dim)
    axis = value.axis(dim)
    parts = joins.segments(value, dim)
    highest = [call.each(aten.detach.default, _amax(call, part, dim)) for part in parts]  # no gradient goes through
    peaks = [_finite(call, p) for p in highest]  # a fully masked block has peak -inf, and -inf - -inf is no number
    powers = [call.each(aten.exp.default, call.each(aten.sub.Tensor, x, p)) for x, p in zip(parts, peaks, strict=True)]
    sums = [call.settled(moves.with_axes(grid.sum_dims(call.builder, p, [dim]), [axis])) for p in powers]
    peak = reduce(lambda x, y: call.each(aten.maximum.default, x, y), highest)
    peak = _finite(call, peak)
    shares = [call.each(aten.exp.default, call.each(aten.sub.Tensor, p, peak)) for p in peaks]
    weighted = [call.each(aten.mul.Tensor, s, g) for s, g in zip(sums, shares, strict=True)]
    norm = reduce(lambda x, y: call.each(aten.add.Tensor, x, y), weighted)
    if of_none:
        norm = _where(call, call.each(aten.gt.Scalar, norm, 0), norm, 1.0)
    gains = [call.each(aten.div.Tensor, g, norm) for g in shares]
    results = [grid.multiply(call.builder, [p, g], value.dtype) for p, g in zip(powers, gains, strict=True)]
    return joins.assemble(call.builder, value, dim, results)


def _finite(call: Call, x: Form) -> Form:
    """The lowest number in the place of -inf: that of the dtype that the model will have been moved to."""
    return call.each(aten.nan_to_num.default, x, math.nan, math.inf)


def _remark_what_is_seen(call: Call, scores: Form, dim: int) -> None:
    """Where queries of the context look at a key of the candidate, all that comes after them is the candidate's."""
    late: dict[tuple[int, ...], set[bool]] = {}
    for cell, block in scores.blocks.items():
        late.setdefault((*cell[:dim], 0, *cell[dim + 1 :]), set()).add(block.rate.per_candidate)
    if {True} in late.values() and {False, True} in late.values():
        call.remark("positions of the context attend to one that exists per candidate")


def _amax(call: Call, part: Form, dim: int) -> Form:
    """The largest along a dim, which keeps its axis, block by block; of nothing, -inf."""
    part, dim = joins.with_one_more(call.builder, part, dim, -math.inf)
    made: Form = call.along(part, [dim], lambda x, axes: call.run(aten.amax.default, x, axes, True), of_numbers=True)
    return made


def attention(call: Call) -> Form:
    """`softmax(q k^T scale + mask) v` by its parts, where they are known at different rates."""
    if not call.value("dropout_p") and call.value("attn_mask") is None:
        q, k, v = call.form("query"), _of_heads(call, "key"), _of_heads(call, "value")
        parts = partial(_by_parts, call)
        whole: Form | None = call.attended(q, k, v, call.value("scale"), bool(call.value("is_causal")), parts)
        if whole is not None:
            return whole
    return _by_parts(call, call.form("query"))


def _by_parts(call: Call, q: Form, places: Sequence[int] | None = None) -> Form:
    """Blocks of scores, each normalised by itself; `places` are those of the queries among all."""
    scores, mask = _scores(call, q, places)
    if mask is None:
        return _values(call, _softmax_of_scores(call, scores), None)
    sees = _sees(call, mask)
    whole = call.tidy(moves.ordered(call.settled(call.plus(scores, mask))))
    if len(whole.dims[whole.dim(-1)]) > 1:
        return _values(call, softmax_of(call, whole, whole.dim(-1), of_none=True), sees)
    scores = call.plus(scores, moves.ordered(_where(call, sees, mask, 0.0)))  # no gradient of 0 / 0
    return _values(call, _softmax_of_scores(call, scores), sees)


def attention_of_filled(call: Call) -> Form:
    """The same where the mask adds a finite number, on the condition that it hides what it is added to."""
    if call.value("attn_mask") is None or call.form("attn_mask").dtype == torch.bool:
        raise Elsewhere("its mask is no tensor of numbers")
    scores, mask = _scores(call, call.form("query"))
    scores = moves.ordered(call.settled(scores if mask is None else call.plus(scores, mask)))
    scores = call.hidden(scores, scores.dim(-1))
    return _values(call, softmax_of(call, scores, scores.dim(-1), of_none=True), _sees(call, scores))


def _scores(call: Call, q: Form, places: Sequence[int] | None = None) -> tuple[Form, Form | None]:
    """`q k^T scale`, and the mask to add, which may hide all keys from a query."""
    k, v = _of_heads(call, "key"), _of_heads(call, "value")
    operands = (q, k, v)
    if not any(o.mixed for o in operands) and len({o.rate.per_candidate for o in operands}) == 1:
        raise Elsewhere("queries, keys and values are known at one rate")
    if call.value("dropout_p") or len(q.layout) != len(k.layout):
        raise Elsewhere("drops weights out, or repeats operands along an axis")
    batch = _batch(q)
    scale = call.value("scale") if call.value("scale") is not None else q.sizes[q.dim(-1)] ** -0.5
    scores = call.contract((call.tidy(q), call.tidy(k)), ([*batch, "i", "d"], [*batch, "j", "d"]), [*batch, "i", "j"])
    scaled = grid.total(call.builder, [scores], q.dtype, (scale,))
    if call.value("is_causal"):  # every query sees the first key
        return call.plus(scaled, _added(call, grid.lower_triangle(call.builder, scores, places), q.dtype)), None
    if call.value("attn_mask") is None:
        return scaled, None
    return scaled, _added(call, call.form("attn_mask"), q.dtype)


def _of_heads(call: Call, name: str) -> Form:
    """Keys or values with as many heads as queries: where heads are shared, each is there for several, in turn."""
    value, q = call.form(name), call.form("query")
    if not call.value("enable_gqa"):
        return value
    dim, heads = value.dim(-3), q.sizes[q.dim(-3)]
    return moves.take_dim(call.builder, value, dim, np.arange(heads) * value.sizes[dim] // heads)


def _batch(q: Form) -> list[str]:
    return [f"b{i}" for i in range(len(q.layout) - 2)]


def _values(call: Call, weights: Form, sees: Form | None) -> Form:
    """The mean of the values by these weights; attention to nothing is zero, not 0 / 0."""
    v = _of_heads(call, "value")
    batch, weights = _batch(v), call.tidy(weights, like_terms=True)
    result = call.contract((weights, call.tidy(v)), ([*batch, "i", "j"], [*batch, "j", "e"]), [*batch, "i", "e"])
    return result if sees is None else _where(call, sees, result, 0.0)


def _sees(call: Call, scores: Form) -> Form:
    """Whether a query sees any key."""
    return call.each(aten.gt.Scalar, _amax(call, scores, scores.dim(-1)), -math.inf)


def _softmax_of_scores(call: Call, scores: Form) -> Form:
    scores = moves.ordered(call.settled(scores))
    last = scores.dim(-1)
    whole = call.tidy(scores)
    if len(whole.dims[last]) > 1:
        return softmax_of(call, whole, last)
    made: Form = call.along(scores, [last], lambda x, axes: call.run(aten.softmax.int, x, axes[0]))
    return made


def _added(call: Call, mask: Form, dtype: torch.dtype) -> Form:
    """A boolean mask as 0 where it is true and -inf elsewhere; another is added as it is."""
    zero = grid.constant_form(call.builder, 0.0, dtype, [])
    return moves.ordered(_where(call, mask, zero, -math.inf)) if mask.dtype == torch.bool else mask


def _where(call: Call, chosen: Form, yes: Form, no: float) -> Form:
    other = grid.constant_form(call.builder, no, yes.dtype, [])
    return call.each(aten.where.self, chosen, yes, other)


def attention_of_rows(call: Call) -> Value:
    """As a whole, at the rate of its operands: over the last two axes, with the rows in an axis before."""
    operands = call.forms("query", "key", "value", "attn_mask")
    depth = max(len(o.layout) for o in operands)
    places = {axis + depth - len(o.layout) for o in operands for axis, e in enumerate(o.layout) if ROW in e}
    folds = {tuple(o.sizes[d] if d != ROW else ROW for d in e) for o in operands for e in o.layout if ROW in e}
    if len(places) != 1 or next(iter(places)) >= depth - 2 or len(folds) > 1:
        raise Decline(f"attends over the rows: {', '.join(o.axes for o in operands)}")
    return call.rowwise()


LAWS = [
    *law("finite fills", Level.FIRST, {
        "softmax _softmax": softmax_of_filled,
        "scaled_dot_product_attention": attention_of_filled,
    }),
    *law("softmax over blocks", Level.FIRST, {"softmax _softmax": softmax}),
    *law("attention by its parts", Level.FIRST, {"scaled_dot_product_attention": attention}),
    *law("one side alone", Level.REQUEST, {"softmax _softmax": softmax_of_one_block}, blocks=Level.LINEAR),
    *law("one side alone", Level.REQUEST, {"scaled_dot_product_attention": attention_of_rows}, blocks=Level.LINEAR),
]  # fmt: skip
