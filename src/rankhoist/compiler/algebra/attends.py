"""Attention of candidates to what a request has: keys and values of the request are not repeated for candidates.

Law: a softmax belongs to one query, so the queries of all candidates of a request stand side by side before its keys,

    attention(q [N, h, Q, d], (k, v) repeated for every row)  =  attention(q as [R, h, (N / R) Q, d], k, v)

and where a row has keys of its own as well, `sum exp(s - max) v / sum exp(s - max)` is of both, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rankhoist.compiler.algebra import cuts, joins, spans
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import Form, Positions, plain, row_layout
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.lengths import Sized, order
from rankhoist.compiler.graph.node import OFFSETS, Op, Rate


class Parts(Protocol):
    """Attention by blocks of scores; `places` are those of the queries `q` among all."""

    def __call__(self, q: Form, places: Positions) -> Form: ...


class Over(Protocol):
    """Attention that is one operator, at least in part."""

    def __call__(
        self, evaluator: Evaluator, q: Form, k: Form, v: Form, scale: float, causal: bool, parts: Parts
    ) -> Form | None: ...


def over(q: Form, k: Form, v: Form, causal: bool) -> Over | None:
    """How queries attend to what is the request's or, in part, a row's own; None where they do otherwise."""
    rows_first = all(x.layout == row_layout(len(x.sizes)) for x in (q, k, v))
    if not rows_first or not q.sizes[:-2] == k.sizes[:-2] == v.sizes[:-2] or len(q.sizes) > 3:
        return None
    if k.rate is v.rate is Rate.REQUEST and _of_rows(q) and not causal:
        return over_request
    return over_both if k.mixed and v.mixed and q.rate.per_candidate else None


def _of_rows(x: Form) -> bool:
    """Whether all of it is the candidate's."""
    return x.rate.per_candidate and not x.mixed


def over_request(evaluator: Evaluator, q: Form, k: Form, v: Form, scale: float, causal: bool, parts: Parts) -> Form:
    """Of `[N, ..., Q, d]` over `[R, ..., T, d]` and `[R, ..., T, e]` with the same axes between, if any."""
    return _called(evaluator, kernels.request_attention, (q, k, v), k.sizes[-2], scale)


def over_both(
    evaluator: Evaluator, q: Form, k: Form, v: Form, scale: float, causal: bool, parts: Parts
) -> Form | None:  # fmt: skip
    """Of `[N, ..., Q, d]` over `[R, ..., T, d]` and over `[N, ..., S, d]`, by one softmax; None where keys and values
    are not cut alike. Queries of the request, and those that do not see all keys, are taken by parts.
    """
    keys, dim = _apart(evaluator, k, v), len(q.sizes) - 2
    if keys is None:
        return None
    q, count, made = evaluator.tidy(evaluator.settled(q)), k.sizes[-2], []
    for i, places in enumerate(q.dims[dim]):
        own = joins.segment(q, dim, i)
        whole = _of_rows(own) and (not causal or order(count - 1, spans.first(places)) <= 0)
        made.append(
            _called(evaluator, kernels.merged_attention, (own, *keys), count, scale) if whole else parts(own, places)
        )
    return joins.assemble(evaluator.b, q, dim, made)


def _apart(evaluator: Evaluator, k: Form, v: Form) -> list[Form] | None:
    """Keys `[..., T + S, d]` and their values: the request's, then the row's own."""
    dim = len(k.sizes) - 2
    tidy = [evaluator.tidy(evaluator.settled(x)) for x in (k, v)]
    k, v = cuts.refine(evaluator.b, tidy, [dim, dim])
    pairs = [[joins.segment(x, dim, i) for x in (k, v)] for i in range(len(k.dims[dim]))]
    shared = [pair for pair in pairs if all(x.rate is Rate.REQUEST for x in pair)]
    own = [pair for pair in pairs if all(_of_rows(x) for x in pair)]
    return [*shared[0], *own[0]] if len(shared) == len(own) == 1 and len(pairs) == 2 else None


def _called(evaluator: Evaluator, op: Op, operands: Sequence[Form], keys: Sized, scale: float) -> Form:
    """An operator over queries, then keys and values in turn, with one axis of heads, if there is none of one."""
    b, (q, v) = evaluator.b, (operands[0], operands[-1])
    between = q.sizes[:-2]
    heads = between[0] if between else 1
    args = [b.reshape(evaluator.node(x), [heads, *x.sizes[-2:]]) for x in operands]
    shape = [heads, q.sizes[-2], v.sizes[-1]]
    work = heads * q.sizes[-2] * keys * (q.sizes[-1] + v.sizes[-1])
    made = b.call(op, (*args, scale, OFFSETS), Rate.PAIR, shape, q.dtype, multiply_adds=work)
    return plain(b.reshape(made, [*between, *shape[1:]]), q.dtype, row_layout(len(q.sizes)))
