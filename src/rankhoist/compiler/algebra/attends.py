"""Attention of candidates to what a request has: keys and values of the request are not repeated for candidates.

Law: a softmax belongs to one query, so the queries of all candidates of a request stand side by side before its keys,

    attention(q [N, h, Q, d], (k, v) repeated for every row)  =  attention(q as [R, h, (N / R) Q, d], k, v)
"""

from __future__ import annotations

from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import Form, plain, row_layout
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import OFFSETS, Node, Rate


def over_a_request(q: Form, k: Form, v: Form) -> bool:
    """Whether nothing but the queries belongs to candidates; heads, if any, are an axis of their own."""
    rows_first = all(x.layout == row_layout(len(x.sizes)) for x in (q, k, v))
    of_request = k.rate is v.rate is Rate.REQUEST and q.rate.per_candidate and not q.mixed
    return rows_first and of_request and q.sizes[:-2] == k.sizes[:-2] == v.sizes[:-2] and len(q.sizes) <= 3


def over_request(evaluator: Evaluator, q: Form, k: Form, v: Form, scale: float) -> Form:
    """Of `[N, ..., Q, d]` over `[R, ..., T, d]` and `[R, ..., T, e]` with the same axes between, if any."""
    b, between = evaluator.b, q.sizes[:-2]
    heads = between[0] if between else 1

    def by_heads(x: Form) -> Node:
        return b.reshape(evaluator.node(x), [heads, *x.sizes[-2:]])

    shape = [heads, q.sizes[-2], v.sizes[-1]]
    work = heads * q.sizes[-2] * k.sizes[-2] * (q.sizes[-1] + v.sizes[-1])
    args = (by_heads(q), by_heads(k), by_heads(v), scale, OFFSETS)
    made = b.call(kernels.request_attention, args, Rate.PAIR, shape, q.dtype, multiply_adds=work)
    return plain(b.reshape(made, [*between, *shape[1:]]), q.dtype, row_layout(len(q.sizes)))
