"""One read of a target that is written into its history, written anew: the law is in `target`.

From the read backwards every value is told where its place and its keys are (`seen`); then both are written, forwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Size
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.later import Later
from rankhoist.compiler.demand.made import Made, Take, is_tensor, of_one_kind, sizes_of, takes_of
from rankhoist.compiler.demand.places import PlaceWriter
from rankhoist.compiler.demand.puts import Put, Read, alike
from rankhoist.compiler.demand.seen import (
    ABOVE,
    BROADCASTS,
    HIDDEN,
    KEYS,
    PLACE,
    ROWS,
    SHOWN,
    Seen,
    axes_of,
    mark_of,
    marked,
    only_marked,
    turned,
)
from rankhoist.compiler.graph.decline import Decline

aten = torch.ops.aten


@dataclass(frozen=True)
class Supposed:
    """The highest scores of a captured softmax, and a number that they have to lie above."""

    peaks: fx.Node
    name: str
    number: float


@dataclass(frozen=True)
class _Want:
    """A box of a value, cut by symbols alone; where it has no rows, the axis of `rows` of what reads it."""

    node: fx.Node
    box: Box
    rows: tuple[int, Axis] | None = None


class Behind(PlaceWriter):
    """Writes what one read needs, in front of it."""

    def __init__(
        self, program: Program, constants: Constants, rates: Mapping[fx.Node, int], puts: Iterable[Put], node: fx.Node,
        read: Read, least: float,
    ) -> None:  # fmt: skip
        super().__init__(program, program.graph)
        self.rates, self.node, self.read, self.source = rates, node, read, node
        self.count: Size = sizes_of(read.value)[1]
        self.puts = self._read_puts(puts)
        self.dependent = self._dependent()
        self.seen = Seen(constants, Later(program.rows, constants, least), self.dependent)
        self.wanted: defaultdict[fx.Node, dict[_Want, Any]] = defaultdict(dict)  # -> how it is made
        self.histories: dict[fx.Node, fx.Node | None] = {}  # what is computed of h
        self.filled: dict[fx.Node, tuple[Box, fx.Node]] = {}  # keys of h, but those that are not of the history
        self.reads_keys: defaultdict[fx.Node, set[fx.Node]] = defaultdict(set)
        self.made: dict[_Want, fx.Node] = {}
        self.supposed: list[Supposed] = []
        self.asks: _Want

    def _read_puts(self, puts: Iterable[Put]) -> dict[fx.Node, Put]:
        """Those that the read depends on; they are all at its place."""
        before, waiting = {self.read.value}, [self.read.value]
        while waiting:
            new = {*waiting.pop().all_input_nodes} - before
            before |= new
            waiting += new
        found = {put.node: put for put in puts if put.node in before}
        same = all(alike(p.place, self.read.place) and sizes_of(p.node)[1] == self.count for p in found.values())
        if not found or not same or len({p.spelled for p in found.values()}) > 1:
            raise Decline("another place is read")
        return found

    def _dependent(self) -> set[fx.Node]:
        found = set(self.puts)
        for node in self.graph.nodes:
            if any(x in found for x in node.all_input_nodes):
                found.add(node)
        return found

    def moved(self) -> set[fx.Node]:
        """What was put in, once the read is written anew."""
        sizes = sizes_of(self.read.value)
        box = (*marked(ROWS, sizes[0]), *marked(PLACE, sizes[1]))
        first = _Want(self.read.value, (*((p,) for p in box), *boxes.whole(sizes[2:])))
        anywhere = self.spelled == ("choice", "index")
        self.wanted[first.node][first] = None
        if anywhere:
            self.histories[first.node] = None
        nodes = list(self.graph.nodes)
        for node in reversed(nodes[: nodes.index(self.node)]):
            self._tell(node)
        with self.graph.inserting_before(self.node):
            self._number(self.read.place, strict="scatter" in self.spelled, signed=self.spelled[0] == "index")
            for node in nodes[: nodes.index(self.node)]:
                self._write(node)
            self.source = self.node
            made = self._result(self.made[first], anywhere)
            if not of_one_kind(made, self.node):
                raise Decline("it is read as another kind of number")
        if {x.name for x in self.seen.later.supposed} - {s.name for s in self.supposed}:
            raise Decline("weights are 0 on a condition that nobody tells")
        self.node.replace_all_uses_with(made)
        self.graph.erase_node(self.node)
        return set(self.puts)

    # -- backwards

    def _tell(self, node: fx.Node) -> None:
        """The operands of what is wanted of a node."""
        waiting = list(self.wanted[node])
        for want in waiting:  # grows
            axes = axes_of(want.box)
            if node in self.puts:
                self._is_put(want)
            if PLACE not in axes:
                own = _Want(node, turned(want.box, KEYS, PLACE), want.rows)
                self.histories.setdefault(node, None)
                if own not in self.wanted[node]:
                    self.wanted[node][own] = None
                    waiting.append(own)
            elif node not in self.puts and (node in self.dependent or not self._simple(want)):
                self.wanted[node][want] = way = self.seen.way(node, want.box)
                for take in takes_of(way):
                    self._want(want, take)
        if node in self.histories and node in self.dependent and node not in self.puts:
            self.histories.update({x: self.histories.get(x) for x in node.all_input_nodes})

    def _is_put(self, want: _Want) -> None:
        sizes = sizes_of(want.node)
        own = (marked(ROWS, sizes[0]), marked(PLACE, sizes[1]), *boxes.whole(sizes[2:]))
        if want.box not in (own, turned(own, PLACE, KEYS)):
            raise Decline("what is put in is read along another axis")

    def _simple(self, want: _Want) -> bool:
        """Whether it is read as it is: no symbol stands for a part of an axis."""
        return all(len(axis) == 1 for axis in want.box)

    def _want(self, asks: _Want, take: Take) -> None:
        want = self._of(asks, take)
        if want is not None:
            self.wanted[want.node].setdefault(want, None)
            if PLACE not in axes_of(want.box):
                self.reads_keys[asks.node].add(want.node)

    def _of(self, asks: _Want, take: Take) -> _Want | None:
        """What a part of an operand is a part of; None for all of what does not depend on what is put in."""
        box = only_marked(take.box)
        axes = axes_of(box)
        if not {PLACE, KEYS} & axes.keys():
            if take.node in self.dependent:
                raise Decline(f"all of {take.node.name} is read")
            return None
        if ROWS in axes:
            return _Want(take.node, box)
        if take.node in self.dependent or not (_broadcasts(asks.node) and self._simple(_Want(take.node, box))):
            raise Decline(f"rows of {take.node.name} are not told")
        axis = axes_of(asks.box)[ROWS]
        return _Want(take.node, box, (axis, asks.box[axis]))

    # -- forwards

    def _write(self, node: fx.Node) -> None:
        self.source = node
        if node in self.histories:
            self.histories[node] = self._history(node)
        wanted = self.wanted[node]
        for want in sorted(wanted, key=lambda w: PLACE not in axes_of(w.box)):  # keys are made of those at the place
            self.asks = want
            made = self.made[want] = self._value(want, wanted[want])
            if want.rows is None and sizes_of(made) != [boxes.width(axis) for axis in want.box]:
                raise Decline(f"{node.name} is no place of what it was")

    def _history(self, node: fx.Node) -> fx.Node:
        if node in self.puts:
            return self.puts[node].of_its_neighbour(self._ours)
        if node not in self.dependent:
            return node
        others = [x for x in node.all_input_nodes if is_tensor(x) and x not in self.dependent]
        if any(self.rates.get(x, 2) > 1 for x in others):
            raise Decline(f"the history meets a candidate in {node.name}")
        keys = {x: self.filled[x][1] for x in self.reads_keys[node] if x in self.filled}
        made = self.graph.node_copy(node, lambda x: keys.get(x) or self.histories[x] or x)
        made.meta["captured"] = node.name
        return made

    def _value(self, want: _Want, way: Any) -> fx.Node:
        if PLACE not in axes_of(want.box):
            return self._keys(want)
        if want.node in self.puts:
            return self.puts[want.node].of_one(self._ours)
        return self._made(way) if way is not None else self._at_place(want)

    def _keys(self, want: _Want) -> fx.Node:
        """Those of the history, and behind them that of the target."""
        own, axis = self.made[_Want(want.node, turned(want.box, KEYS, PLACE), want.rows)], axes_of(want.box)[KEYS]
        history: Any = self.histories[want.node]
        if len(want.box[axis]) > 1:
            raise Decline("keys are folded with other axes")
        if want.node in self.dependent:
            history = self._filled(want, history)
        if want.rows is not None:
            sizes = sizes_of(own)
            sizes[axis] = self.count
            history = self._ours(aten.expand.default, history, sizes)
        return self._ours(aten.cat.default, [history, own], axis)

    def _filled(self, want: _Want, history: fx.Node) -> fx.Node:
        """0 from the place on: nothing weighs it, and 0 times what is no number is none."""
        box, made = self.filled.get(want.node, (want.box, None))
        if box != want.box:
            raise Decline("keys are along several axes")
        if made is None:
            made = self._ours(aten.masked_fill.Scalar, history, self._placed(self.later, box), 0)
            self.filled[want.node] = box, made
        return made

    def _at_place(self, want: _Want) -> fx.Node:
        """What does not depend on what is put in, at the place."""
        axes, x = axes_of(want.box), want.node
        if want.rows is None:
            rows = axes[ROWS]
            made = self._gathered(x, axes[PLACE], rows)
        else:
            rows = want.rows[0]
            made = self._looked_up(x, axes[PLACE], rows)
        if KEYS in axes:
            made = self._ours(aten.cat.default, [made, self._gathered(made, axes[KEYS], rows)], axes[KEYS])
        return made if want.rows is None else self._folded(made, *want.rows)

    def _result(self, own: fx.Node, anywhere: bool) -> fx.Node:
        """What stands for the read."""
        if self.read.flags is not None:
            flags = self._ours(aten.any.dim, self.read.flags, 1, True)
            own = self._call(aten.mul.Tensor, (own, flags))
        made = own if self.read.kept else self._call(aten.squeeze.dim, (own, 1))
        if anywhere:
            inside = self._ours(aten.eq.Tensor, self.place, self.read.place)
            for _ in sizes_of(made)[1:]:
                inside = self._ours(aten.unsqueeze.default, inside, -1)
            history = self._call(self.node.target, (self.histories[self.read.value], *self.node.args[1:]))
            made = self._call(aten.where.self, (inside, made, history))
        return made

    @property
    def spelled(self) -> tuple[str, str]:
        return next(iter(self.puts.values())).spelled, self.read.spelled

    # -- as a `Writer`

    def _whole(self, node: fx.Node) -> Any:
        if node in self.dependent:
            raise Decline(f"all of {node.name} is read")
        return node

    def _made(self, way: Any) -> Any:
        if isinstance(way, Made) and way.target == SHOWN:
            return self._placed(self.shown, way.args[0])
        if isinstance(way, Made) and way.target == HIDDEN:
            value, box, number = way.args
            return self._ours(aten.masked_fill.Scalar, self._made(value), self._placed(self.at, box), number)
        if isinstance(way, Made) and way.target == ABOVE:
            return self._suppose(*way.args)
        return super()._made(way)

    def _suppose(self, way: Made, box: Box, number: float) -> fx.Node:
        """Scores of the query at the place, and the history's if they are read, have to lie above a number."""
        made: fx.Node = self._made(way)
        peaks, history = [self._highest(made, box, before=False)], self.histories.get(self.source)
        if history is not None:
            peaks.append(self._highest(history.all_input_nodes[0], box, before=True))
        self.supposed += [Supposed(x, self.source.name, number) for x in peaks]
        return made

    def _taken(self, take: Take) -> fx.Node:
        want = self._of(self.asks, take)
        made = take.node if want is None else self.made[want]
        for dim, axis in enumerate(take.box, -len(take.box)):
            cut = [p for p in axis if p.end is not None and mark_of(p) is None]
            if cut and len(axis) > 1:
                raise Decline("a part of a fold is read")
            for part in cut:
                if {ROWS, PLACE, KEYS} & sympy.sympify(part.first).free_symbols:
                    raise Decline("places are moved")
                made = self._ours(aten.slice.Tensor, made, dim, part.first, part.end, 1)
        return made


def _broadcasts(node: Any) -> bool:
    return node.target in BROADCASTS or torch.Tag.pointwise in getattr(node.target, "tags", ())
