"""Along tokens: windows, recurrences, and what is summed, multiplied or largest so far."""

from __future__ import annotations

import operator

from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats, has_axes
from random_models.steps.masks import tokens
from random_models.steps.table import Made, Step, one_of

SCANS = [aten.cumsum.default, aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default]


def scan(draft: Draft, x: fx.Node) -> Made:
    target = draft.pick([*SCANS, aten.cummax.default, aten.cummin.default])
    made = draft.call(target, x, draft.axis(x))
    return made if target in SCANS else draft.call(operator.getitem, made, 0)


# -- windows: (draft, tokens)


def convolution(draft: Draft, x: fx.Node) -> Made:
    _, length, width = draft.extent(x)
    size, dilation, padding = draft.number(1, 3), draft.number(1, 2), draft.number(0, 2)
    if length + 2 * padding < dilation * (size - 1) + 1:
        size = 1
    grouped = draft.flag()
    weight = draft.random(width, 1 if grouped else width, size, scale=0.5)
    bias = draft.random(width) if draft.flag() else None
    groups = width if grouped else 1
    rest = [draft.number(1, 2)], [padding], [dilation], groups
    made = draft.call(aten.conv1d.default, draft.call(aten.transpose.int, x, 1, 2), weight, bias, *rest)
    return draft.call(aten.transpose.int, made, 1, 2)


def pooling(draft: Draft, x: fx.Node) -> Made:
    target = draft.pick([aten.avg_pool1d.default, aten.max_pool1d.default])
    size = draft.number(1, min(3, draft.extent(x)[1]))
    turned = draft.call(aten.transpose.int, x, 1, 2)
    made = draft.call(target, turned, [size], [draft.number(1, 2)], [draft.number(0, size // 2)])
    return draft.call(aten.transpose.int, made, 1, 2)


def unfold(draft: Draft, x: fx.Node) -> Made:
    size = draft.number(1, min(3, draft.extent(x)[1]))
    return draft.call(aten.amax.default, draft.call(aten.unfold.default, x, 1, size, draft.number(1, 2)), [-1])


# -- recurrences: (draft, tokens)

RECURRENT = [aten.gru.input, aten.rnn_tanh.input, aten.lstm.input]


def recurrent(draft: Draft, x: fx.Node) -> Made:
    """One layer, in some models in both directions, from states of some position."""
    width, hidden, target, both = draft.extent(x)[2], draft.number(1, 2), draft.pick(RECURRENT), draft.flag()
    gates = {aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.lstm.input: 4}[target] * hidden
    params = []
    for _ in range(1 + both):
        params += [draft.random(gates, n, scale=0.5) for n in (width, hidden)]
    position = draft.number(0, draft.places(draft.extent(x)[1]) - 1)
    first = draft.call(aten.slice.Tensor, x, 1, position, position + 1)
    state = draft.call(aten.linear.default, first, draft.random(hidden, width, scale=0.3))
    state = draft.call(aten.cat.default, [draft.call(aten.transpose.int, state, 0, 1)] * (1 + both), 0)
    given = [state, state] if target is aten.lstm.input else state
    made = draft.call(target, x, given, params, False, 1, 0.0, False, both, True)
    return draft.call(operator.getitem, made, 0)


STEPS = [
    Step(1, recurrent, tokens),
    Step(1, scan, floats(has_axes)),
    Step(1, scan, tokens),
    Step(2, one_of([convolution, pooling, unfold]), tokens),
]
