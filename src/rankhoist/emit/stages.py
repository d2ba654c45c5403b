"""Cut the intermediate graph into its stages.

* weights: original parameters -> folded weights, once per model (and once per weight update);
* request: folded weights, context inputs -> state `[R, ...]`, once per request;
* candidate: folded weights, state, candidate inputs -> outputs `[N, ...]`, once per row.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.functions import FloorDiv, Mod

from rankhoist.algebra.ir import Node, Size, StageArgument, inputs_of, live_nodes
from rankhoist.emit.over import write_over
from rankhoist.errors import UnsupportedModelError


@dataclass
class Stage:
    """One emitted graph and what it reads: `leaves` are weight, constant or input names, `nodes` come from earlier
    stages.
    """

    module: fx.GraphModule
    leaves: list[str]
    nodes: list[int] = field(default_factory=list)


@dataclass
class Stages:
    """The three graphs. `folded` and `state` are the nodes that pass from one to the next."""

    weights: Stage
    request: Stage
    candidate: Stage
    folded: list[int]
    state: list[int]
    constants: dict[str, torch.Tensor]


def emit(outputs: Sequence[Any], constants: dict[str, torch.Tensor], rows: sympy.Symbol) -> Stages:
    """Three graphs that together compute `outputs` (nodes; anything else is returned as it is)."""
    nodes = live_nodes([o for o in outputs if isinstance(o, Node)])
    by_stage: dict[str, list[Node]] = {"weight": [], "request": [], "candidate": []}
    for node in nodes:
        by_stage[node.rate.stage].append(node)
    wanted = {x.index for n in nodes for x in inputs_of(n) if x.rate.stage != n.rate.stage}
    wanted |= {o.index for o in outputs if isinstance(o, Node) and not o.rate.per_candidate}
    folded = [n for n in by_stage["weight"] if n.index in wanted]
    state = [n for n in by_stage["request"] if n.index in wanted]
    weights = _stage(by_stage["weight"], folded, [], rows, "Weights")
    request = _stage(by_stage["request"], state, folded, rows, "Request")
    candidate = _stage(by_stage["candidate"], outputs, [*folded, *state], rows, "Candidate")
    used = {n.args[0] for n in nodes if n.op == "constant"}
    return Stages(
        weights, request, candidate, [n.index for n in folded], [n.index for n in state],
        {k: v for k, v in constants.items() if k in used},
    )  # fmt: skip


def _stage(
    nodes: Sequence[Node], results: Sequence[Any], earlier: Sequence[Node], rows: sympy.Symbol, name: str
) -> Stage:
    writer = _Writer(rows)
    needed = {x.index for n in nodes for x in inputs_of(n)} | {r.index for r in results if isinstance(r, Node)}
    own = {n.index for n in nodes}
    passed = [n for n in earlier if n.index in needed and n.index not in own]
    for argument in ("rows", "owner", "offsets"):
        writer.arguments[argument] = writer.placeholder(argument)
    for node in passed:
        writer.values[node.index] = writer.placeholder(f"{node.rate.stage}_{_label(node)}")
    leaves = [n for n in nodes if isinstance(n.op, str)]
    for node in leaves:
        writer.values[node.index] = writer.placeholder(_label(node))
    for node in nodes:
        writer.write(node)
    writer.graph.output(tuple(writer.argument(r) for r in results))
    write_over(writer.graph, writer.values, nodes)
    writer.graph.lint()
    module = fx.GraphModule(nn.Module(), writer.graph, class_name=name)
    return Stage(module, [str(n.args[0]) for n in leaves], [n.index for n in passed])


def _label(node: Node) -> str:
    if node.op == "constant":
        return "index"
    name = str(node.args[0]) if isinstance(node.op, str) else node.source
    return name.replace(".", "_")


class _Writer:
    """Writes intermediate nodes into one fx graph, under the names of the operators they come from."""

    def __init__(self, rows: sympy.Symbol) -> None:
        self.graph = fx.Graph()
        self.rows = rows
        self.values: dict[int, fx.Node] = {}
        self.arguments: dict[str, fx.Node] = {}
        self.taken: dict[str, int] = {}

    def placeholder(self, name: str) -> fx.Node:
        """A parameter of the stage; names that several nodes want are numbered."""
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return self.graph.placeholder(f"{name}__{count}" if count else name)

    def write(self, node: Node) -> None:
        if node.index in self.values:
            return
        args = tuple(self.argument(a) for a in node.args)
        kwargs = {k: self.argument(v) for k, v in node.kwargs.items()}
        self.values[node.index] = self.graph.create_node(
            "call_function", node.op, args, kwargs, name=node.source or None
        )

    def argument(self, value: Any) -> Any:
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
        operators = {sympy.Add: operator.add, sympy.Mul: operator.mul, FloorDiv: operator.floordiv, Mod: operator.mod}
        if type(expr) not in operators:
            raise UnsupportedModelError(f"a size of the model is {expr}, which is no function of the row count alone")
        result = self._size(expr.args[0], measured)
        for part in expr.args[1:]:
            result = self.graph.call_function(operators[type(expr)], (result, self._size(part, measured)))
        return result
