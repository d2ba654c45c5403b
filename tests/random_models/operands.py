"""Operands: the value that a step starts from, by its sizes, and further ones that fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.rows import Extent, product

Operand = Callable[[Draft], fx.Node]


def floats(where: Callable[[Extent], bool] = lambda _: True) -> Operand:
    """A value of floats with such sizes."""
    return lambda draft: draft.value(where)


def whole_numbers(where: Callable[[Extent], bool] = lambda _: True) -> Operand:
    """A value of integers or booleans with such sizes."""
    return lambda draft: draft.value(where, floating=False)


# -- sizes that several steps ask for


def has_axes(extent: Extent) -> bool:
    return len(extent) > 1


def wide(extent: Extent) -> bool:
    return len(extent) > 1 and extent[-1] > 0


def several_wide(extent: Extent) -> bool:
    return len(extent) > 1 and extent[-1] > 1


def sequence(extent: Extent) -> bool:
    """`[rows, length, width]`, nothing of it empty or folded."""
    return len(extent) == 3 and extent[0] == -1 and min(extent[1:]) > 0


# -- operands that fit another


def like(draft: Draft, extent: Extent, axis: int | None = None) -> fx.Node:
    """A value of the same sizes (but for one axis): one that exists, or one that is made."""

    def same(e: Extent) -> bool:
        return len(e) == len(extent) and all(
            a == b or (i == axis and a >= 0) for i, (a, b) in enumerate(zip(e, extent, strict=True))
        )

    found = [v for v in draft.values if draft.is_float(v) and same(draft.extent(v))]
    if found and (len(found) > 1 or draft.number(0, 2) == 0):
        return draft.pick(found)
    return _made(draft, extent)


def _made(draft: Draft, extent: Extent) -> fx.Node:
    """A new value of the given sizes from an input or another value."""
    inner = extent[1:]
    if not extent or extent[0] != -1 or any(n < 0 for n in inner):
        raise UnstableError
    x = draft.value(lambda e: len(e) >= 1 and e[0] == -1 and all(n > 0 for n in e[1:]))
    own = draft.extent(x)
    if own == extent:
        return x
    if len(own) == len(extent) - 1 and own[1:] == inner[1:]:
        x = draft.call(aten.unsqueeze.default, x, 1)
        return draft.call(aten.expand.default, x, [-1, *map(draft.size, inner)])
    flat = draft.view(x, [-1, product(own[1:])]) if len(own) != 2 else x
    made = draft.call(aten.linear.default, flat, draft.random(product(inner), product(own[1:]), scale=0.6))
    return draft.view(made, extent) if len(extent) != 2 else made


def broadcasting(draft: Draft, x: fx.Node) -> Any:
    """Something that broadcasts with x: a number, a weight, x itself, a part of a value, or a value."""
    extent = draft.extent(x)
    kind = draft.number(0, 5)
    if kind == 0:
        return draft.pick([0.5, -1.5, 2, 3.0])
    if kind == 1:
        return draft.random(*(n for n in extent[1:] if n >= 0)) if all(n >= 0 for n in extent[1:]) else draft.random()
    if kind == 2:
        return x
    if kind == 3 and len(extent) > 1:
        axis = draft.axis(x)
        other = like(draft, extent)
        return draft.call(aten.slice.Tensor, other, axis, 0, 1)
    found = [v for v in draft.values if draft.is_float(v) and v is not x and broadcasts(draft.extent(v), extent)]
    return draft.pick(found[::-1]) if found and draft.number(0, 3) else like(draft, extent)


def whole_broadcasting(draft: Draft, x: fx.Node) -> fx.Node:
    """A value of integers or booleans that broadcasts with x."""
    found = [v for v in draft.values if not draft.is_float(v) and broadcasts(draft.extent(v), draft.extent(x))]
    return draft.pick(found[::-1])


def broadcasts(small: Extent, large: Extent) -> bool:
    """Trailing axes fit; rows meet rows only."""
    if any(n < 0 for n in large) and any(n < 0 for n in small) and len(small) != len(large):
        return False
    pairs = list(zip(small[::-1], large[::-1], strict=False))
    return len(small) <= len(large) and all(a in (b, 1) or (b == 1 and a > 0) for a, b in pairs)
