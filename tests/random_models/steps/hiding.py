"""Constants that hide: what each position may see, kept in several ways and used with zeros, infinities or fills."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from random_models.draft import Draft, aten
from random_models.steps.table import Made, one_of


def kept(draft: Draft, tensor: Tensor) -> fx.Node:
    """A constant that the model keeps as a plain attribute, a buffer or a parameter."""
    return draft.weight(tensor, *draft.pick([(False, False), (True, False), (True, True)]))


def seen_positions(draft: Draft, rows: int, columns: int) -> Tensor:
    """What every position may look at; of as many positions, each at itself."""
    seen = torch.ones(rows, columns, dtype=torch.bool)
    kind = draft.number(0, 4)
    if kind < 2:
        seen = seen.tril() if kind == 0 else seen.triu()
    elif kind == 2:
        seen[:, draft.number(0, columns - 1)] = False
    elif kind == 3:
        seen[:-1, -1] = False
    else:
        seen = torch.rand(rows, columns, generator=draft.generator) > 0.5
    return seen | torch.eye(rows, columns, dtype=torch.bool)


def bias_of(seen: Tensor) -> Tensor:
    """0 where seen, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)


# -- zeros where a constant hides: (draft, x, seen)


def zero_by_sum(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    hidden = draft.call(aten.sub.Tensor, kept(draft, seen.double()), 1.0)
    return draft.call(aten.add.Tensor, x, draft.call(aten.mul.Tensor, hidden, x))


zero_where_hidden = one_of([
    lambda draft, x, seen: draft.call(aten.mul.Tensor, x, kept(draft, seen.double())),
    lambda draft, x, seen: draft.call(aten.mul.Tensor, kept(draft, draft.pick([seen, seen.long()])), x),
    lambda draft, x, seen: draft.call(aten.masked_fill.Scalar, x, kept(draft, ~seen), 0.0),
    lambda draft, x, seen: draft.call(aten.where.ScalarOther, kept(draft, seen), x, 0.0),
    zero_by_sum,
])  # fmt: skip


# -- minus infinity where a constant hides: (draft, x, seen)


def infinite_for_everyone(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    everyone = draft.call(aten.expand.default, kept(draft, ~seen[None]), [draft.size(-1), *draft.extent(x)[1:]])
    return draft.call(aten.masked_fill.Scalar, x, everyone, float("-inf"))


infinite_where_hidden = one_of([
    lambda draft, x, seen: draft.call(aten.masked_fill.Scalar, x, kept(draft, ~seen), float("-inf")),
    lambda draft, x, seen: draft.call(aten.add.Tensor, *draft.shuffled([x, kept(draft, bias_of(seen))])),
    lambda draft, x, seen: draft.call(aten.where.ScalarSelf, kept(draft, ~seen), float("-inf"), x),
    lambda draft, x, seen: draft.call(aten.sub.Tensor, x, kept(draft, -bias_of(seen))),
    infinite_for_everyone,
])  # fmt: skip


# -- a finite number where a constant hides: (draft, x, seen); the last ones are too near to scores


def filled_twice(draft: Draft, x: fx.Node, seen: Tensor) -> Made:
    fill = draft.pick([-1e9, -10000.0])
    draft.check_apart(x, 5.0)
    first = draft.call(aten.masked_fill.Scalar, x, kept(draft, ~seen), fill)
    return draft.call(aten.masked_fill.Scalar, first, draft.call(aten.gt.Scalar, x, 5.0), fill)


def number_added(draft: Draft, x: fx.Node, seen: Tensor, number: float) -> Made:
    """To what is hidden, by a mask that is 1 where it hides, or where it shows."""
    if draft.flag():
        hidden = kept(draft, (~seen).double())
        return draft.call(aten.add.Tensor, x, draft.call(aten.mul.Tensor, hidden, number))
    hidden = draft.call(aten.rsub.Scalar, kept(draft, seen.double()), 1.0)
    return draft.call(aten.sub.Tensor, x, draft.call(aten.mul.Tensor, hidden, -number))


filled_where_hidden = one_of([
    lambda draft, x, seen: draft.call(aten.masked_fill.Scalar, x, kept(draft, ~seen), -1e9),
    lambda draft, x, seen: draft.call(aten.where.ScalarSelf, kept(draft, ~seen), torch.finfo(torch.float64).min, x),
    filled_twice,
    lambda draft, x, seen: number_added(draft, x, seen, draft.pick([-1e9, -10000.0])),
    lambda draft, x, seen: number_added(draft, x, seen, -50.0),
    lambda draft, x, seen: draft.call(aten.masked_fill.Scalar, x, kept(draft, ~seen), -30.0),
])  # fmt: skip
