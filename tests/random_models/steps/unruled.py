"""Operators that the compiler has no rule for."""

from __future__ import annotations

from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats
from random_models.steps.table import Made, Step, one_of

WITHOUT_RULE = [aten.special_i0e.default, aten.trapezoid.dx, aten.diff.default, aten.glu.default, aten.polar.default]


def diff(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.diff.default, x) if draft.extent(x)[-1] > 1 else polar(draft, x)


def glu(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.glu.default, x, -1) if draft.extent(x)[-1] % 2 == 0 else polar(draft, x)


def polar(draft: Draft, x: fx.Node) -> Made:
    turned = draft.call(aten.polar.default, draft.call(aten.abs.default, x), x)
    return draft.call(aten.abs.default, turned)


NO_RULE = [
    lambda draft, x: draft.call(aten.special_i0e.default, x),
    lambda draft, x: draft.call(aten.trapezoid.dx, x, dx=0.5),
    diff,
    glu,
    polar,
]

STEPS = [
    Step(1, one_of(NO_RULE), floats(lambda e: len(e) > 1 and e[0] < 0 and e[-1] > 0)),
]
