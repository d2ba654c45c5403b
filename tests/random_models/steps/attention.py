"""Softmax, and positions that look at positions."""

from __future__ import annotations

import torch
from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats, has_axes, like, sequence, several_wide
from random_models.steps.table import Made, Step, one_of

SHARES = [aten.softmax.int, aten.softmax.int, aten.log_softmax.int]


def softmax(draft: Draft, x: fx.Node) -> Made:
    target, dtype = draft.pick(SHARES), draft.pick([None, torch.float64])
    return draft.call(target, x, draft.axis(x) - (len(draft.extent(x)) if draft.flag() else 0), dtype)


def hidden_by_infinity(draft: Draft, x: fx.Node) -> Made:
    """A softmax over some positions: the others are minus infinity before and exactly 0 after."""
    seen = torch.arange(draft.extent(x)[-1]) % 2 == 0
    filled = draft.call(aten.masked_fill.Scalar, x, draft.weight(~seen), float("-inf"))
    if draft.flag():
        infinity = torch.tensor(float("-inf"), dtype=torch.float64)
        filled = draft.call(aten.where.self, draft.weight(seen), x, draft.weight(infinity))
    return draft.call(aten.softmax.int, filled, -1)


# -- attention: (draft, queries, keys). Positions of one value look at positions of another, or of itself.


def by_products(draft: Draft, queries: fx.Node, keys: fx.Node) -> Made:
    width = draft.extent(keys)[2]
    if draft.flag():
        queries = draft.call(aten.linear.default, queries, draft.random(width, width, scale=0.7))
    scores = draft.call(aten.matmul.default, queries, draft.call(aten.transpose.int, keys, 1, 2))
    shares = draft.call(aten.softmax.int, draft.call(aten.mul.Tensor, scores, 0.5), -1)
    return draft.call(aten.bmm.default, shares, keys)


def in_one_operator(draft: Draft, queries: fx.Node, keys: fx.Node) -> Made:
    mask = None
    if draft.flag():  # queries that see nothing come out as zero
        shown = draft.call(aten.gt.Scalar, like(draft, (-1, draft.extent(keys)[1])), draft.number(0, 2) - 0.5)
        mask = draft.call(aten.unsqueeze.default, shown, 1)
    return draft.call(aten.scaled_dot_product_attention.default, queries, keys, keys, mask)


def of_one_query(draft: Draft, keys: fx.Node) -> Made:
    queries = draft.call(aten.unsqueeze.default, like(draft, (-1, draft.extent(keys)[2])), 1)
    return by_products(draft, queries, keys)


ATTENTION = [
    lambda draft, keys: by_products(draft, keys, keys),
    of_one_query,
    lambda draft, keys: by_products(draft, like(draft, draft.extent(keys), 1), keys),
    lambda draft, keys: in_one_operator(draft, like(draft, draft.extent(keys), 1), keys),
]


def of_pieces(draft: Draft, x: fx.Node) -> Made:
    """Heads split off by a bare view: every token is a piece of another field. A pairwise and a unary softmax."""
    _, fields, width = draft.extent(x)
    heads = draft.pick([n for n in range(2, width + 1) if width % n == 0])

    def split(value: fx.Node) -> fx.Node:
        return draft.view(value, [-heads, fields, draft.extent(value)[2] // heads])

    def whitened(value: fx.Node) -> fx.Node:
        return draft.call(aten.sub.Tensor, value, draft.call(aten.mean.dim, value, [1], True))

    for _ in range(draft.number(1, 2)):
        query = split(draft.call(aten.linear.default, x, draft.random(width, width, scale=0.7), draft.random(width)))
        key = draft.call(aten.transpose.int, whitened(split(x)), 1, 2)
        shares = draft.call(aten.softmax.int, draft.call(aten.bmm.default, whitened(query), key), 2)
        if draft.flag():
            unary = draft.call(aten.softmax.int, draft.call(aten.linear.default, x, draft.random(heads, width)), 1)
            shares = draft.call(aten.add.Tensor, shares, draft.call(aten.transpose.int, split(unary), 1, 2))
        made = draft.view(draft.call(aten.bmm.default, shares, split(x)), [-1, fields, width])
        x = draft.call(aten.mul.Tensor, draft.call(aten.add.Tensor, made, x), 0.5) if draft.flag() else made
    return x


STEPS = [
    Step(2, softmax, floats(has_axes)),
    Step(1, hidden_by_infinity, floats(several_wide)),
    Step(2, one_of(ATTENTION), floats(sequence)),
    Step(1, of_pieces, floats(sequence)),
]
