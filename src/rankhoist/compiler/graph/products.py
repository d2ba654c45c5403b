"""Multiply-adds of the operators that PyTorch has, by the shapes of their operands and results, and how it multiplies.

What counts takes the captured node, the shapes of its tensor operands, and the number of elements of its result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

Shapes = list[list[int]]


def last_axis(node: fx.Node, operands: Shapes, written: int) -> int:
    """Each element of the result sums along the last axis of the first operand."""
    return written * operands[0][-1]


def last_axis_of_second(node: fx.Node, operands: Shapes, written: int) -> int:
    """The same of the second operand: the first is added to."""
    return written * operands[1][-1]


def einsum(node: fx.Node, operands: Shapes, written: int) -> int:
    """Every combination of all letters."""
    if not isinstance(node.args[0], str) or len(operands) < 2:
        return 0
    axes, _ = einsum_axes(node.args[0], [len(shape) for shape in operands])
    sizes: dict[str, int] = {}
    for own, shape in zip(axes, operands, strict=True):
        for name, size in zip(own, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def vecdot(node: fx.Node, operands: Shapes, written: int) -> int:
    """One per pair of elements, the operands broadcast."""
    return math.prod(torch.broadcast_shapes(*operands))


def tensordot(node: fx.Node, operands: Shapes, written: int) -> int:
    """Each element of the result sums along the axes that are named."""
    summed: list[int] = list(node.args[2])  # type: ignore[arg-type]
    return written * math.prod(operands[0][d] for d in summed)


def convolution(node: fx.Node, operands: Shapes, written: int) -> int:
    """A filter per element written; transposed, per element read."""
    transposed = len(node.args) > 6 and node.args[6] is True
    return (math.prod(operands[0]) if transposed else written) * math.prod(operands[1][1:])


def attention(node: fx.Node, operands: Shapes, written: int) -> int:
    """Scores of all queries and keys, then as many weights of values."""
    q, k, v = operands[:3]
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def recurrence(node: fx.Node, operands: Shapes, written: int) -> int:
    """Every step of every sequence meets all weight matrices."""
    return math.prod(operands[0][:-1]) * sum(math.prod(o) for o in operands[1:] if len(o) == 2)


def cell(node: fx.Node, operands: Shapes, written: int) -> int:
    """One step: the two weights stand behind the input and its state."""
    return math.prod(operands[0][:-1]) * sum(math.prod(o) for o in operands[2:4])


def cell_of_two_states(node: fx.Node, operands: Shapes, written: int) -> int:
    """One step: the two weights stand behind the input and its two states."""
    return math.prod(operands[0][:-1]) * sum(math.prod(o) for o in operands[3:5])


def bilinear(node: fx.Node, operands: Shapes, written: int) -> int:
    """A matrix between both operands per element of the result."""
    return written * operands[0][-1] * operands[1][-1]


def inverse(node: fx.Node, operands: Shapes, written: int) -> int:
    """As many as a product of two such matrices."""
    return written * operands[0][-1]


def cholesky(node: fx.Node, operands: Shapes, written: int) -> int:
    """Each element below the diagonal sums over those before it, of both of its rows."""
    return -(-written * operands[0][-1] // 6)


def solve(node: fx.Node, operands: Shapes, written: int) -> int:
    """The matrices are eliminated, and then substituted forth and back for every right side."""
    return -(-math.prod(operands[0]) * operands[0][-1] // 3) + written * operands[0][-1]


def solve_by_factor(node: fx.Node, operands: Shapes, written: int) -> int:
    """The factor is substituted forth and back."""
    return written * operands[1][-1]


def einsum_axes(equation: str, depths: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Names of the axes of the operands, which have `depths` of them, and of the result.

    An ellipsis stands for the axes that no letter names, in the order of broadcasting: `a...b` with four axes is
    `["a", "..2", "..1", "b"]`.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    free = [depth - len(term.replace(".", "")) for term, depth in zip(terms, depths, strict=True)]

    def named(term: str, free: int) -> list[str]:
        before, ellipsis, after = term.partition("...")
        return [*before, *(f"..{i}" for i in range(free, 0, -1) if ellipsis), *after]

    return [named(t, n) for t, n in zip(terms, free, strict=True)], named(right, max(free))


class Pair(NamedTuple):
    """Two operands of an einsum and what comes of them: names of axes and shapes."""

    axes: tuple[list[str], list[str]]
    shapes: tuple[Sequence[Any], Sequence[Any]]
    result: list[str]

    @property
    def arranged(self) -> list[int]:
        """Which of the two PyTorch copies before it multiplies matrices, both being contiguous.

        It orders what is summed over by its letters, so `bnc,nc->b` copies the rows and `bcn,cn->b` does not. Axes of
        both and the result, of one, and of both that are summed over become one axis each, without a copy where they
        are neighbours in that order.
        """
        order = [*self.result, *sorted({*self.axes[0], *self.axes[1]} - {*self.result})]

        def copied(own: Sequence[str], other: Sequence[str], shape: Sequence[Any]) -> bool:
            present = [name for name, size in zip(own, shape, strict=True) if not isinstance(size, int) or size != 1]
            places: dict[tuple[bool, bool], list[int]] = {}
            for name in (name for name in order if name in present):
                places.setdefault((name in other, name in self.result), []).append(present.index(name))
            return any(b != a + 1 for along in places.values() for a, b in itertools.pairwise(along))

        return [i for i in range(2) if copied(self.axes[i], self.axes[1 - i], self.shapes[i])]


def pairs(equation: str, shapes: Sequence[Sequence[Any]]) -> list[Pair]:
    """An einsum two operands at a time, from the left, as PyTorch goes through it, and sums what nobody reads later."""
    axes, result = einsum_axes(equation, [len(shape) for shape in shapes])
    size = {name: n for own, shape in zip(axes, shapes, strict=True) for name, n in zip(own, shape, strict=True)}
    found, x = [], axes[0]
    for i, y in enumerate(axes[1:], 2):
        later = {*result, *(name for own in axes[i:] for name in own)}
        made = [*(n for n in result if n in x or n in y), *sorted(({*x, *y} & later) - {*result})]
        found.append(Pair((x, y), ([size[n] for n in x], shapes[i - 1]), made))
        x = made
    return found


def by_vectors(inner: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether a CPU multiplies and adds faster than it multiplies by a matrix of one column per batch entry: from 8
    elements on, 1.5 to 8 times as measured. In a short dtype each product would be rounded.
    """
    return columns == 1 and inner >= 8 and dtype in (torch.float32, torch.float64)
