"""Intermediate nodes as one fx graph, under the names of the operators they come from."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from rankhoist.capture import OPAQUE
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Size, StageArgument
from rankhoist.compiler.graph.operators import row
from rankhoist.errors import UnsupportedModelError

NUMBERS = {sympy.Add: operator.add, sympy.Mul: operator.mul, FloorDiv: operator.floordiv, Mod: operator.mod}


class Writer:
    """Writes nodes, operands first; `over` says which are written over which of their arguments."""

    def __init__(self, rows: sympy.Symbol, over: Mapping[int, int]) -> None:
        self.graph = fx.Graph()
        self.rows, self.over = rows, over
        self.values: dict[int, fx.Node] = {}
        self.arguments: dict[str, fx.Node] = {}
        self.taken: dict[str, int] = {}
        self.modules: dict[str, fx.Node] = {}

    def placeholder(self, name: str) -> fx.Node:
        """A parameter of the stage; names that several nodes want are numbered."""
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return self.graph.placeholder(f"{name}__{count}" if count else name)

    def write_all(self, nodes: Sequence[Node], results: Sequence[Any]) -> None:
        """The nodes of a stage, and what it returns."""
        for node in nodes:
            if node.index not in self.values:
                self.values[node.index] = self.write(node)
        self.graph.output(tuple(self.argument(r) for r in results))

    def write(self, node: Node) -> fx.Node:
        """One node."""
        if node.op is kernels.gathered:
            return self.values[node.args[0].index]
        target, args = self.called(node)
        if self.over.get(node.index):
            args = args[::-1]
        return self.call(node, target, *args)

    def called(self, node: Node) -> tuple[Any, Sequence[Any]]:
        """What is called for a node, and with which arguments."""
        if node.op is OPAQUE:
            return kernels.opaque, (self.modules[node.args[0]], node.args[2])
        return row(node.op).over if node.index in self.over else node.op, node.args

    def call(self, node: Node, target: Any, *args: Any) -> fx.Node:
        """A call that stands for a node."""
        given, kwargs = self.argument(args), {k: self.argument(v) for k, v in node.kwargs.items()}
        made = self.graph.create_node("call_function", target, given, kwargs, name=node.source or None)
        made.meta["shape"], made.meta["source"] = node.sizes, node.source
        return made

    def argument(self, value: Any) -> Any:
        """An argument of a node as one of the graph."""
        if isinstance(value, Node):
            return self.values[value.index]
        if isinstance(value, list | tuple):
            return type(value)(self.argument(v) for v in value)
        if isinstance(value, StageArgument):
            return self.arguments[value.name]
        if isinstance(value, Size):
            return self._size(value.expr, dict(value.measured))
        return value

    def _size(self, expr: sympy.Expr, measured: dict[sympy.Symbol, Node]) -> Any:
        if expr.is_Integer:
            return int(expr)
        if expr in measured:
            return self.values[measured[expr].index]
        if expr == self.rows:
            return self.arguments["rows"]
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            expr = sympy.Mul(*[expr.base] * int(expr.exp), evaluate=False)
        if type(expr) not in NUMBERS:
            said = expr.xreplace({self.rows: sympy.Symbol("rows")})
            raise UnsupportedModelError(f"a size of the model is {said}, which is no sum, product or quotient of sizes")
        result = self._size(expr.args[0], measured)
        for part in expr.args[1:]:
            result = self.graph.call_function(NUMBERS[type(expr)], (result, self._size(part, measured)))
        return result
