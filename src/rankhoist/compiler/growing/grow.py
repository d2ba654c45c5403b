"""From a request stage to one that prepares a state that grows, and to the step that makes it grow."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from rankhoist.compiler.emit import Stage, Stages
from rankhoist.compiler.emit.spelling import spelled
from rankhoist.compiler.graph.operators import anew, name_of
from rankhoist.compiler.growing import along, made, products, recurrent, views
from rankhoist.compiler.growing.elements import ELEMENTS, elementwise
from rankhoist.compiler.growing.known import RECURRENT, Known, Says, Varies
from rankhoist.compiler.growing.law import NONE, Law, operand
from rankhoist.compiler.growing.step import Step

LAWS: dict[str, Law] = {
    name: law
    for family in (along.LAWS, made.LAWS, products.LAWS, views.LAWS)
    for names, law in family.items()
    for name in names.split()
}
Runs = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Reads:
    """What an argument of a step is: `rows`, an `argument` of the request stage by place, what is new of an input
    (`event`) by name, or what was `kept` by place.
    """

    kind: str
    key: Any


@dataclass(frozen=True)
class OneStep:
    """From what is kept to what is kept of the longer history: a graph, the same called sooner, and its arguments."""

    module: fx.GraphModule
    run: Runs
    reads: list[Reads]

    def filled(
        self, rows: int, arguments: Sequence[Any], kept: Sequence[Any], events: Mapping[str, Tensor]
    ) -> list[Any]:
        """Its arguments."""
        given: dict[str, Any] = {"rows": (rows,), "argument": arguments, "kept": kept, "event": events}
        return [given[r.kind][r.key] for r in self.reads]


@dataclass(frozen=True)
class Growing:
    """A request stage whose results, the state first, can be computed from those of a shorter history.

    `prepare` is called as the request stage is. `steps` are by the name of a length that varies.
    """

    module: fx.GraphModule
    prepare: Runs
    steps: Mapping[str, OneStep]


def make_growing(
    stage: Stage, arguments: Sequence[Any], inputs: Mapping[str, Tensor], lengths: Mapping[str, Varies],
    uniform: Mapping[int, Tensor],
) -> Growing:  # fmt: skip
    """For histories that grow.

    Args:
        arguments: of the request stage behind `rows`, `owner` and `offsets`: weights, or names of inputs.
        inputs: what a row of an input is, without memory, its axes that vary in the bounds.
        lengths: that may grow, by name: which axes of the inputs, and within which bounds.
        uniform: which arguments are the same number everywhere, whatever the weights are.

    Raises:
        RefusedError: one cannot grow, or not in a step that is cheaper than to prepare anew; says which operator.
    """
    graph = _functional(stage.module.graph)
    places = [n for n in graph.nodes if n.op == "placeholder"]
    given = dict(zip([str(p.target) for p in places[3:]], arguments, strict=True))
    constant = {str(places[3 + i].target): value for i, value in uniform.items()}
    steps = {}
    for name, length in lengths.items():
        own = {p: length.axes[i] for p, i in given.items() if isinstance(i, str) and i in length.axes}
        if not own:
            continue
        varies = replace(length, axes=own)
        leaves = {p: _looks(i, inputs, varies, own.get(p)) for p, i in given.items()} | _of_rows(varies)
        known = Known(varies, leaves, frozenset(p for p, i in given.items() if isinstance(i, str)), constant, _says)
        first = next(p for p in places if str(p.target) in own)
        steps[name] = Step(graph, known, law_of, first, _device(arguments))
    results = _closed(graph, list(steps.values()))
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (tuple(results),)
    module = _module(graph, "Growing")
    return Growing(
        module, spelled(module), {name: _written(step, results, places, given) for name, step in steps.items()}
    )


def _closed(graph: fx.Graph, steps: Sequence[Step]) -> list[fx.Node]:
    """What is kept: the state, and all that the steps need of the history before."""
    state: Any = next(n for n in graph.nodes if n.op == "output").args[0]
    kept = dict.fromkeys(state)
    while True:
        for step in steps:
            for node in list(kept):
                step.renew(node)
        needed = [node for step in steps for node in step.kept if node not in kept]
        if not needed:
            return list(kept)
        kept |= dict.fromkeys(needed)


def _written(step: Step, results: Sequence[fx.Node], places: Sequence[fx.Node], given: Mapping[str, Any]) -> OneStep:
    step.graph.output(tuple(step.renew(node) for node in results))
    step.graph.eliminate_dead_code()
    source = {made: node for nodes in (step.given, step.events, step.kept) for node, made in nodes.items()}
    order, reads = {str(p.target): i for i, p in enumerate(places)}, []
    for placeholder in (n for n in step.graph.nodes if n.op == "placeholder"):
        node = source[placeholder]
        if step.kept.get(node) is placeholder:
            reads.append(Reads("kept", results.index(node)))
        elif node in step.events:
            reads.append(Reads("event", given[str(node.target)]))
        else:
            place = order[str(node.target)]
            reads.append(Reads("rows", 0) if place < 3 else Reads("argument", place - 3))
    module = _module(step.graph, "Step")
    return OneStep(module, spelled(module), reads)


def _module(graph: fx.Graph, name: str) -> fx.GraphModule:
    graph.lint()
    return fx.GraphModule(nn.Module(), graph, class_name=name)


def _functional(graph: fx.Graph) -> fx.Graph:
    """The same without writing over operands: they are kept."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    for node in copy.nodes:
        if node.op == "call_function":
            node.target = anew(node.target)
    return copy


