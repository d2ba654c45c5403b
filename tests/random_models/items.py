"""Random models whose items have a store: every other of a candidate's inputs and columns is its item's (no bags)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from random_models.model import RandomModel
from rankhoist.capture import InputSpec, Program


def with_items(program: Program) -> Program:
    """The first of the candidates' inputs is the item's, the second the pair's, and so on; of a packed one, columns."""
    marked, others = {}, 0
    for placeholder, spec in program.inputs.items():
        own = spec
        if spec.role == "packed":
            columns = spec.candidate_columns
            own = replace(spec, item_columns=columns[::2]) if len(columns) > 1 else replace(spec, item=True)
        elif spec.role == "candidate":
            own, others = replace(spec, item=others % 2 == 0 and not spec.bags), others + 1
        marked[placeholder] = own
    return replace(program, inputs=marked)


def side(model: RandomModel, program: Program, name: str) -> dict[str, Any]:
    """The inputs `[CANDIDATES, ...]` of items, or of pairs."""
    found = {}
    for spec in program.inputs.values():
        for own, _, columns in spec.parts_with_store:
            if own == name:
                found[spec.name] = _columns(model.candidate[spec.name], spec, columns)
    return found


def _columns(rows: Any, spec: InputSpec, columns: tuple[int, ...] | None) -> Any:
    return rows if columns is None else rows[:, [spec.candidate_columns.index(c) for c in columns]]


def shuffled(items: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Items in another order."""
    return {name: rows[torch.tensor(order)] for name, rows in items.items()}
