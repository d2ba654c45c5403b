"""Rows under rows: two values along the rows, worked on together, and taken apart again."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx

from random_models.draft import Draft, aten
from random_models.operands import floats, like
from random_models.steps.table import Made, Step


def stacked(draft: Draft, x: fx.Node) -> Made:
    """A tower that both share."""
    extent = draft.extent(x)
    both = draft.call(aten.cat.default, draft.shuffled([x, like(draft, extent)]))
    if draft.flag():
        both = draft.call(aten.linear.default, both, draft.random(draft.number(1, 4), extent[-1], scale=0.7))
    if draft.flag():
        both = draft.call(draft.pick([aten.relu.default, aten.tanh.default]), both)
    return apart(draft, both)


def apart(draft: Draft, both: fx.Node) -> Iterator[fx.Node]:
    """Two parts of rows, in one of the ways that models take them apart."""
    draft.stacked.add(both)
    kind, rows, inner = draft.number(0, 3), draft.size(-1), draft.extent(both)[1:]
    if kind == 0:
        parts = draft.call(aten.split_with_sizes.default, both, [rows, rows])
        yield from (draft.call(operator.getitem, parts, i) for i in range(2))
    elif kind == 1:
        yield draft.call(aten.slice.Tensor, both, 0, 0, rows)
        yield draft.call(aten.slice.Tensor, both, 0, rows)
    elif kind == 2:
        viewed = draft.call(aten.reshape.default, both, [2, -1, *map(draft.size, inner)])
        yield from (draft.call(aten.select.int, viewed, 0, i) for i in range(2))
    else:
        yield both


STEPS = [Step(2, stacked, floats(lambda e: len(e) > 1 and e[0] == -1 and all(n > 0 for n in e[1:])))]
