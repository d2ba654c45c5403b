"""Where a store ends: which of an item's values are kept, and which are computed of those for every candidate.

A value that depends on the item alone is computed once per item; what a call reads of it costs a gather, and room in
the store. So some are better computed again: an embedding is narrower than the layer behind it, and may be fast enough.
The cheapest choice is a minimum cut between what is stored and what pairs need:

    item -> value       seconds to compute the value in every call (cut: it is computed there)
    value -> readers    seconds to gather it, and its bytes at a price (cut: it is stored, and read by calls)

The price is raised until all that is kept of an item fits into the bytes that it may have.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, live_nodes
from rankhoist.compiler.targets import Target

LARGEST = 2000  # values of an item; of more, all that pairs read is stored
PRICES = [0.0, *(10.0**i for i in range(-12, -2))]  # seconds per byte of an item, tried in turn
UNITS = 1e15  # of a second: a minimum cut is exact in whole numbers

ITEM, PAIR = "item", "pair"  # both ends of the cut
Known = dict[Any, frozenset[int]]


def cut(builder: Builder, outputs: Sequence[Any], workload: Workload, target: Target, known: Known) -> list[Any]:
    """`outputs` with a gather wherever a pair reads what is stored; the rest of what pairs need is at their rate.

    `known` remembers the cuts of the same values.
    """
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    items = [n for n in nodes if n.rate is Rate.ITEM]
    wanted = _wanted(nodes, outputs)
    key = frozenset(wanted)
    if key not in known:
        known[key] = _per_pair(items, wanted, workload, target)
    return _rebuilt(builder, nodes, outputs, known[key])


def stored(outputs: Sequence[Any]) -> list[Node]:
    """What a store holds of an item for a plan."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    return [n.args[0] for n in nodes if n.op is kernels.gathered]


def penalty(outputs: Sequence[Any], workload: Workload) -> float:
    """Seconds that are added to those of a plan which keeps more of an item than it may: any other is better."""
    return PRICES[-1] * max(bytes_of(stored(outputs)) - (workload.item_bytes or 0), 0)


def bytes_of(nodes: Collection[Node]) -> int:
    """Bytes of an item."""
    return sum(math.prod(n.sizes) * n.dtype.itemsize for n in nodes)


def _wanted(nodes: Sequence[Node], outputs: Sequence[Any]) -> set[int]:
    """The values of items that pairs read, and callers."""
    read = {x.index for n in nodes if n.rate is Rate.PAIR for x in n.inputs if x.rate is Rate.ITEM}
    return read | {o.index for o in outputs if isinstance(o, Node) and o.rate is Rate.ITEM}


def _per_pair(items: Sequence[Node], wanted: set[int], workload: Workload, target: Target) -> frozenset[int]:
    """The values of items that are computed for every pair."""
    assert workload.item_bytes is not None, "there is a store"
    if not items or len(items) > LARGEST:
        return frozenset()
    times = (target.profile, workload.candidates, workload.requests)
    computed = {n.index: float(target.seconds(n, *times)) for n in items}
    gathered = {n.index: float(target.seconds(_gather(n), *times)) for n in items}
    values, found = _Values(items, wanted, _unstorable(items), computed, gathered), frozenset[int]()
    for price in PRICES:
        found = values.cheapest(price)
        if bytes_of(values.kept(found)) <= workload.item_bytes:
            break
    return found


def _unstorable(items: Sequence[Node]) -> set[int]:
    """What has no row per item on its first axis, or is several tensors."""
    several = {x.index for n in items if n.op is operator.getitem for x in n.inputs}
    return several | {n.index for n in items if not n.rows_first}


@dataclass(frozen=True)
class _Values:
    """The values of items: those that pairs want, those that no store holds, and seconds of a call to compute or to
    gather each.
    """

    nodes: Sequence[Node]
    wanted: set[int]
    unstorable: set[int]
    computed: Mapping[int, float]
    gathered: Mapping[int, float]

    def kept(self, per_pair: Collection[int]) -> list[Node]:
        """What is stored, where some values are computed for every pair."""
        read = self.wanted | {x.index for n in self.nodes if n.index in per_pair for x in n.inputs}
        return [n for n in self.nodes if n.index in read and n.index not in per_pair]

    def cheapest(self, price: float) -> frozenset[int]:
        """The pairs' side of a minimum cut, where a byte of an item in the store costs `price` seconds."""
        import networkx  # here, for it takes half a second that few need

        graph = networkx.DiGraph()
        for n in self.nodes:
            leaf = isinstance(n.op, str)
            graph.add_edge(ITEM, n.index, **({} if leaf else _capacity(self.computed[n.index])))
            read = self.gathered[n.index] + price * bytes_of([n])
            graph.add_edge(n.index, ("read", n.index), **({} if n.index in self.unstorable else _capacity(read)))
            if n.index in self.wanted:
                graph.add_edge(("read", n.index), PAIR)
            for x in n.inputs:
                if x.rate is Rate.ITEM:
                    graph.add_edge(("read", x.index), n.index)
                    graph.add_edge(n.index, x.index)  # a stored value is computed of stored ones
        _, (_, pairs) = networkx.minimum_cut(graph, ITEM, PAIR)
        return frozenset(n.index for n in self.nodes if n.index in pairs)


def _capacity(seconds: float) -> dict[str, int]:
    return {"capacity": round(seconds * UNITS)}


def _gather(node: Node) -> Node:
    """A node that reads it from the store, to be predicted."""
    return Node(-1, kernels.gathered, (node,), {}, Rate.PAIR, node.shape, node.dtype, "")


def _rebuilt(builder: Builder, nodes: Sequence[Node], outputs: Sequence[Any], per_pair: Collection[int]) -> list[Any]:
    """Every node anew: what is computed per pair at that rate, over gathers of what is stored."""
    done: dict[int, Node] = {}

    def at_pair(x: Node) -> Node:
        made = done[x.index]
        if made.rate is not Rate.ITEM:
            return made
        return builder.call(kernels.gathered, (made,), Rate.PAIR, made.shape, made.dtype, rows_first=made.rows_first)

    for n in nodes:
        builder.source = n.source
        moved = n.index in per_pair
        read: Callable[[Node], Node] = at_pair if moved or n.rate is Rate.PAIR else lambda x: done[x.index]
        done[n.index] = builder.again(n, read, Rate.PAIR if moved else n.rate)
    builder.source = "output"
    return [at_pair(o) if isinstance(o, Node) else o for o in outputs]
