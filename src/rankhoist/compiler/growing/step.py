"""The step of a request stage: from what it computed, and an event, to what it computes of the longer history."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of, row
from rankhoist.compiler.growing.known import Known, RefusedError
from rankhoist.compiler.growing.room import joined

DEAR = " costs as much anew as all of it did"
CHANGES = f"changes at every position when the history grows, and{DEAR}"


class Step:
    """Writes the step; `whole` and `part` are values of the longer history.

    Args:
        stage: the request stage without writing over operands. What a step needs of the history before is `kept`:
            further results of it, whose new values are results of the step.
        first: a placeholder whose axis grows, to count events.
    """

    def __init__(
        self, stage: fx.Graph, known: Known, laws: Callable[[fx.Node], Any], first: fx.Node, device: torch.device
    ) -> None:
        self.stage, self.known, self.laws, self.device = stage, known, laws, device
        self.graph = fx.Graph()
        self._last: fx.Node | None = None
        self.given: dict[fx.Node, fx.Node] = {}  # weights and rows of the stage
        self.events: dict[fx.Node, fx.Node] = {}
        self.kept: dict[fx.Node, fx.Node] = {}  # nodes of the stage: what they were
        self.renewed: dict[fx.Node, fx.Node] = {}  # those of them that are not values of the original stage
        self._wholes: dict[fx.Node, fx.Node] = {}
        self._parts: dict[tuple[fx.Node, int], fx.Node] = {}
        self._first = first

    # -- what it reads

    def placeholder(self, name: str) -> fx.Node:
        """One more argument, behind those that there are."""
        front = self.graph.inserting_after(self._last) if self._last else self.graph.inserting_before()
        with front:
            self._last = made = self.graph.placeholder(name)
        return made

    def keep(self, node: fx.Node) -> fx.Node:
        """What a node of the stage was for the history before."""
        if node not in self.kept:
            self.kept[node] = self.placeholder(f"kept_{node.name}")
        return self.kept[node]

    def event(self, node: fx.Node) -> fx.Node:
        """What is new of an input."""
        if node not in self.events:
            self.events[node] = self.placeholder(f"new_{node.name}")
        return self.events[node]

    def of_stage(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Something more that the stage computes, to be kept: the same of the same operands only once."""
        found = _found(self.stage, op, args, kwargs or {})
        if found is not None:
            return found
        with self.stage.inserting_before(next(n for n in self.stage.nodes if n.op == "output")):
            return self.stage.call_function(op, args, kwargs or {})

    # -- numbers

    def fresh(self, steps: int = 1) -> fx.Node:
        """How many positions are new along an axis that grows by so many for an event."""
        axis = self.known.varies.axes[str(self._first.target)]
        count = self.call(aten.sym_size.int, self.event(self._first), axis)
        return count if steps == 1 else self.call(operator.mul, count, steps)

    def length(self, node: fx.Node, axis: int, *, before: bool = False) -> Any:
        """How long a growing axis of a node is, or was `before`."""
        slope, beside = self.known.before(node, axis)
        own = self.known.varies.axes[str(self._first.target)]
        total = self.keep(counted := self.of_stage(aten.sym_size.int, (self._first, own)))
        now = self.call(operator.add, total, self.fresh())
        self.renewed[counted] = now
        made = total if before else now
        made = made if slope == 1 else self.call(operator.mul, made, slope)
        return made if not beside else self.call(operator.add, made, beside)

    # -- values of the longer history

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write an operation; the same of the same operands only once."""
        found = _found(self.graph, op, args, kwargs)
        if found is not None:
            return found
        return self.graph.call_function(op, args, kwargs)

    def again(self, node: fx.Node, value: Callable[[fx.Node], Any] | None = None) -> fx.Node:
        """The same operation over other operands: those of the longer history."""
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value or self.whole)
        return self._shaped(self.call(node.target, *args, **kwargs), node)

    def _shaped(self, made: fx.Node, node: fx.Node) -> fx.Node:
        """What is cut along an axis that does not grow has the size that it had: see `emit.spelling`."""
        if node.target is aten.slice.Tensor and node.args[1] not in self.known.grows(node):
            made.meta["shape"] = node.meta.get("shape", ())
        return made

    def whole(self, node: fx.Node) -> fx.Node:
        """All of a value."""
        if node not in self._wholes:
            self._wholes[node] = self._whole(node)
        return self._wholes[node]

    def _whole(self, node: fx.Node) -> fx.Node:
        fact, known = self.known[node], self.known
        if node.op == "placeholder":
            if not fact.inputs:
                self.given[node] = self.placeholder(str(node.target))
                return self.given[node]
            if not fact.moves:
                return self.keep(node)
            axis = known.varies.axes[str(node.target)]
            return self.call(joined, self.keep(node), self.event(node), axis)
        if fact.number:
            return self._number(node)
        if not fact.moves:
            return self.keep(node) if fact.inputs else self.again(node)
        if not fact.events:
            return self.again(node)
        if not isinstance(fact.at[0], torch.Tensor):
            return self.anew(node)  # several results, or one of a size that is not known
        grows = known.grows(node)
        if fact.stable and not grows:
            return self.keep(node)
        law = self.laws(node)
        made: fx.Node | None = law.whole(self, node) if law.whole is not None else None
        if made is not None:
            return made
        if fact.stable and len(grows) == 1 and not _shows_all(node):
            (axis,) = grows
            return self.call(joined, self.keep(node), self.part(node, axis), axis)
        return self.anew(node)

    def _number(self, node: fx.Node) -> fx.Node:
        """A size, or a sum or a product of some."""
        if node.target is aten.sym_size.int:
            x: Any = node.args[0]
            axis: Any = node.args[1]
            if axis in self.known.grows(x):
                made: fx.Node = self.length(x, axis)
                return made
            return self.keep(node) if self.known[node].inputs else self.again(node)
        if node.target in (operator.add, operator.mul, operator.sub) or not self.known[node].moves:
            return self.again(node)
        raise RefusedError(node, "computes a number of the length of the history")

    def anew(self, node: fx.Node) -> fx.Node:
        """All of a value that is not stable, computed from all of its operands: right, and refused where it is dear."""
        grows = self._growing(node)
        known = row(node.target)
        steps = known.work is not None and not isinstance(self.known[node].at[0], torch.Tensor)
        if steps or grows > 1 or (grows and known.work is not None):
            cause = self._cause(node)
            raise RefusedError(
                cause, CHANGES if cause is node else f"changes at every position, and what is computed of it{DEAR}"
            )
        return self.again(node)

    def _cause(self, node: fx.Node) -> fx.Node:
        """Where positions that were there begin to change: of operands that are as they were."""
        while True:
            changed = [x for x in node.all_input_nodes if self.known[x].events and not self.known[x].stable]
            tensors = [x for x in changed if not self.known[x].number]
            if not tensors:
                return node
            node = tensors[0]

    def _growing(self, node: fx.Node) -> int:
        """Along how many axes it gets longer; of several results the most."""
        if isinstance(self.known[node].at[0], torch.Tensor):
            return len(self.known.grows(node))
        users = [user for user in node.users if user.target is operator.getitem]
        return max((len(self.known.grows(u)) for u in users), default=0)

    def part(self, node: fx.Node, axis: int) -> fx.Node:
        """The last positions of a value along an axis: those that an event adds."""
        if (node, axis) not in self._parts:
            self._parts[node, axis] = self._part(node, axis)
        return self._parts[node, axis]

    def _part(self, node: fx.Node, axis: int) -> fx.Node:
        if node.op == "placeholder" and axis == self.known.varies.axes.get(str(node.target)):
            return self.event(node)
        law = self.laws(node)
        made: fx.Node | None = law.part(self, node, axis) if law.part is not None else None
        if made is not None:
            return made
        all_of_it = self.again(node) if not self.known[node].events else self.anew(node)
        return self.last(all_of_it, axis, self.fresh(self.known.grows(node)[axis]))

    def part_or_whole(self, node: fx.Node, axis: int) -> fx.Node:
        """What the last positions along an axis read of an operand."""
        return self.part(node, axis) if axis in self.known.grows(node) else self.whole(node)

    def last(self, x: fx.Node, axis: int, count: Any) -> fx.Node:
        """The last positions of a tensor."""
        return self.call(aten.slice.Tensor, x, axis, self.call(operator.neg, count), sys.maxsize)

    def renew(self, node: fx.Node) -> fx.Node:
        """What is kept of the longer history."""
        made = self.renewed.get(node)
        return self.whole(node) if made is None else made

    def placed(self, node: fx.Node, args: Sequence[Any], **kwargs: Any) -> fx.Node:
        """The operator of a node over arguments that are given, with its other keywords."""
        others = fx.map_arg(dict(node.kwargs), self.whole)
        return self._shaped(self.call(node.target, *args, **{**others, **kwargs}), node)

    def placed_as(self, op: Any, node: fx.Node, args: Sequence[Any]) -> fx.Node:
        """Another operator over arguments that are given, with the keywords of a node."""
        return self.call(op, *args, **fx.map_arg(dict(node.kwargs), self.whole))


def _found(graph: fx.Graph, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node | None:
    """An operation that is there already."""
    same = (n for n in graph.nodes if n.target == op and n.args == args and dict(n.kwargs) == kwargs)
    return next(same, None)


def _shows_all(node: fx.Node) -> bool:
    """Whether it is a view of all of its operand, which is kept in its place."""
    known = row(node.target)
    return known.view and (known.reshapes or name_of(node.target) in ("permute", "transpose", "t", "numpy_T", "expand"))
