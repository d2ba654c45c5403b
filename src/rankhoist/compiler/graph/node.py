"""The intermediate graph: nodes with a rate, built without duplicates.

A node is a tensor `[rows, *shape]`; at weight rate there is no row axis. Around original operators there are others, in
the layout of the model's author (`rows_first` is false). Nodes are interned, so building the same thing twice yields
the same node: common subexpressions cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import sympy
import torch

from rankhoist.compiler.graph.lengths import usually

aten = torch.ops.aten
Op = Callable[..., Any]


class Rate(IntEnum):
    """How often a value must be computed; the join of two rates is their bitwise or."""

    WEIGHT = 0
    REQUEST = 1
    ITEM = 2
    PAIR = 3

    @property
    def per_candidate(self) -> bool:
        return self >= Rate.ITEM

    @property
    def stage(self) -> str:
        return "candidate" if self.per_candidate else self.name.lower()


RATES = tuple(Rate)


def join(rates: Iterable[Rate]) -> Rate:
    """The lowest rate at which something that reads all of `rates` can be computed."""
    result = 0
    for rate in rates:
        result |= rate
    return RATES[result]


@dataclass(frozen=True)
class Size:
    """An integer argument that depends on the number of rows of its stage, or on sizes measured during the call."""

    expr: sympy.Expr
    measured: tuple[tuple[sympy.Symbol, Node], ...] = ()


@dataclass(frozen=True)
class StageArgument:
    """`rows`, `owner` or `offsets`: what a stage is told about its rows (see `kernels`)."""

    name: str


ROWS, OWNER, OFFSETS = StageArgument("rows"), StageArgument("owner"), StageArgument("offsets")


@dataclass(frozen=True)
class Work:
    """Cost of one row (for weight rate: once): multiply-adds of products, and elements written."""

    multiply_adds: int = 0
    elements: int = 0

    @property
    def units(self) -> int:
        """One unit per multiply-add and per element written, the planner's measure."""
        return self.multiply_adds + self.elements


@dataclass(eq=False)
class Node:
    """One operation of the intermediate graph.

    `rows_first` says it is `[rows, *shape]`; else rows may be anywhere, and `shape` counts elements of a row at most.
    A size in `shape` is a number, or a `Length` that varies.
    """

    index: int
    op: Op | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rate: Rate
    shape: tuple[Any, ...]
    dtype: torch.dtype
    source: str
    work: Work = field(default_factory=Work)
    rows_first: bool = True

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes that it reads."""
        found: list[Node] = []
        left: list[Any] = [*self.args, *self.kwargs.values()][::-1]
        while left:
            value = left.pop()
            if isinstance(value, Node):
                found.append(value)
            elif isinstance(value, Size):
                found.extend(n for _, n in value.measured)
            elif isinstance(value, list | tuple):
                left.extend(reversed(value))
        return tuple(found)

    @cached_property
    def learns(self) -> bool:
        """Whether a gradient goes there, on its way to a weight."""
        return self.dtype.is_floating_point and (self.op == "weight" or any(x.learns for x in self.inputs))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape in numbers, to count costs: lengths that vary are what they usually are."""
        return usually(self.shape)

    def __repr__(self) -> str:
        name = self.op if isinstance(self.op, str) else getattr(self.op, "__name__", str(self.op))
        return f"%{self.index}:{self.rate.name.lower()}{list(self.shape)} = {name}"


def first_axis(node: Node) -> int:
    """Index of the first axis after the row axis."""
    return 0 if node.rate is Rate.WEIGHT else 1


def live_nodes(outputs: Iterable[Node]) -> list[Node]:
    """Everything that `outputs` need, operands before their users."""
    seen: dict[int, Node] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.index not in seen:
            seen[node.index] = node
            stack.extend(node.inputs)
    return [seen[i] for i in sorted(seen)]
