"""Which part of a tensor is read: a box, an interval along every axis.

An axis may be several folded into one, as `[rows, 21, 8] -> [21 * rows, 8]`, of which one is cut: so an axis is a tuple
of parts in order, whose sizes multiply to its own. Sizes and places are numbers or expressions in the rows and in
lengths that vary; parts are told apart where the order of their places is the same for all of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cmp_to_key, reduce
from typing import Any

import sympy

from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.lengths import not_above, order, quotient

Size = Any  # int | sympy.Expr
MOST = 8  # boxes of a tensor; of more, what is around all of them
WASTE = 1.25  # two boxes are one where that holds at most so many times what they hold
IN_ORDER = cmp_to_key(order)
USUAL = 1000  # what a size that is no number is taken for, where volumes are compared


@dataclass(frozen=True)
class Part:
    """Elements `first` to `end` of `size`; of all of them `end` is None."""

    size: Size
    first: Size = 0
    end: Size | None = None

    @property
    def width(self) -> Size:
        return self.size if self.end is None else plain(self.end - self.first)


Axis = tuple[Part, ...]
Box = tuple[Axis, ...]


def whole(sizes: Sequence[Size]) -> Box:
    """All of a tensor."""
    return tuple((Part(s),) for s in sizes)


def is_whole(axis: Axis) -> bool:
    return all(p.end is None for p in axis)


def all_of(box: Box) -> bool:
    """Whether it is the whole tensor."""
    return all(map(is_whole, box))


def plain(size: Size) -> Size:
    """A number where an expression is one."""
    return int(size) if isinstance(size, sympy.Integer) else size


def cut(size: Size, first: Size, end: Size) -> Axis:
    """An interval of an axis that is no fold."""
    return (Part(size),) if (first, end) == (0, size) else (Part(size, first, end),)


def interval(axis: Axis) -> tuple[Size, Size] | None:
    """First and end of an axis that is cut as a whole, or not at all; None for a fold."""
    if is_whole(axis):
        return 0, product([p.size for p in axis])
    if len(axis) > 1 or axis[0].end is None:
        return None
    return axis[0].first, axis[0].end


def width(axis: Axis) -> Size:
    """How many of an axis are read."""
    return product([p.width for p in axis])


def volume(box: Box) -> int:
    """How many elements a box has, where rows are the usual number."""
    return math.prod(_usual(width(axis)) for axis in box)


def _usual(size: Size) -> int:
    return size if isinstance(size, int) else int(size.subs(dict.fromkeys(size.free_symbols, USUAL)))


def product(sizes: Sequence[Size]) -> Size:
    """Of sizes; a number where it is one."""
    return plain(math.prod(sizes))


def regrouped(box: Box, sizes: Sequence[Size]) -> Box | None:
    """The same elements of the same tensor in another shape; None where they are no box there."""
    parts = [p for axis in box for p in axis if p.size != 1]
    axes: list[Axis] = []
    for size in sizes:
        axis, parts_left = _taken(parts, size)
        if axis is None:
            return None
        axes.append(_tidy(axis, size))
        parts = parts_left
    return None if parts else tuple(axes)


def _taken(parts: Sequence[Part], size: Size) -> tuple[list[Part] | None, list[Part]]:
    """The first parts, as many as make an axis of `size`, and the others."""
    taken: list[Part] = []
    rest = list(parts)
    while size != 1:
        if not rest:
            return None, []
        part = rest.pop(0)
        left = divided(size, part.size)
        if left is None:
            apart = _apart(part, size)
            if apart is None:
                return None, []
            part, behind = apart
            rest.insert(0, behind)
            left = 1
        taken.append(part)
        size = left
    return taken, rest


def _apart(part: Part, outer: Size) -> tuple[Part, Part] | None:
    """A part as two: `outer` times the rest."""
    inner = divided(part.size, outer)
    if inner is None:
        return None
    if part.end is None:
        return Part(outer), Part(inner)
    if not all(isinstance(n, int) for n in (inner, part.first, part.end)):
        return None
    (first, above), (end, over) = divmod(part.first, inner), divmod(part.end, inner)
    if not above and not over:
        return Part(outer, first, end), Part(inner)
    if part.end <= (first + 1) * inner:
        return Part(outer, first, first + 1), Part(inner, above, part.end - first * inner)
    return None


def _tidy(parts: Sequence[Part], size: Size) -> Axis:
    """Neighbours that are whole are one part."""
    kept: list[Part] = []
    for part in parts:
        if kept and kept[-1].end is None and part.end is None:
            part = Part(product([kept.pop().size, part.size]))
        kept.append(part)
    return tuple(kept) or (Part(size),)


def divided(a: Size, b: Size) -> Size | None:
    """`a / b` where it is exact for any number of rows."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    found = quotient(a, b) if b != 0 else None
    return int(found) if isinstance(found, sympy.Integer) else found


