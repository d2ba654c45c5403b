"""Which names of a function may be read again, from its source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from rankhoist.capture.read_again import read_again

found: list[set[str]] = []


def here() -> bool:
    frame = sys._getframe(1)
    found.append({*filter(read_again(frame), frame.f_locals)})
    return True


def in_loop(rows: Any) -> Any:
    """Names of a turn are given values before they are read."""
    out = first = 0
    for row in rows:
        here()
        part = row + first
        if part:
            kept, (twice, _) = part, (part * 2, None)
            out += kept + twice
    return out


def of_two_ways(a: Any, b: Any) -> Any:
    """`b` is given another value in one of them."""
    here()
    if a:
        b = 1
    else:
        a = b
    return b


def of_both_ways(a: Any, b: Any) -> Any:
    here()
    if a:
        b = 1
        a = b
    else:
        b = 2
    return b


def behind_a_loop(rows: Any) -> Any:
    """`last` may be that from before, and is read behind."""
    last = part = 0
    for row in rows:
        here()
        if row:
            continue
        part = row
        last = part
    return last


def with_context(a: Any, b: Any) -> Any:
    """It may end what raises before `b` is given its value."""
    here()
    with nullcontext():
        b = 1
    a = b
    return a


def tried(a: Any, b: Any, c: Any) -> Any:
    try:
        here()
        a = 1
    finally:
        b += 1
    c = 2
    return a, c


def within(a: Any, b: Any) -> Any:
    def inner() -> Any:
        return b

    here()
    a = b = 1
    return a + inner()


def of_comprehension(a: Any, b: Any) -> Any:
    """Its `a` is another one."""
    here()
    a = [0 for a in (1,)] + [a]
    b = 0
    return a, b


def in_a_row(a: Any, b: Any) -> Any:
    here(); a = b = 1  # fmt: skip # noqa: E702
    return a, b


def all_of_it(a: Any) -> Any:
    here()
    a = 1
    return a, locals()


@pytest.mark.parametrize(
    "function, given, read",
    [
        (in_loop, [[1, 2]], {"rows", "row", "out", "first"}), (of_two_ways, [1, 2], {"a", "b"}),
        (of_both_ways, [1, 2], {"a"}), (behind_a_loop, [[0, 0]], {"rows", "row", "last"}),
        (with_context, [1, 2], {"b"}), (tried, [1, 2, 3], {"a", "b"}), (within, [1, 2], {"b", "inner"}),
        (of_comprehension, [1, 2], {"a"}), (in_a_row, [1, 2], {"a", "b"}), (all_of_it, [1], {"a"}),
    ],
)  # fmt: skip
def test_names_that_are_given_other_values_first_are_not_read_again(
    function: Callable[..., Any], given: list[Any], read: set[str]
):
    found.clear()
    function(*given)
    assert all(names == read for names in found) and found
