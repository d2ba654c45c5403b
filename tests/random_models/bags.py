"""Jagged inputs: bags of ids for the request, the candidates or both, and how a model pools them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from random_models.draft import Draft, aten
from random_models.rows import CANDIDATES, REQUESTS, VOCABULARY
from random_models.steps.stacked import apart

SUM, MEAN, MAX = 0, 1, 2  # modes of `embedding_bag`
ROLES = [["context"], ["candidate"], ["context", "candidate"], ["candidate", "context"], ["context", "context"]]


def draw_bags(draft: Draft) -> None:
    """One jagged input, or two; in some models the bags of both are pooled together, one under the other."""
    weighted = draft.flag()
    inputs = [_bags(draft, role, weighted) for role in draft.pick(ROLES)]
    if len(inputs) == 1 or draft.flag():
        for lengths, *columns in inputs:
            draft.add(_pooled(draft, lengths, columns))
        return
    lengths, *columns = (draft.call(aten.cat.default, list(parts)) for parts in zip(*inputs, strict=True))
    for own in apart(draft, _pooled(draft, lengths, columns)):
        draft.add(own)


def _bags(draft: Draft, role: str, weighted: bool) -> list[fx.Node]:
    """Lengths, ids, and in some models a weight for each; a bag in four is empty."""
    rows = REQUESTS + CANDIDATES
    lengths = (torch.randint(-1, 4, (rows,), generator=draft.generator)).clamp(min=0)
    ids = torch.randint(0, VOCABULARY, (int(lengths.sum()),), generator=draft.generator)
    return draft.jagged(role, lengths, ids, *([draft.normal(len(ids))] if weighted else []))


def _pooled(draft: Draft, lengths: fx.Node, columns: list[fx.Node]) -> fx.Node:
    """Rows of a table, summed, averaged or the largest, `[rows, width]`."""
    ids, *weights = columns
    if draft.number(0, 2) == 2:
        ids = draft.call(aten.remainder.Scalar, ids, draft.number(1, VOCABULARY))
    if weights and draft.flag():
        weights = [draft.call(draft.pick([aten.sigmoid.default, aten.tanh.default]), weights[0])]
    table = draft.random(VOCABULARY, draft.number(1, 4))
    mode = SUM if weights else draft.pick([SUM, MEAN, MAX])
    hidden = draft.pick([-1, -1, 0, VOCABULARY - 1])
    offsets, last = _offsets(draft, lengths)
    options = [False, mode, False, *(weights or [None]), last]
    if hidden >= 0:
        made = draft.call(aten.embedding_bag.padding_idx, table, ids, offsets, *options, hidden)
    else:
        made = draft.call(aten.embedding_bag.default, table, ids, offsets, *options)
    return draft.call(operator.getitem, made, 0)


def _offsets(draft: Draft, lengths: fx.Node) -> tuple[fx.Node, bool]:
    """Where bags begin, and whether where the last one ends is told too."""
    ends = draft.call(aten.cumsum.default, lengths, 0)
    kind = draft.number(0, 3)
    if kind == 0:
        return draft.call(aten.sub.Tensor, ends, lengths), False
    if kind == 1:
        zero: Any = draft.weight(_zero(), False, False)
        return draft.call(aten.cat.default, [zero, ends]), True
    padded = draft.call(aten.constant_pad_nd.default, ends, [1, 0])
    return (padded, True) if kind == 2 else (draft.call(aten.slice.Tensor, padded, 0, 0, -1), False)


def _zero() -> Tensor:
    return torch.zeros(1, dtype=torch.int64)