# -- several boxes of one tensor


def merged(boxes: Sequence[Box], sizes: Sequence[Size]) -> list[Box]:
    """Boxes that hold all of these, and no element twice; two become one where that holds hardly more."""
    found: list[Box] = []
    for box in dict.fromkeys(boxes):
        found.append(box)
        while pair := _joined(found, sizes):
            i, j, both = pair
            found = [b for k, b in enumerate(found) if k not in (i, j)] + [both]
        if len(found) > MOST:
            found = [reduce(lambda a, b: hull(a, b, sizes), found)]
    return found


def _joined(boxes: Sequence[Box], sizes: Sequence[Size]) -> tuple[int, int, Box] | None:
    for j in range(len(boxes)):
        for i in range(j):
            both = hull(boxes[i], boxes[j], sizes)
            if not apart(boxes[i], boxes[j]) or volume(both) <= WASTE * (volume(boxes[i]) + volume(boxes[j])):
                return i, j, both
    return None


def hull(a: Box, b: Box, sizes: Sequence[Size]) -> Box:
    """The smallest box around two."""
    return tuple(_around(x, y, size) for x, y, size in zip(a, b, sizes, strict=True))


def _around(a: Axis, b: Axis, size: Size) -> Axis:
    if not _alike(a, b):
        return (Part(size),)
    return _tidy([_over(x, y) for x, y in zip(a, b, strict=True)], size)


def _over(a: Part, b: Part) -> Part:
    if a.end is None or b.end is None:
        return Part(a.size)
    try:
        ends = min(a.first, b.first, key=IN_ORDER), max(a.end, b.end, key=IN_ORDER)
    except Decline:
        return Part(a.size)
    (made,) = cut(a.size, *ends)
    return made


def apart(a: Box, b: Box) -> bool:
    """Whether no element is in both."""
    return any(_alike(x, y) and any(map(_disjoint, x, y)) for x, y in zip(a, b, strict=True))


def _disjoint(a: Part, b: Part) -> bool:
    return a.end is not None and b.end is not None and (not_above(a.end, b.first) or not_above(b.end, a.first))


def covers(outer: Box, inner: Box) -> bool:
    """Whether a box has all elements of another."""
    return all(is_whole(x) or (_alike(x, y) and all(map(_has, x, y))) for x, y in zip(outer, inner, strict=True))


def _has(a: Part, b: Part) -> bool:
    return a.end is None or (b.end is not None and not_above(a.first, b.first) and not_above(b.end, a.end))


def within(outer: Axis, inner: Axis) -> Axis:
    """What `inner` is of the elements of `outer`, which covers it."""
    if is_whole(outer):
        return inner
    return tuple(_inside(x, y) for x, y in zip(outer, inner, strict=True))


def _inside(outer: Part, inner: Part) -> Part:
    if outer.end is None or inner.end is None:
        return inner
    (made,) = cut(outer.width, plain(inner.first - outer.first), plain(inner.end - outer.first))
    return made


def overlap(inner: tuple[Size, Size], start: Size, size: Size) -> tuple[Size, Size] | None:
    """What an interval is of the `size` places from `start` on; None where that depends on lengths."""
    first, end = (plain(place - start) for place in inner)
    try:
        return max(first, 0, key=IN_ORDER), min(end, size, key=IN_ORDER)
    except Decline:
        return None


def _alike(a: Axis, b: Axis) -> bool:
    """Whether two axes are folds of the same."""
    return [p.size for p in a] == [p.size for p in b]
