"""Inputs of every kind, for the request, the candidates or both; some histories are of any length."""

from __future__ import annotations

import torch
from torch import fx

from random_models.bags import draw_bags
from random_models.draft import Draft, aten
from random_models.rows import CANDIDATES, LENGTHS, REQUESTS, VOCABULARY

AXES = {"dense": 1, "sequence": 2, "id": 0, "ids": 1, "mask": 1, "packed": 1}  # beside the rows, by kind


def draw_inputs(draft: Draft) -> None:
    """One input of the request and one of the candidates, or one packed of both; up to two more; tables for ids."""
    kinds = ["dense", "dense", "sequence", "ids", "id", "mask", "packed", "bags"]
    if draft.number(0, 4) == 4:
        _input(draft, "packed", "packed")
    else:
        _input(draft, draft.pick(["dense", "sequence", "ids"]), "context")
        _input(draft, draft.pick(["dense", "sequence", "ids", "id"]), "candidate")
    for _ in range(draft.number(0, 2)):
        kind = draft.pick(kinds)
        if kind != "bags":
            _input(draft, kind, draft.pick(["context", "candidate"]))
        elif not draft.bags:
            draw_bags(draft)
    for x in [v for v in draft.values if draft.dry[v].dtype == torch.int64]:
        if draft.number(0, 3):
            draft.add(embedded(draft, x))
    if not any(draft.is_float(v) for v in draft.values):
        draft.add(embedded(draft, next(v for v in draft.values if draft.dry[v].dtype == torch.int64)))


def embedded(draft: Draft, ids: fx.Node) -> fx.Node:
    """Ids looked up in a table of their own."""
    return draft.call(aten.embedding.default, draft.random(VOCABULARY, draft.number(1, 4)), ids)


def _input(draft: Draft, kind: str, role: str) -> None:
    rows = REQUESTS + CANDIDATES
    shape = [draft.number(1, 5) for _ in range(AXES[kind])]
    varying = kind in ("sequence", "ids") and (role == "context" or draft.varies) and draft.flag()
    if varying:
        shape[0] = max(LENGTHS)
    if kind == "packed":
        width = draft.number(2, 6)
        chosen = sorted(draft.shuffled(range(width))[: draft.number(1, width - 1)])
        draft.values.append(draft.input("packed", draft.normal(rows, width), tuple(chosen)))
    elif kind in ("id", "ids"):
        ids = torch.randint(0, VOCABULARY, (rows, *shape), generator=draft.generator)
        draft.values.append(draft.input(role, ids, varying=varying))
    elif kind == "mask":
        draft.values.append(draft.input(role, torch.rand(rows, *shape, generator=draft.generator) > 0.4))
    else:
        draft.values.append(draft.input(role, draft.normal(rows, *shape), varying=varying))
