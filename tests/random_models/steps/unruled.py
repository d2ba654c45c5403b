"""Operators that the compiler has no rule for."""

from __future__ import annotations

from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats
from random_models.steps.table import Made, Step, one_of

WITHOUT_RULE = [aten.renorm.default, aten.trapezoid.dx, aten.diff.default, aten.glu.default, aten.narrow_copy.default]


def diff(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.diff.default, x) if draft.extent(x)[-1] > 1 else renorm(draft, x)


def glu(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.glu.default, x, -1) if draft.extent(x)[-1] % 2 == 0 else renorm(draft, x)


def renorm(draft: Draft, x: fx.Node) -> Made:
    """Rows of a norm of at most 1."""
    return draft.call(aten.renorm.default, x, 2.0, 0, 1.0)


def copied(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.narrow_copy.default, x, -1, 0, draft.extent(x)[-1])


NO_RULE = [
    renorm,
    lambda draft, x: draft.call(aten.trapezoid.dx, x, dx=0.5),
    diff,
    glu,
    copied,
]

STEPS = [
    Step(1, one_of(NO_RULE), floats(lambda e: len(e) > 1 and e[0] < 0 and e[-1] > 0)),
]
