"""Makes the nodes of a graph, none of them twice: the same operation over the same operands is the same node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sympy
import torch

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.lengths import Length, Sized, usual, usually, varies
from rankhoist.compiler.graph.node import OWNER, ROWS, Node, Op, Rate, Size, Work, aten, first_axis, join


class Builder:
    """Makes nodes. `source` names the captured operator that the next nodes are made for."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.nodes: list[Node] = []
        self.source = ""
        self.of_values = False  # whether nodes are made of values in bags, `[total, *shape]`
        self.constants: dict[str, torch.Tensor] = {}
        self.lengths: dict[sympy.Symbol, tuple[Node, int]] = {}  # that vary -> an input of the context and its axis
        self._interned: dict[Any, Node] = {}
        self._taken: dict[
            tuple[int, int], tuple[Node, np.ndarray]
        ] = {}  # (node, axis) -> what it was taken from, where

    # -- leaves

    def leaf(self, kind: str, name: str, rate: Rate, shape: Sequence[Sized], dtype: torch.dtype) -> Node:
        """An input (`kind` "input") or a parameter, buffer or constant ("weight") by name."""
        made = self._make(kind, (name,), {}, rate, tuple(shape), dtype, Work())
        self._measure(made)
        return made

    def constant(self, tensor: torch.Tensor) -> Node:
        """A tensor known now and never updated, e.g. an index."""
        key = f"constant_{tensor.dtype}_{tuple(tensor.shape)}_{tensor.cpu().numpy().tobytes().hex()}"
        if key not in self.constants:
            self.constants[key] = tensor.to(self.device)
        return self.leaf("constant", key, Rate.WEIGHT, tensor.shape, tensor.dtype)

    def number(self, value: float, dtype: torch.dtype) -> Node:
        """A number as a tensor without axes; it follows the model to another dtype without losing digits."""
        kwargs = {"dtype": dtype, "device": self.device}
        return self.call(aten.full.default, ([], value), Rate.WEIGHT, (), dtype, kwargs=kwargs)

    # -- operations

    def call(
        self, op: Op, args: Sequence[Any], rate: Rate, shape: Sequence[Sized], dtype: torch.dtype, *,
        kwargs: dict[str, Any] | None = None, multiply_adds: int = 0, free: bool = False, rows_first: bool = True,
    ) -> Node:  # fmt: skip
        """Any operation; `multiply_adds` per row, `free` for views."""
        work = Work(usual(multiply_adds), 0 if free else math.prod(usually(shape)))
        given, named = self._measured(tuple(args), rate), self._measured(kwargs or {}, rate)
        return self._make(op, given, named, rate, tuple(shape), dtype, work, rows_first)

    def _measure(self, leaf: Node) -> None:
        """An input of the context tells how long its axes are that vary."""
        for axis, size in enumerate(leaf.shape, 1):
            if isinstance(size, Length) and leaf.rate is Rate.REQUEST:
                self.lengths.setdefault(size.expr, (leaf, axis))

    def length(self, symbol: sympy.Symbol, rate: Rate) -> Node:
        """A length that varies, as a number in the stage that computes `rate`; it declines before any input is there.

        The candidate stage is handed it as the size of a tensor of nothing, `[R, length, 0]`.
        """
        if symbol not in self.lengths or rate is Rate.WEIGHT:
            raise Decline(f"needs the length {symbol}, which no input of the context has, or before there is any")
        leaf, axis = self.lengths[symbol]
        own = self._size(leaf, axis, Rate.REQUEST)
        if not rate.per_candidate:
            return own
        sizes = [ROWS, Size(symbol, ((symbol, own),)), 0]
        kwargs = {"dtype": torch.bool, "device": self.device}
        nothing = self.call(aten.full.default, (sizes, False), Rate.REQUEST, (0,), torch.bool, kwargs=kwargs)
        return self._size(nothing, 1, Rate.PAIR)

    def _size(self, x: Node, axis: int, rate: Rate) -> Node:
        return self.call(aten.sym_size.int, (x, axis), rate, (), torch.int64, free=True, rows_first=False)

    def _measured(self, value: Any, rate: Rate) -> Any:
        """An argument with what varies in it as a size that the stage measures."""
        if isinstance(value, Length):
            symbols = sorted(value.expr.free_symbols, key=str)
            return Size(value.expr, tuple((s, self.length(s, rate)) for s in symbols))
        if isinstance(value, list | tuple):
            return type(value)(self._measured(v, rate) for v in value)
        return {k: self._measured(v, rate) for k, v in value.items()} if isinstance(value, dict) else value

    def places(self, index: Node, size: Sized, dtype: torch.dtype) -> Node:
        """Behind the axes of an index, one with 1 at the place that it says; its views are of views of the index."""
        return self.call(kernels.places, (index, size, dtype), index.rate, [*index.shape, size], dtype)

    def _of_index(self, x: Node, change: Callable[[Node], Node]) -> Node:
        return self.places(change(x.args[0]), x.shape[-1], x.dtype)

    def permute(self, x: Node, order: Sequence[int]) -> Node:
        """Reorder the axes after the row axis."""
        if list(order) == list(range(len(order))):
            return x
        if x.op is kernels.places and order[-1] == len(order) - 1:
            return self._of_index(x, lambda index: self.permute(index, order[:-1]))
        skip = first_axis(x)
        axes = [0] * skip + [o + skip for o in order]
        return self.call(aten.permute.default, (x, axes), x.rate, [x.shape[o] for o in order], x.dtype, free=True)

    def reshape(self, x: Node, shape: Sequence[Sized]) -> Node:
        """Reshape the axes after the row axis."""
        if tuple(shape) == x.shape:
            return x
        if x.op is kernels.places and tuple(shape[-1:]) == x.shape[-1:]:
            return self._of_index(x, lambda index: self.reshape(index, shape[:-1]))
        inner = x.args[0] if x.op is aten.reshape.default else None
        if inner is not None and inner.rows_first and first_axis(inner) == first_axis(x):
            return self.reshape(x.args[0], shape)
        rows: Any = ROWS if varies(shape) else -1  # where a length is 0, any number of rows would do
        sizes = [rows] * first_axis(x) + list(shape)
        return self.call(aten.reshape.default, (x, sizes), x.rate, shape, x.dtype, free=True)

    def take(self, x: Node, axis: int, index: np.ndarray) -> Node:
        """Elements `index` of one axis after the row axis: a slice where it is one, a gather otherwise.

        What is taken from a node that was itself taken along this axis is taken from where that came from.
        """
        size, at = x.shape[axis], axis + first_axis(x)
        if isinstance(size, Length):
            raise Decline(f"takes positions of an axis of length {size}, which varies")
        if len(index) == size and (index == np.arange(size)).all():
            return x
        if x.op is kernels.places and axis < len(x.shape) - 1:
            return self._of_index(x, lambda y: self.take(y, axis, index))
        source, inner = self._taken.get((x.index, axis), (None, index))
        if source is not None:
            return self.take(source, axis, inner[index])
        shape = [*x.shape[:axis], len(index), *x.shape[axis + 1 :]]
        steps = np.diff(index)
        step = int(steps[0]) if len(index) > 1 else 1
        if len(index) and step > 0 and (steps == step).all():
            args = (x, at, int(index[0]), int(index[-1]) + 1, step)
            made = self.call(aten.slice.Tensor, args, x.rate, shape, x.dtype, free=True)
        else:
            chosen = self.constant(torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)))
            made = self.call(aten.index_select.default, (x, at, chosen), x.rate, shape, x.dtype)
        self._taken[made.index, axis] = x, index
        return made

    def taken_from(self, x: Node, axis: int) -> tuple[Node, np.ndarray]:
        """What a node was taken from along an axis after the row axis, and which elements; of others, no element."""
        return self._taken.get((x.index, axis), (x, np.arange(0)))

    def part(self, x: Node, axis: int, first: Sized, count: Sized) -> Node:
        """So many neighbours on one axis after the row axis, which varies."""
        if x.op is kernels.places and axis < len(x.shape) - 1:
            return self._of_index(x, lambda index: self.part(index, axis, first, count))
        at, shape = axis + first_axis(x), [*x.shape[:axis], count, *x.shape[axis + 1 :]]
        return self.call(aten.slice.Tensor, (x, at, first, first + count, 1), x.rate, shape, x.dtype, free=True)

    def lower_triangle(self, length: Length) -> Node:
        """True on the diagonal and below it, `[R, length, length]`, where the length is known."""
        kwargs = {"dtype": torch.bool, "device": self.device}
        shape = [length, length]
        ones = self.call(aten.full.default, ([ROWS, *shape], True), Rate.REQUEST, shape, torch.bool, kwargs=kwargs)
        return self.call(aten.tril.default, (ones,), Rate.REQUEST, shape, torch.bool)

    def spread(self, x: Node, rate: Rate) -> Node:
        """A request-rate node where candidates read it: one row broadcasts, several are gathered by owner."""
        if x.rate is not Rate.REQUEST or not rate.per_candidate:
            return x
        return self.call(kernels.spread, (x, OWNER), Rate.PAIR, x.shape, x.dtype, free=True)

    def rowwise(self, x: Node, rate: Rate) -> Node:
        """`x` with a row axis of its own at `rate`: `[rows, *shape]`, no broadcasting."""
        if x.rate is Rate.WEIGHT and rate is not Rate.WEIGHT:
            sizes = [ROWS, *x.shape]
            return self.call(aten.expand.default, (x, sizes), rate, x.shape, x.dtype, free=True)
        if x.rate is Rate.REQUEST and rate.per_candidate:
            return self.call(kernels.repeat_rows, (x, OWNER, ROWS), Rate.PAIR, x.shape, x.dtype, free=True)
        return x

    def cat(self, parts: Sequence[Node], axis: int) -> Node:
        """Concatenate along an axis after the row axis."""
        parts = self._rejoined(parts, axis)
        if len(parts) == 1:
            return parts[0]
        found = self._gathered_at_once(parts, axis)
        if found is not None:
            return found
        rate = join(p.rate for p in parts)
        rows = [self.rowwise(p, rate) for p in parts]
        shape = list(rows[0].shape)
        shape[axis] = sum(p.shape[axis] for p in rows)
        return self.call(aten.cat.default, (rows, axis + (rate is not Rate.WEIGHT)), rate, shape, rows[0].dtype)

    def _rejoined(self, parts: Sequence[Node], axis: int) -> list[Node]:
        """Neighbours that were cut out of one tensor one after the other are one cut."""
        joined: list[Node] = []
        for part in parts:
            before, own = (self._taken.get((p.index, axis)) for p in (joined[-1] if joined else part, part))
            if joined and before and own and before[0] is own[0] and own[1][:1] == before[1][-1:] + 1:
                index = np.concatenate([before[1], own[1]])
                if (np.diff(index) == 1).all():
                    joined[-1] = self.take(own[0], axis, index)
                    continue
            joined.append(part)
        return joined

    def _gathered_at_once(self, parts: Sequence[Node], axis: int) -> Node | None:
        """`[A[i]; B[j]] = [A; B][i; |A| + j]`, where places are read twice: so few elements are joined, not so many."""
        taken = [self.taken_from(p, axis) for p in parts]
        if any(not len(index) or p.rate is not parts[0].rate for p, (_, index) in zip(parts, taken, strict=True)):
            return None
        sources = {source.index: source for source, _ in taken}
        read = {k: np.unique(np.concatenate([i for s, i in taken if s.index == k])) for k in sources}
        starts = dict(zip(read, np.cumsum([0, *map(len, read.values())]), strict=False))
        if sum(map(len, read.values())) == sum(len(index) for _, index in taken):
            return None
        few = self.cat([self.take(sources[k], axis, places) for k, places in read.items()], axis)
        at = [starts[source.index] + np.searchsorted(read[source.index], index) for source, index in taken]
        return self.take(few, axis, np.concatenate(at))

    def pointwise(self, op: Op, args: Sequence[Any], dtype: torch.dtype, kwargs: dict[str, Any] | None = None) -> Node:
        """An elementwise operator on aligned nodes (equal numbers of axes, sizes equal or 1) and numbers."""
        nodes = [a for a in args if isinstance(a, Node)]
        rate = join(n.rate for n in nodes)
        shape = _broadcast([n.shape for n in nodes])
        spread = [self.spread(a, rate) if isinstance(a, Node) else a for a in args]
        return self.call(op, spread, rate, shape, dtype, kwargs=kwargs)

    def again(self, node: Node, value: Callable[[Node], Node], rate: Rate | None = None) -> Node:
        """The same operation over other operands, perhaps at a higher rate; the node itself if nothing is new."""
        if rate in (None, node.rate) and all(value(x) is x for x in node.inputs):
            return node
        args = tuple(_mapped(a, value) for a in node.args)
        kwargs = {k: _mapped(v, value) for k, v in node.kwargs.items()}
        rate = node.rate if rate is None else rate
        return self._make(node.op, args, kwargs, rate, node.shape, node.dtype, node.work, node.rows_first)

    def _make(
        self, op: Op | str, args: tuple[Any, ...], kwargs: dict[str, Any], rate: Rate,
        shape: tuple[Sized, ...], dtype: torch.dtype, work: Work, rows_first: bool = True,
    ) -> Node:  # fmt: skip
        rows_first = rows_first and not (self.of_values and rate is not Rate.WEIGHT)
        drawn = self.source if torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()) else ""  # once each
        key = (op, _key(args), _key(kwargs), rate, shape, dtype, rows_first, drawn)
        node = self._interned.get(key)
        if node is None:
            node = Node(len(self.nodes), op, args, kwargs, rate, shape, dtype, self.source, work, rows_first)
            self._interned[key] = node
            self.nodes.append(node)
        return node


def _broadcast(shapes: Sequence[Sequence[Sized]]) -> list[Sized]:
    """Sizes from the right that are equal, or 1 where another is not."""
    depth = max(map(len, shapes))
    padded = [(1,) * (depth - len(shape)) + tuple(shape) for shape in shapes]
    result = [next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True)]
    if any(n not in (1, size) for shape in padded for n, size in zip(shape, result, strict=True)):
        raise ValueError(f"sizes {list(shapes)} do not broadcast")
    return result


def _mapped(value: Any, new: Callable[[Node], Node]) -> Any:
    if isinstance(value, Node):
        return new(value)
    if isinstance(value, Size):
        return Size(value.expr, tuple((s, new(n)) for s, n in value.measured))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(v, new) for v in value)
    return value


def _key(value: Any) -> Any:
    if isinstance(value, Node):
        return ("node", value.index)
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    return (type(value).__name__, told_apart(value))


def told_apart(value: Any) -> Any:
    """A value that only its like is equal to: 0.0 is not -0.0, and a NaN is itself."""
    return repr(value) if isinstance(value, float | complex) else value
