"""A row of a family's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from random_models.draft import Draft
from random_models.operands import Operand

Made = fx.Node | Iterable[fx.Node] | None
Way = Callable[..., Made]  # (draft, operands)


@dataclass(frozen=True)
class Step:
    """One way to go on with a model.

    Attributes:
        weight: how often it is drawn; the others' weights are relative to it.
        way: records operators on the operand. What it returns or yields, if anything, is kept for later steps.
        operand: the value that it starts from.
    """

    weight: int
    way: Way
    operand: Operand

    def take(self, draft: Draft) -> None:
        made = self.way(draft, self.operand(draft))
        for node in [made] if isinstance(made, fx.Node) else made or []:
            draft.add(node)


def one_of(ways: Sequence[Way]) -> Way:
    """Any of them, drawn alike."""
    return lambda draft, *operands: draft.pick(ways)(draft, *operands)
