"""Positions hidden by zeros or by minus infinity, by a mask that is a value or by a constant one."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from random_models.draft import Draft, UnstableError, aten
from random_models.operands import like
from random_models.rows import varies
from random_models.steps.hiding import (
    bias_of,
    filled_where_hidden,
    infinite_where_hidden,
    kept,
    seen_positions,
    zero_where_hidden,
)
from random_models.steps.pointwise import distance
from random_models.steps.table import Made, Step

# -- masks that are values: (draft, mask, x)


def softmax_of_seen(draft: Draft, mask: fx.Node, x: fx.Node) -> Made:
    filled = draft.call(aten.masked_fill.Scalar, x, draft.call(aten.logical_not.default, mask), -30.0)
    return draft.call(aten.softmax.int, filled, -1)


def mean_of_seen(draft: Draft, mask: fx.Node, x: fx.Node) -> Made:
    count = draft.call(aten.sum.dim_IntList, mask, [-1], True)
    total = draft.call(aten.sum.dim_IntList, draft.call(aten.mul.Tensor, x, mask), [-1], True)
    return draft.call(aten.div.Tensor, total, draft.call(aten.add.Tensor, count, 1.0))


MASKING = [
    lambda draft, mask, x: draft.call(aten.mul.Tensor, x, mask),
    softmax_of_seen,
    mean_of_seen,
]


def masked(draft: Draft, mask: fx.Node) -> Made:
    """A boolean value on a value: as a factor, to fill, or in a softmax."""
    x = like(draft, draft.extent(mask))
    return draft.pick(MASKING)(draft, mask, x)


def mask_of_rows(draft: Draft) -> fx.Node:
    masks = [v for v in draft.values if draft.dry[v].dtype == torch.bool and len(draft.extent(v)) > 1]
    mask = draft.pick(masks[::-1])
    if draft.extent(mask)[0] != -1 or min(draft.extent(mask)[1:]) < 1:
        raise UnstableError
    return mask


# -- masks that are constants, on tokens


def tokens(draft: Draft) -> fx.Node:
    """A sequence, in most models of both sides."""
    x = draft.value(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 0 and (e[1] < 6 or varies(e[1])))
    if draft.number(0, 3) == 0:
        return x
    return draft.call(aten.cat.default, draft.shuffled([x, like(draft, draft.extent(x), 1)]), 1)


def tokens_or_columns(draft: Draft) -> fx.Node:
    return tokens(draft) if draft.flag() else draft.value(lambda e: len(e) == 2 and e[0] == -1 and e[1] > 1)


def tokens_or_any(draft: Draft) -> fx.Node:
    return tokens(draft) if draft.flag() else draft.value(lambda e: len(e) > 1 and e[0] == -1 and e[-1] > 0)


# -- tokens look at tokens: (draft, tokens, what each sees)


def causal(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    return draft.call(aten.scaled_dot_product_attention.default, x, x, x, None, 0.0, True)


def with_mask(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    mask = kept(draft, draft.pick([seen, bias_of(seen)]))
    return draft.call(aten.scaled_dot_product_attention.default, x, x, x, mask)


def scores_of(draft: Draft, x: fx.Node) -> fx.Node:
    return draft.call(aten.matmul.default, x, draft.call(aten.transpose.int, x, 1, 2))


def by_softmax(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    shares = draft.call(aten.softmax.int, infinite_where_hidden(draft, scores_of(draft, x), seen), -1)
    return draft.call(aten.matmul.default, shares, x)


def by_filled(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    shares = draft.call(aten.softmax.int, filled_where_hidden(draft, scores_of(draft, x), seen), -1)
    return draft.call(aten.matmul.default, shares, x)


def by_sigmoid(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    shares = draft.call(aten.sigmoid.default, infinite_where_hidden(draft, scores_of(draft, x), seen))
    return draft.call(aten.matmul.default, shares, x)


def by_silu(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    shares = zero_where_hidden(draft, draft.call(aten.silu.default, scores_of(draft, x)), seen)
    return draft.call(aten.matmul.default, shares, x)


# -- the constant joined with a mask of the tokens themselves


def padding(draft: Draft, x: fx.Node) -> fx.Node:
    """Tokens that nobody sees, few of them: `[rows, 1, tokens]`."""
    first = draft.call(aten.select.int, x, 2, 0)
    draft.check_apart(first, 1.0)
    return draft.call(aten.unsqueeze.default, draft.call(aten.gt.Scalar, first, 1.0), 1)


def by_joined_masks(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    hidden = draft.call(aten.bitwise_or.Tensor, *draft.shuffled([kept(draft, ~seen), padding(draft, x)]))
    filled = draft.call(aten.masked_fill.Scalar, scores_of(draft, x), hidden, draft.pick([float("-inf"), -1e9]))
    return draft.call(aten.matmul.default, draft.call(aten.softmax.int, filled, -1), x)


def by_joined_biases(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    zeros = draft.call(
        aten.mul.Tensor, draft.call(aten.unsqueeze.default, draft.call(aten.select.int, x, 2, 0), 1), 0.0
    )
    bias = draft.call(aten.masked_fill.Scalar, zeros, padding(draft, x), draft.pick([float("-inf"), -30.0]))
    mask = draft.call(aten.add.Tensor, *draft.shuffled([bias, kept(draft, bias_of(seen))]))
    return draft.call(aten.scaled_dot_product_attention.default, x, x, x, mask)


def by_joined_factors(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    shown = draft.call(
        aten.mul.Tensor, kept(draft, seen.double()), draft.call(aten.logical_not.default, padding(draft, x))
    )
    return draft.call(aten.matmul.default, draft.call(aten.mul.Tensor, scores_of(draft, x), shown), x)


def by_joined_numbers(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    hidden = draft.call(aten.add.Tensor, *draft.shuffled([kept(draft, (~seen).double()), padding(draft, x)]))
    mask = draft.call(aten.mul.Tensor, hidden, draft.pick([-1e9, -10000.0, -10.0]))
    if draft.flag():
        return draft.call(aten.scaled_dot_product_attention.default, x, x, x, mask)
    shares = draft.call(aten.softmax.int, draft.call(aten.add.Tensor, scores_of(draft, x), mask), -1)
    return draft.call(aten.matmul.default, shares, x)


JOINED = [by_joined_masks, by_joined_numbers, by_joined_biases, by_joined_factors]
LOOKING = [causal, with_mask, by_softmax, by_filled, by_sigmoid, by_silu, *JOINED]


def masked_sequence(draft: Draft, x: fx.Node) -> Made:
    """A layer in which tokens look at the tokens that a constant mask shows them."""
    _, length, width = draft.extent(x)
    normed = x
    if width > 1 and draft.flag():
        draft.check_spread(x, [-1])
        normed = draft.call(aten.layer_norm.default, x, [width], draft.random(width), draft.random(width))
    seen = seen_positions(draft, length, length)
    made = draft.pick(LOOKING)(draft, normed, seen)
    return draft.call(aten.add.Tensor, x, made) if draft.flag() else made


def masked_tokens(draft: Draft, x: fx.Node) -> Made:
    """Tokens, or columns, that a constant hides whoever looks."""
    depth, length = len(draft.extent(x)), draft.extent(x)[1]
    seen = seen_positions(draft, length, length)[draft.number(0, length - 1)]
    seen = seen if depth == 2 else seen[:, None]
    if draft.flag():
        return zero_where_hidden(draft, x, seen)
    filled = infinite_where_hidden(draft, x, seen) if depth == 3 or draft.flag() else x
    return draft.call(aten.softmax.int, filled, 1) if draft.flag() else draft.call(aten.sigmoid.default, filled)


def mixed_tokens(draft: Draft, x: fx.Node) -> Made:
    """Sums of the tokens that a constant has no zero for, or that it puts into groups."""
    _, length, width = draft.extent(x)
    if draft.flag():
        count = draft.number(1, length + 1)
        groups = draft.call(aten.new_zeros.default, x, [draft.size(-1), count, width])
        places = torch.randint(0, count, (length,), generator=draft.generator)
        return draft.call(aten.index_add.default, groups, 1, draft.weight(places), x)
    seen = seen_positions(draft, draft.number(1, length + 1), length).double()
    return draft.call(aten.matmul.default, kept(draft, seen * draft.pick([1.0, 0.5])), x)


ARITHMETIC = [aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.maximum.default]


def piecewise_constant(draft: Draft, x: fx.Node) -> Made:
    """Arithmetic with a constant that is one number for some positions and another one for others."""
    width = draft.extent(x)[-1]
    numbers = [draft.pick([0.0, 1.0, 0.0, 1.0, 2.0, -0.5])] * draft.number(0, width)
    numbers += [draft.pick([1.0, 0.0, -1.0])] * (width - len(numbers))
    rows = draft.pick([1, *draft.extent(x)[1:-1]])
    y = kept(draft, torch.tensor(numbers, dtype=torch.float64).expand(rows, width).clone())
    target = draft.pick(ARITHMETIC)
    if target is aten.div.Tensor:
        return draft.call(target, x, distance(draft, y, draft.pick([1.0, 0.5])))
    if target in (aten.add.Tensor, aten.sub.Tensor) and draft.flag():
        return draft.call(target, *draft.shuffled([x, y]), alpha=draft.pick([2, -0.5]))
    return draft.call(target, *draft.shuffled([x, y]))


STEPS = [
    Step(1, masked, mask_of_rows),
    Step(2, masked_sequence, tokens),
    Step(1, masked_tokens, tokens_or_columns),
    Step(1, mixed_tokens, tokens),
    Step(1, piecewise_constant, tokens_or_any),
]
