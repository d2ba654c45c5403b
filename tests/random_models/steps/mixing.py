"""Operators that let rows meet: nothing behind may run per request. Drawn apart, at most once in a model."""

from __future__ import annotations

from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.operands import floats
from random_models.steps.table import Made, Step


def between_rows(draft: Draft, x: fx.Node) -> fx.Node:
    """Rows attend to rows."""
    if len(draft.extent(x)) != 2 or draft.extent(x)[1] < 1:
        raise UnstableError
    scores = draft.call(aten.matmul.default, x, draft.call(aten.t.default, x))
    return draft.call(aten.matmul.default, draft.call(aten.softmax.int, scores, -1), x)


MEETING = [
    lambda draft, x: draft.call(aten.softmax.int, x, 0),
    lambda draft, x: draft.call(aten.cumsum.default, x, 0),
    lambda draft, x: draft.call(aten.sub.Tensor, x, draft.call(aten.mean.dim, x, [0], True)),
    lambda draft, x: draft.call(aten.flip.default, x, [0]),
    lambda draft, x: draft.call(aten.sub.Tensor, x, draft.call(aten.sum.dim_IntList, x, [0])),
    lambda draft, x: draft.call(aten.roll.default, x, [1], [0]),
    between_rows,
]


def mix_rows(draft: Draft, x: fx.Node) -> Made:
    made = draft.pick(MEETING)(draft, x)
    draft.mixed.add(made)
    return made


MIX_ROWS = Step(1, mix_rows, floats(lambda e: len(e) > 0 and e[0] == -1))