# -- what is known of operators and leaves


def law_of(node: fx.Node) -> Law:
    """The law of an operator."""
    if node.target is operator.getitem:
        parent = operand(node)
        return recurrent.LAW if name_of(parent.target) in RECURRENT else NONE
    own = LAWS.get(name_of(node.target))
    return own or (ELEMENTS if elementwise(node.target) else NONE)


def _says(known: Known, node: fx.Node) -> Says:
    says = law_of(node).says(known, node)
    return says if known[node].moves else Says(True, uniform=says.uniform)


def _of_rows(varies: Varies) -> dict[str, tuple[Any, ...]]:
    nothing = (None,) * len(varies.looked_at)
    return {"rows": tuple(rows for rows, _ in varies.looked_at), "owner": nothing, "offsets": nothing}


def _looks(value: Any, inputs: Mapping[str, Tensor], varies: Varies, axis: int | None) -> tuple[Any, ...]:
    """A weight or an input without memory, for the numbers of rows and the lengths that are looked at."""
    if isinstance(value, Tensor):
        return (value.to("meta"),) * len(varies.looked_at)
    if not isinstance(value, str):
        return (None,) * len(varies.looked_at)
    made, found = inputs[value], []
    for rows, length in varies.looked_at:
        sizes = [rows, *(length if i == axis else n for i, n in enumerate(made.shape, 1))]
        found.append(torch.empty(sizes, dtype=made.dtype, device="meta"))
    return tuple(found)


def _device(arguments: Sequence[Any]) -> torch.device:
    return next((a.device for a in arguments if isinstance(a, Tensor)), torch.device("cpu"))


def uniform_weights(stages: Stages) -> dict[int | str, Tensor]:
    """Folded weights, by node, and constants, by name, that are one number everywhere whatever the weights are."""
    made = {name: t for name, t in stages.constants.items() if _one_number(t)}
    nodes = stages.weights.module.graph.nodes
    rows, owner, offsets, *leaves = (n for n in nodes if n.op == "placeholder")
    values: dict[fx.Node, Any] = dict.fromkeys((rows, owner, offsets))
    named = zip(leaves, stages.weights.leaves, strict=True)
    values |= {n: stages.constants[leaf] for n, leaf in named if leaf in stages.constants}
    for node in nodes:
        if node.op == "call_function" and all(x in values for x in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    output: Any = next(n for n in nodes if n.op == "output").args[0]
    folded = zip(stages.folded, output, strict=True)
    found: dict[int | str, Tensor] = {i: values[n] for i, n in folded if n in values and _one_number(values[n])}
    return {key: t.flatten()[0].cpu() for key, t in (made | found).items()}


def _one_number(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() > 0 and bool((x == x.flatten()[0]).all())
