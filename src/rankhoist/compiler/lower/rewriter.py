"""What a rewrite is: a function of a node that may give another one for it, tried on every node of a plan."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.lower.limits import Limits

T = TypeVar("T")


class Rewriter:
    """Rewrites all that `outputs` need, operands first.

    Only what has one reader is merged into its reader, so nothing is computed twice.

    Attributes:
        nodes: as they are before.
    """

    def __init__(self, builder: Builder, outputs: Sequence[Any], limits: Limits) -> None:
        self.builder, self.outputs, self.limits = builder, outputs, limits
        kept = [o for o in outputs if isinstance(o, Node)]
        self.nodes = live_nodes(kept)
        self._readers = collections.Counter(x.index for n in self.nodes for x in n.inputs)
        self._readers.update(o.index for o in kept)
        self._found: dict[Any, Any] = {}

    def once(self, node: Node) -> bool:
        """Whether it has one reader."""
        return self._readers[node.index] == 1

    def found(self, find: Callable[[Rewriter], T]) -> T:
        """What is found out about all nodes, once."""
        if find not in self._found:
            self._found[find] = find(self)
        made: T = self._found[find]
        return made

    def rewritten(self, make: Rewrite) -> list[Any]:
        """The outputs by a rewrite, and every other node over its rewritten operands."""
        self._make, self._done = make, dict[int, Node]()
        for node in self.nodes:
            self.value(node)
        return [self.value(o) if isinstance(o, Node) else o for o in self.outputs]

    def value(self, node: Node) -> Node:
        """What a node has become."""
        if node.index not in self._done:
            self.builder.source = node.source
            self._done[node.index] = self._make(self, node) or self.builder.again(node, self.value)
        return self._done[node.index]


Rewrite = Callable[[Rewriter, Node], "Node | None"]
