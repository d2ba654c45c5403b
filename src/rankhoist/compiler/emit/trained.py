"""Stages that are differentiated, written so that their backward is lean.

* Cuts of one tensor along an axis are one `split`, whose gradient is one `cat`: each slice by itself would have a
  gradient as large as the whole, and all of these would be added up.
* Elements of rows and those of their request: the latter broadcast over the block of its rows, and are not repeated.
* A view of what is written over is no view to autograd, which would copy what it looks at.
* The gradient of a function that only a product reads is new memory of that product, and is written over.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from rankhoist.compiler.emit.writer import Writer
from rankhoist.compiler.graph import gradients, kernels, trained
from rankhoist.compiler.graph.node import OWNER, Node, aten, first_axis
from rankhoist.compiler.graph.operators import row

ROWS_OF = {  # products, and which of their arguments are the rows
    aten.linear.default: 0, kernels.linear_from: 0, kernels.linear_onto: 1, kernels.request_linear: 0,
    kernels.request_linear_from: 0, kernels.request_linear_onto: 1,
}  # fmt: skip
BROADCAST = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


class TrainedWriter(Writer):
    """See above; `graph.trained` says what stages are given."""

    def write_all(self, nodes: Sequence[Node], results: Sequence[Any]) -> None:
        """The nodes of a stage, and what it returns."""
        self.cuts = _cuts(nodes)
        self.parts: dict[tuple[int, int], fx.Node] = {}
        self.blind = _looked_through(nodes, self.over)
        self.alone = _read_by_a_product(nodes, results)
        wanted = {x.index for n in nodes if not _broadcasts(n) for x in n.inputs}
        wanted |= {r.index for r in results if isinstance(r, Node)}
        repeated = [n for n in nodes if n.op is not kernels.spread or n.index in wanted]
        super().write_all(repeated, results)

    def write(self, node: Node) -> fx.Node:
        """One node."""
        if node.index in self.cuts:
            return self._part(node)
        if _broadcasts(node):
            return self._broadcast(node)
        if node.index in self.over and node.index in self.alone and row(node.op).over in gradients.BACKWARD:
            return self.call(node, gradients.over, node.args[0], row(node.op).over)
        return super().write(node)

    def called(self, node: Node) -> tuple[Any, Sequence[Any]]:
        """What is called for a node, and with which arguments."""
        target, args = super().called(node)
        if node.index in self.blind:
            target = aten._unsafe_view.default
        return row(target).trained or target, args

    def _part(self, node: Node) -> fx.Node:
        source, axis = node.args[:2]
        starts = self.cuts[node.index]
        whole = self.parts.get((source.index, axis))
        if whole is None:
            sizes = [end - start for start, end in itertools.pairwise(starts)]
            whole = self.call(node, aten.split_with_sizes.default, source, sizes, axis)
            self.parts[source.index, axis] = whole
        return self.call(node, operator.getitem, whole, starts.index(node.args[2]))

    def _broadcast(self, node: Node) -> fx.Node:
        """The pair of operands as they are, without repeating that of the request."""
        op, args = super().called(node)
        if self.over.get(node.index):
            args = args[::-1]
        first = args[0].op is not kernels.spread  # whether the first one has the rows
        x, y = (a.args[0] if a.op is kernels.spread else a for a in args)
        return self.call(node, trained.broadcast, op, x, y, first, OWNER)


def _broadcasts(node: Node) -> bool:
    """Whether it takes elements of rows with those of their request."""
    if node.op not in BROADCAST or node.kwargs or not all(isinstance(a, Node) and a.rows_first for a in node.args):
        return False
    of_request = [a.op is kernels.spread for a in node.args]
    return of_request in ([True, False], [False, True]) and all(a.rate.per_candidate for a in node.args)


def _cuts(nodes: Sequence[Node]) -> dict[int, list[int]]:
    """Slice -> where its tensor is cut, for tensors that are cut in several parts without overlap."""
    found: dict[tuple[int, int], list[Node]] = {}
    for n in nodes:
        if n.op is aten.slice.Tensor and n.rows_first and n.args[0].rows_first and n.args[4:] in ((), (1,)):
            found.setdefault((n.args[0].index, n.args[1]), []).append(n)
    cuts: dict[int, list[int]] = {}
    for (_, axis), parts in found.items():
        source = parts[0].args[0]
        size = source.shape[axis - first_axis(source)] if axis >= first_axis(source) else None
        bounds = [(n.args[2], n.args[3]) for n in parts]
        if len(parts) < 2 or not all(type(x) is int for x in (size, *itertools.chain(*bounds))):
            continue
        places = sorted({0, size, *itertools.chain(*bounds)})
        if places[-1] == size and {*bounds} <= {*itertools.pairwise(places)}:
            cuts |= {n.index: places for n in parts}
    return cuts


def _read_by_a_product(nodes: Sequence[Node], results: Sequence[Any]) -> set[int]:
    """What one product reads as its rows, perhaps through reshapes, and nothing else does."""
    readers: dict[int, list[Node]] = {}
    for n in nodes:
        for x in n.inputs:
            readers.setdefault(x.index, []).append(n)
    kept = {r.index for r in results if isinstance(r, Node)}
    found: set[int] = set()
    for n in reversed(nodes):
        reader, *others = readers.get(n.index, [None])
        if reader is None or others or n.index in kept:
            continue
        rows = ROWS_OF.get(reader.op)
        through = reader.op is aten.reshape.default and reader.index in found
        if through or (rows is not None and reader.args[rows] is n):
            found.add(n.index)
    return found


def _looked_through(nodes: Sequence[Node], over: Mapping[int, int]) -> set[int]:
    """Reshapes between what is written over and its writer."""
    found = set()
    for n in nodes:
        x = n.args[over[n.index]] if n.index in over else None
        while x is not None and x.op is aten.reshape.default:
            found.add(x.index)
            x = x.args[0]
    return found
