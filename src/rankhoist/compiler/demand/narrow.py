"""Only what is read is computed: a program without the places of its values that reach no output.

Law: `f(x)[i] = f(x[i])`. An encoder whose last token alone is scored needs all tokens of the layers before the last,
and of that one the keys, the values and one query.

Backwards, every value is told which boxes of it are read (`laws`); then the graph is written anew, forwards.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx

from rankhoist.capture import Program
from rankhoist.capture.defaults import fill
from rankhoist.capture.empty import without_elements
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Box
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.laws import part_of
from rankhoist.compiler.demand.made import Made, Take, is_tensor, sizes_of, takes_of
from rankhoist.compiler.demand.target import behind
from rankhoist.compiler.demand.ways import chosen
from rankhoist.compiler.demand.writer import SIZE, Writer
from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.operators import row
from rankhoist.errors import HoistingWarning
from rankhoist.mistakes import is_mistake, told

aten = torch.ops.aten
PICK = operator.getitem
Demands = Mapping[fx.Node, Sequence[Box]]


def narrowed(program: Program, supposing: bool = False) -> Program:
    """The same program without what is not read; itself where all is. With `supposing`, some of it may be left out on
    conditions, which are `Program.fills`.
    """
    if program.wider is not None:
        return program
    known = program.narrower
    if supposing not in known:
        known[supposing] = _narrowed_or_whole(program, supposing)
        if not known[supposing].fills:
            known[False] = known[supposing]
    return known[supposing]


def _narrowed_or_whole(program: Program, supposing: bool) -> Program:
    made = program
    for leaves_out in (partial(behind, supposing=supposing), chosen, _narrowed):
        try:
            made = leaves_out(made)
        except Exception as error:
            if not is_mistake(error):
                raise
            warnings.warn(told("leaving out what nobody reads", error), HoistingWarning, stacklevel=2)
    return made if made is program else replace(made, wider=program)


def _narrowed(program: Program) -> Program:
    if any(n.users and without_elements(n) for n in program.graph.nodes):  # what is left of these has no boxes
        return program
    constants = Constants(program)
    wanted = demands(program, constants)
    if not any(_saves(node, wanted[node]) for node in program.graph.nodes):
        return program
    try:
        made = _Writer(program, wanted, constants).written()
    except Decline:  # a size cannot be told, or not be written
        return program
    return program if program.training and _unread(made) != _unread(program) else made


def _unread(program: Program) -> set[str]:
    """The weights that nothing reads: a gradient that is missing is not one of zeros."""
    return {n.name for n in program.graph.find_nodes(op="placeholder") if not n.users and n.name in program.weights}


# -- backwards


def demands(program: Program, constants: Constants) -> Demands:
    """Which boxes of every tensor are computed; of one that nobody reads none."""
    wanted: defaultdict[fx.Node, list[Box]] = defaultdict(list)
    for node in reversed(program.graph.nodes):
        if is_tensor(node):
            if node.op == "call_function" and wanted[node]:
                wanted[node] = _told(constants, node, wanted)
        elif node.target is not SIZE and (wanted[node] or node.op == "output" or not _several(node)):
            _all_operands(node, wanted)
    return wanted


def _told(constants: Constants, node: fx.Node, wanted: Mapping[fx.Node, list[Box]]) -> list[Box]:
    """The boxes of a result that are computed; its operands are told."""
    asked, before = boxes.merged(wanted[node], sizes_of(node)), None
    while asked != before:  # what is around two may have no law again
        asked, before = boxes.merged([_around(constants, node, box) for box in asked], sizes_of(node)), asked
    ways = [_way(constants, node, box) for box in asked]
    if ways == [None]:
        _all_operands(node, wanted)
    for take in takes_of(ways):
        wanted[take.node].append(take.box)
    return asked


def _around(constants: Constants, node: fx.Node, box: Box) -> Box:
    """The smallest box around one that has a law: of some axes all is computed; else the whole tensor."""
    every = boxes.whole(sizes_of(node))
    cut = [d for d, axis in enumerate(box) if not boxes.is_whole(axis)]
    for count in range(len(cut)):
        larger = [_widened(box, every, dims) for dims in itertools.combinations(cut, count)]
        told = [b for b in larger if _way(constants, node, b) is not None]
        if told:
            return min(told, key=boxes.volume)
    return every


def _widened(box: Box, every: Box, dims: Sequence[int]) -> Box:
    return tuple(every[d] if d in dims else axis for d, axis in enumerate(box))


def _way(constants: Constants, node: fx.Node, box: Box) -> Take | Made | None:
    """How a part is made of parts of operands; None too where rows were cut, which others know how to."""
    way = part_of(node, box, constants)
    cut = (p for take in takes_of(way) for axis in take.box for p in axis if p.end is not None)
    lengths = constants.program.lengths.keys()
    return None if any(p.size.free_symbols - lengths for p in cut if not isinstance(p.size, int)) else way


def _all_operands(node: fx.Node, wanted: Mapping[fx.Node, list[Box]]) -> None:
    for x in node.all_input_nodes:
        wanted[x].append(boxes.whole(sizes_of(x)) if is_tensor(x) else ())


def _several(node: fx.Node) -> bool:
    """Whether it makes several tensors, of which its readers pick theirs."""
    return isinstance(node.meta.get("val"), list | tuple)


def _saves(node: fx.Node, wanted: Sequence[Box]) -> bool:
    """Whether an operator computes fewer elements."""
    if node.op != "call_function" or not is_tensor(node) or row(node.target).view:
        return False
    return sum(map(boxes.volume, wanted)) < boxes.volume(boxes.whole(sizes_of(node)))


# -- forwards


class _Writer(Writer):
    """Writes the graph anew; `pieces` are the computed boxes of every captured tensor."""

    def __init__(self, program: Program, wanted: Demands, constants: Constants) -> None:
        super().__init__(program, fx.Graph())
        self.wanted, self.constants = wanted, constants
        self.pieces: defaultdict[fx.Node, list[tuple[Box, fx.Node]]] = defaultdict(list)
        self.others: dict[fx.Node, fx.Node | int] = {}  # placeholders, sizes and several tensors at once

    def written(self) -> Program:
        for node in self.program.graph.nodes:
            self.source = node
            if node.op == "call_function" and is_tensor(node):
                for box in self.wanted[node]:
                    self.pieces[node].append((box, self._piece(node, box)))
            elif node.op != "output" and (self.wanted[node] or not _several(node)):
                self._copied(node)
        made = [self._whole(o) if isinstance(o, fx.Node) else o for o in self.program.outputs]
        self.graph.output(tuple(made))
        fill(self.graph)
        asked = self.program.asked | self.constants.decided
        return replace(self.program, graph=self.graph, outputs=made, asked=asked, wider=self.program)

    def _copied(self, node: fx.Node) -> None:
        if is_tensor(node):
            self.pieces[node] = [(boxes.whole(sizes_of(node)), self.graph.node_copy(node, self._whole))]
        elif node.target is SIZE and isinstance(size := node.meta["val"], torch.SymInt):
            self.others[node] = self._size(size.node.expr)
        else:
            self.others[node] = self.graph.node_copy(node, self._whole)

    def _whole(self, node: fx.Node) -> Any:
        """What stands for a captured node."""
        if node in self.others:
            return self.others[node]
        return next(made for box, made in self.pieces[node] if boxes.all_of(box))

    def _piece(self, node: fx.Node, box: Box) -> fx.Node:
        """A box of a result; what is computed as a whole of whole operands is as it was."""
        way = _way(self.constants, node, box)
        if way is None or (boxes.all_of(box) and node.target is not PICK and self._reads_all(node, way)):
            return self.graph.node_copy(node, self._whole)
        return self._made(way)  # type: ignore[no-any-return]

    def _reads_all(self, node: fx.Node, way: Take | Made) -> bool:
        """Whether all of all operands is there and read."""
        taken = {take.node for take in takes_of(way)}
        whole = all(any(boxes.all_of(box) for box, _ in self.pieces[x]) for x in taken)
        return whole and taken == {x for x in node.all_input_nodes if is_tensor(x)}

    def _taken(self, take: Take) -> fx.Node:
        outer, made = next((b, n) for b, n in self.pieces[take.node] if boxes.covers(b, take.box))
        for dim, (x, y) in enumerate(zip(outer, take.box, strict=True)):
            made = self._sliced(made, dim, boxes.within(x, y))
        return made

    def _sliced(self, x: fx.Node, dim: int, axis: boxes.Axis) -> fx.Node:
        """An axis cut; that of a fold is unfolded for it."""
        if boxes.is_whole(axis):
            return x
        before, after = sizes_of(x)[:dim], sizes_of(x)[dim + 1 :]
        x = self._shaped(x, [*before, *(p.size for p in axis), *after])
        for i, part in enumerate(axis, dim):
            if part.end is not None:
                ends = self._made([part.first, part.end])
                x = self._call(aten.slice.Tensor, (x, i, *ends, 1), name=f"{self.source.name}_of")
        return self._shaped(x, [*before, boxes.width(axis), *after])

    def _shaped(self, x: fx.Node, sizes: Sequence[Any]) -> fx.Node:
        same = len(sizes) == len(sizes_of(x))
        return x if same else self._call(aten.reshape.default, (x, self._made(sizes)), name=f"{self.source.name}_of")
