"""Values in bags, as operators take and return them: the values, where the bags lie, and how many values there are."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

from rankhoist.compiler.algebra.forms import ROW, Form, plain
from rankhoist.compiler.graph.node import Node, Rate


@dataclass(frozen=True, eq=False)
class Values:
    """The values of one input's bags, `[total, *shape]`: a form whose rows they are.

    `lengths` are those of the bags, `[rows]`, at the same rate; `total` is what they add up to.
    """

    form: Form
    lengths: Node
    total: sympy.Expr

    @property
    def rate(self) -> Rate:
        """How often there is such a bag."""
        return self.lengths.rate


@dataclass(frozen=True, eq=False)
class Ragged:
    """Values in bags, those of several inputs under each other."""

    parts: tuple[Values, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Bounds:
    """Where bags begin and end: sums of `lengths` so far along the rows, its last axis.

    `first` is the 0 before them; without `last`, where the last one ends is left out.
    """

    lengths: Form
    first: bool
    last: bool
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Totals:
    """What `lengths` add up to along the rows, its last axis: one number, or one per key."""

    lengths: Form
    sums: tuple[sympy.Expr, ...]
    dtype: torch.dtype


OfBags = Ragged | Bounds | Totals


@dataclass(frozen=True, eq=False)
class Key:
    """The lengths `[rows]` of one key's bags: two are the same if their nodes are.

    `total` is what they add up to, where that is the size of an input or so many per row.
    """

    lengths: Form
    node: Node
    total: sympy.Expr | None


def lengths_of(value: OfBags) -> list[Form]:
    """Those of the bags, at the rate that the value has."""
    if isinstance(value, Ragged):
        return [plain(part.lengths, torch.int64, ((ROW,),)) for part in value.parts]
    return [value.lengths]
