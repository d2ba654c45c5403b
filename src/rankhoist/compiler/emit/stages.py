"""Cut the intermediate graph of one or several plans into stages.

* weights: original parameters -> folded weights, once per model (and once per weight update);
* request: folded weights, context inputs -> state `[R, ...]`, once per request;
* candidate: folded weights, state, candidate inputs -> outputs `[N, ...]`, once per row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.functions import FloorDiv, Mod

from rankhoist.compiler.emit.spelling import spelled
from rankhoist.compiler.graph.node import Node, Rate, Size, StageArgument, inputs_of, live_nodes
from rankhoist.compiler.graph.operators import row
from rankhoist.compiler.lower.over import overwritten
from rankhoist.errors import UnsupportedModelError


@dataclass
class Stage:
    """One emitted graph and what it reads: `leaves` are weight, constant or input names, `nodes` come from earlier
    stages.

    `module` is the graph in ATen operators, to read and to export; `run` does the same with less overhead.
    """

    module: fx.GraphModule
    leaves: list[str]
    nodes: list[int]
    run: Callable[..., tuple[Any, ...]]

    @staticmethod
    def of(graph: fx.Graph, name: str, leaves: list[str], nodes: list[int]) -> Stage:
        """From its graph."""
        graph.lint()
        module = fx.GraphModule(nn.Module(), graph, class_name=name)
        return Stage(module, leaves, nodes, spelled(module))


@dataclass
class Variant:
    """One plan as graphs; `state` are the nodes that pass from the request to the candidate stage."""

    request: Stage
    candidate: Stage
    state: list[int]


@dataclass
class Stages:
    """What several plans of one model share, and each plan's own; `folded` nodes come out of the weights stage."""

    weights: Stage
    folded: list[int]
    constants: dict[str, torch.Tensor]
    variants: list[Variant]

    @property
    def all(self) -> list[Stage]:
        """Every stage there is."""
        return [self.weights, *(stage for v in self.variants for stage in (v.request, v.candidate))]


def emit(
    plans: Sequence[Sequence[Any]], constants: dict[str, torch.Tensor], rows: sympy.Symbol, training: bool = False
) -> Stages:
    """Graphs that compute each plan's outputs (nodes; all else is returned as it is).

    For `training` they are differentiable: see `graph.trained` for what they are given.
    """
    by_plan = [live_nodes([o for o in outputs if isinstance(o, Node)]) for outputs in plans]
    nodes = list({n.index: n for own in by_plan for n in own}.values())
    weights = sorted((n for n in nodes if n.rate is Rate.WEIGHT), key=lambda n: n.index)
    passed_on = [_passed_on(own, outputs) for own, outputs in zip(by_plan, plans, strict=True)]
    wanted = set().union(*passed_on)
    folded = [n for n in weights if n.index in wanted]
    variants = []
    for outputs, own, passed in zip(plans, by_plan, passed_on, strict=True):
        state = [n for n in own if n.rate is Rate.REQUEST and n.index in passed]
        over = {} if training else overwritten(own, outputs)
        request, candidate = ([n for n in own if n.rate.stage == s] for s in ("request", "candidate"))
        variants.append(
            Variant(
                _stage(request, state, folded, rows, "Request", over, training),
                _stage(candidate, outputs, [*folded, *state], rows, "Candidate", over, training),
                [n.index for n in state],
            )
        )
    used = {n.args[0] for n in nodes if n.op == "constant"}
    return Stages(
        _stage(weights, folded, [], rows, "Weights", {}, training), [n.index for n in folded],
        {k: v for k, v in constants.items() if k in used}, variants,
    )  # fmt: skip


def _passed_on(nodes: Sequence[Node], outputs: Sequence[Any]) -> set[int]:
    """What a later stage of a plan reads, or its caller."""
    read = {x.index for n in nodes for x in inputs_of(n) if x.rate.stage != n.rate.stage}
    return read | {o.index for o in outputs if isinstance(o, Node) and not o.rate.per_candidate}


def _stage(
    nodes: Sequence[Node], results: Sequence[Any], earlier: Sequence[Node], rows: sympy.Symbol, name: str,
    over: dict[int, int], training: bool,
) -> Stage:  # fmt: skip
    """`over`: which nodes are written over which of their arguments."""
    writer = _Writer(rows, over, training)
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
    return Stage.of(writer.graph, name, [str(n.args[0]) for n in leaves], [n.index for n in passed])


def _label(node: Node) -> str:
    if node.op == "constant":
        return "index"
    name = str(node.args[0]) if isinstance(node.op, str) else node.source
    return name.replace(".", "_")


class _Writer:
    """Writes intermediate nodes into one fx graph, under the names of the operators they come from."""

    def __init__(self, rows: sympy.Symbol, over: dict[int, int], training: bool) -> None:
        self.graph = fx.Graph()
        self.rows, self.over, self.training = rows, over, training
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
        known = row(node.op)
        target: Any = (self.training and known.trained) or node.op
        if node.index in self.over:
            target, args = known.over, args[::-1] if self.over[node.index] else args
        made = self.graph.create_node("call_function", target, args, kwargs, name=node.source or None)
        made.meta["shape"] = node.shape
        self.values[node.index] = made

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
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            expr = sympy.Mul(*[expr.base] * int(expr.exp), evaluate=False)
        operators = {sympy.Add: operator.add, sympy.Mul: operator.mul, FloorDiv: operator.floordiv, Mod: operator.mod}
        if type(expr) not in operators:
            raise UnsupportedModelError(f"a size of the model is {expr}, which is no function of the row count alone")
        result = self._size(expr.args[0], measured)
        for part in expr.args[1:]:
            result = self.graph.call_function(operators[type(expr)], (result, self._size(part, measured)))
        return result
