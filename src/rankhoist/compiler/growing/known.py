"""What is known of every value of a request stage when a history gets longer at its end.

A value `x` of the history becomes `x'` of the longer one. It is *stable* where `x'`, cut to the sizes of `x`, is `x`:
then only its last positions are new. Whatever is not proved to be stable is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of

Pair = tuple[int, int]  # axes of queries and of keys
MANY = 2**16  # positions, where there is no bound
UNEVEN = "makes a size that does not grow evenly with the history"
RECURRENT = ("gru", "lstm", "rnn_tanh", "rnn_relu")


class RefusedError(Exception):
    """No cheap step is known to the value of a node; `source` is the captured operator that it stands for."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        self.operator, self.reason = _operator(node), reason
        self.source = str(node.meta.get("source") or node.name)
        super().__init__(f"{self.operator} ({self.source}) {reason}")


@dataclass(frozen=True)
class Varies:
    """An axis that grows: of these placeholders, or inputs, which, and how long it may be."""

    axes: Mapping[str, int]
    low: int
    high: int | None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Three to look at: two neighbours and the longest, which no size may fail to follow."""
        high = self.high if self.high is not None else self.low + MANY
        first = max(self.low, min(2, high - 1))
        return first, first + 1, high

    @property
    def looked_at(self) -> list[tuple[int, int]]:
        """Rows and lengths: the three, the first with other rows, and what is shorter."""
        first, second, last = self.lengths
        shorter = [(3, length) for length in range(self.low, first)]
        return [(3, first), (3, second), (3, last), (5, first), *shorter]


@dataclass(frozen=True)
class Says:
    """What a law says of a value.

    Attributes:
        stable: what was there stays.
        places: an affine map of places, `(coefficient by axis, constant)`.
        later: what it is wherever the place along a second axis lies behind that along a first one.
        uniform: what it is everywhere.
    """

    stable: bool = False
    places: tuple[Mapping[int, Any], Any] | None = None
    later: Mapping[Pair, Tensor] = field(default_factory=dict)
    uniform: Tensor | None = None


@dataclass(frozen=True)
class Fact:
    """A value at all lengths: `moves` if it depends on the history or its length, `events` if on what is in it,
    `inputs` if on any input.
    """

    at: tuple[Any, ...]  # what it looks like: tensors without memory, numbers; None where it is not known or fails
    moves: bool
    events: bool
    inputs: bool
    says: Says

    @property
    def stable(self) -> bool:
        return self.says.stable

    @property
    def number(self) -> bool:
        return isinstance(self.at[0], int | float)


class Known:
    """Facts about the nodes of a graph, found when they are asked for.

    Args:
        leaves: what placeholders are, `[R, ...]` for inputs, at every number of rows and length that is looked at.
        uniform: constant weights that are the same number everywhere.
        law: what a law says of a node.
    """

    def __init__(
        self, varies: Varies, leaves: Mapping[str, tuple[Any, ...]], inputs: frozenset[str],
        uniform: Mapping[str, Tensor], law: Callable[[Known, fx.Node], Says],
    ) -> None:  # fmt: skip
        self.varies, self._leaves, self._inputs, self._uniform, self._law = varies, leaves, inputs, uniform, law
        self._facts: dict[fx.Node, Fact] = {}

    def __getitem__(self, node: fx.Node) -> Fact:
        if node not in self._facts:
            self._facts[node] = self._leaf(node) if node.op == "placeholder" else self._made(node)
        return self._facts[node]

    def _leaf(self, node: fx.Node) -> Fact:
        name = str(node.target)
        moves = name in self.varies.axes
        return Fact(self._leaves[name], moves, moves, name in self._inputs, Says(True, uniform=self._uniform.get(name)))

    def _made(self, node: fx.Node) -> Fact:
        read = [self[x] for x in node.all_input_nodes]
        moves, events, inputs = (any(getattr(f, name) for f in read) for name in ("moves", "events", "inputs"))
        at = tuple(self._looks(node, i) for i in range(len(self.varies.looked_at)))
        if node.target is aten.sym_size.int:
            moves, events = len({*at[:3]}) > 1, False
        fact = self._facts[node] = Fact(at, moves, events, inputs, Says(not moves))
        if any(x is None for x in at[:4]):
            return fact
        if isinstance(at[0], int | float):
            return Fact(at, moves, events, inputs, Says(not moves or len({*at[:3]}) == 1))
        return Fact(at, moves, events, inputs, self._law(self, node)) if isinstance(at[0], Tensor) else fact

    def _looks(self, node: fx.Node, i: int) -> Any:
        """A result of an operator over tensors without memory."""
        given = [self[x].at[i] for x in node.all_input_nodes]
        optional = {x for x in node.all_input_nodes if x.op == "placeholder" and x.target in ("owner", "offsets")}
        if any(v is None for x, v in zip(node.all_input_nodes, given, strict=True) if x not in optional):
            return None
        args, named = fx.map_arg((node.args, dict(node.kwargs)), lambda x: self[x].at[i])
        kwargs = dict(named)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        try:
            if name_of(node.target) in RECURRENT:
                return _ran(node.target, args)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError, ValueError, IndexError):
            return None  # it depends on what is in its operands

    # -- sizes

    def sizes(self, node: fx.Node) -> list[tuple[int, ...]]:
        """Of a tensor, along every axis: at three lengths for one number of rows, and for another."""
        at = self[node].at[:4]
        if not all(isinstance(x, Tensor) for x in at):
            raise RefusedError(node, "makes sizes that are not known before it runs")
        return [*zip(*(tuple(x.shape) for x in at), strict=True)]

    def grows(self, node: fx.Node) -> dict[int, int]:
        """The axes that get longer, and by how many positions for an event."""
        if not self[node].moves:
            return {}
        found = {axis: self._slope(node, own) for axis, own in enumerate(self.sizes(node))}
        for length, looks in enumerate(self[node].at[4:], self.varies.low):
            sizes = [
                own[0] + found[axis] * (length - self.varies.lengths[0]) for axis, own in enumerate(self.sizes(node))
            ]
            if isinstance(looks, Tensor) and list(looks.shape) != sizes:
                raise RefusedError(node, UNEVEN)
        return {axis: slope for axis, slope in found.items() if slope}

    def _slope(self, node: fx.Node, own: Sequence[Any]) -> int:
        first, _, last = self.varies.lengths
        slope = own[1] - own[0]
        if (last - first) * slope != own[2] - own[0] or (slope and own[3] != own[0]) or slope < 0:
            raise RefusedError(node, UNEVEN)
        return int(slope)

    def before(self, node: fx.Node, axis: int) -> tuple[int, int]:
        """How long a growing axis is: so much for every position, and so much beside."""
        own = self.sizes(node)[axis]
        slope = self._slope(node, own)
        return slope, own[0] - slope * self.varies.lengths[0]

    def least(self, node: fx.Node, axis: int) -> int:
        """The lowest size of a growing axis."""
        slope, beside = self.before(node, axis)
        return slope * self.varies.low + beside

    def dim(self, node: fx.Node) -> int:
        """Its number of axes."""
        return len(self.sizes(node))

    # -- pairs of axes

    def pairs(self, node: fx.Node) -> list[Pair]:
        """Axes of queries and of keys: every old query lies before every new key."""
        sizes = self.sizes(node)
        grows = [a for a, step in self.grows(node).items() if step == 1]
        return [(q, k) for q in grows for k in grows if q != k and sizes[q][0] <= sizes[k][0]]

    def behind(self, node: fx.Node, pair: Pair) -> Tensor | None:
        """What a value is for keys behind the query, if it is one number."""
        says = self[node].says
        return says.later.get(pair, says.uniform)


def _ran(op: Any, args: Sequence[Any]) -> Any:
    """What a recurrence looks like, which is the same after two steps as after many."""
    x, time = args[0], int(bool(args[-1]))
    if (
        not isinstance(x, Tensor)
        or x.dim() < 3
        or x.shape[time] < 2
        or (isinstance(args[1], Tensor) and args[1].dim() < 3)
    ):
        return op(*args)
    made, *states = op(x.narrow(time, 0, 2), *args[1:])
    sizes = [x.shape[i] if i == time else n for i, n in enumerate(made.shape)]
    return made.new_empty(sizes), *states


def _operator(node: fx.Node) -> str:
    target: Any = node.target
    return str(target) if "aten" in str(target) else getattr(target, "__name__", str(target))
