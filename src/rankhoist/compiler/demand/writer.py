"""A graph that is written anew, or in part: what computes parts of captured values, and sizes that inputs have."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.demand.made import Made, Take, is_tensor, sizes_of, valued
from rankhoist.compiler.graph.decline import Decline

SIZE = torch.ops.aten.sym_size.int


class Writer:
    """Writes into `graph`. Who extends it says what stands for a captured node, and for a part of one."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.program, self.graph = program, graph
        self.sizes: dict[Any, Any] = {}
        self.named: set[str] = set()
        self.source: fx.Node

    def _whole(self, node: fx.Node) -> Any:
        """What stands for a captured node."""
        raise NotImplementedError

    def _taken(self, take: Take) -> fx.Node:
        """What stands for a part of one."""
        raise NotImplementedError

    def _made(self, way: Any) -> Any:
        """Arguments with nodes in place of what they are made of."""
        if isinstance(way, Take):
            return self._taken(way)
        if isinstance(way, Made):
            return self._call(way.target, self._made(list(way.args)), self._made(dict(way.kwargs)), way.of)
        if isinstance(way, sympy.Basic):
            return self._size(way)
        if isinstance(way, fx.Node):
            return self._whole(way)
        if isinstance(way, list | tuple):
            return [self._made(w) for w in way]
        return {k: self._made(v) for k, v in way.items()} if isinstance(way, dict) else way

    def _call(
        self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, of: fx.Node | None = None,
        name: str = "",
    ) -> fx.Node:  # fmt: skip
        """An operator of ours: a part of a captured result, the first under its name, or of an operand for it."""
        source = of or self.source
        own = source.name
        named = name or (own if own not in self.named else f"{own}_part")
        self.named.add(named)
        made = self.graph.create_node("call_function", target, tuple(args), dict(kwargs or {}), named)
        try:
            valued(made, source)
        except RuntimeError as error:
            raise Decline(f"torch cannot tell the sizes of {target}") from error
        made.meta |= {} if name else {"captured": own}
        return made

    # -- sizes

    def _size(self, expr: sympy.Expr) -> Any:
        """A number, or sums and multiples of sizes that inputs have."""
        if expr.is_Integer:
            return int(expr)
        if expr not in self.sizes:
            number, rest = expr.as_coeff_Mul()
            more, others = expr.as_coeff_Add()
            if number != 1:
                self.sizes[expr] = self._computed(operator.mul, self._size(rest), int(number))
            elif more:
                self.sizes[expr] = self._computed(operator.add, self._size(others), int(more))
            else:
                self.sizes[expr] = self._of_an_input(expr)
        return self.sizes[expr]

    def _computed(self, op: Any, size: fx.Node, number: int) -> fx.Node:
        return self._sized(op, (size, number), op(size.meta["val"], number))

    def _of_an_input(self, expr: sympy.Expr) -> fx.Node:
        """The size of an input that has it."""
        for node in self.program.graph.find_nodes(op="placeholder"):
            for dim, size in enumerate(sizes_of(node) if is_tensor(node) else ()):
                if size == expr:
                    return self._sized(SIZE, (self._whole(node), dim), node.meta["val"].shape[dim])
        raise Decline(f"no input has the size {expr}")

    def _sized(self, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        made = self.graph.call_function(target, args)
        made.meta["val"] = value
        return made
