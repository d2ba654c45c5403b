"""Rows under rows. Law: `[x; y]` along the rows is an axis of two, folded with the rows and outside of them.

Row r of part p stands at place `p * rows + r`, so a cut at a multiple of the rows is a choice of parts, and what is
done to every row is done to every part. Parts of the context stay the request's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sympy

from rankhoist.compiler.algebra import joins, moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.graph.build import Builder


def in_parts(value: Form, axis: int) -> Form:
    """The same with one dim outside of the rows on their axis, its parts: `[rows, D]` is one part of rows."""
    value = moves.ordered(value)
    entry = value.layout[axis]
    first, count = sum(d != ROW for e in value.layout[:axis] for d in e), entry.index(ROW)
    merged = moves.merge_dims(value, first, count)
    if count:
        return merged
    return replace(merged, layout=tuple((first, *e) if i == axis else e for i, e in enumerate(merged.layout)))


def under_each_other(builder: Builder, forms: Sequence[Form], axis: int) -> Form:
    """Rows under rows: an axis of as many parts as there are, folded with the rows and outside of them."""
    for f in forms:
        if f.layout[axis][-1:] != (ROW,):
            raise Decline(f"puts {f.axes} under rows: another axis is folded inside of its rows, or it has none")
    forms = [in_parts(f, axis) for f in forms]
    return joins.side_by_side(builder, forms, forms[0].layout[axis][0])


def parts(builder: Builder, value: Form, axis: int, first: int, last: int) -> Form:
    """Parts `first` to `last - 1`; one part by itself is rows again."""
    whole = in_parts(value, axis)
    dim = whole.layout[axis][0]
    if not 0 <= first < last <= whole.sizes[dim]:
        raise Decline(f"takes no rows of {value.axes}")
    if last - first == whole.sizes[dim]:
        return value
    taken = moves.take_dim(builder, whole, dim, np.arange(first, last))
    return moves.drop_dim(builder, taken, dim) if last - first == 1 else taken


def part_number(rows: sympy.Symbol, value: Form, axis: int, place: Any) -> int:
    """Which part begins at a place of the rows' axis; declines where none does."""
    entry = value.layout[axis]
    at = entry.index(ROW)
    count, inside = (math.prod(value.sizes[d] for d in ds) for ds in (entry[:at], entry[at + 1 :]))
    if isinstance(place, int) and place >= END:
        return int(count)
    number = sympy.simplify(sympy.sympify(place) / (inside * rows))
    if not number.is_Integer:
        raise Decline(f"cuts the rows of {value.axes} at {place}")
    return int(min(max(int(number) if number >= 0 else int(number) + count, 0), count))


END = 2**62  # slices without an end go to a number beyond all sizes
