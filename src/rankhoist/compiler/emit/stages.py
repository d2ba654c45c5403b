"""Cut the intermediate graph of one or several plans into stages.

* weights: original parameters -> folded weights, once per model (and once per weight update);
* request: folded weights, context inputs -> state `[R, ...]`, once per request;
* candidate: folded weights, state, candidate inputs -> outputs `[N, ...]`, once per row.

Where items have a store, what depends on them alone has a stage of its own, which is run before all calls:

* item: folded weights, item inputs -> what is kept `[M, ...]`, once per item;
* candidate: folded weights, state, what is kept of each row's item, inputs of pairs -> outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx, nn

from rankhoist.capture import OPAQUE
from rankhoist.compiler.emit.spelling import spelled
from rankhoist.compiler.emit.trained import TrainedWriter
from rankhoist.compiler.emit.writer import Writer
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Rate, live_nodes
from rankhoist.compiler.lower.over import overwritten


@dataclass
class Stage:
    """One emitted graph and what it reads: `leaves` are weight, constant or input names, or those of calls of modules
    that are kept as they are; `nodes` come from earlier stages.

    `module` is the graph in ATen operators, to read and to export; `run` does the same with less overhead. `guards`
    are lookups (by node) that are guarded where the stage is compiled: see `lookups`.
    """

    module: fx.GraphModule
    leaves: list[str]
    nodes: list[int]
    run: Callable[..., tuple[Any, ...]]
    guards: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(graph: fx.Graph, name: str, leaves: list[str], nodes: list[int]) -> Stage:
        """From its graph."""
        graph.lint()
        module = fx.GraphModule(nn.Module(), graph, class_name=name)
        return Stage(module, leaves, nodes, spelled(module))


@dataclass
class Variant:
    """One plan as graphs; `state` are the nodes that pass from the request to the candidate stage, and its `condition`
    if it has one: a boolean of each request, true where the plan is equal. If it `checks`, the candidate stage returns
    the same of each row, after the results.
    """

    request: Stage
    candidate: Stage
    state: list[int]
    condition: int | None = None
    checks: bool = False

    @property
    def conditional(self) -> bool:
        """Whether there are calls that it must not score."""
        return self.condition is not None or self.checks


@dataclass
class Catalogue:
    """The stages of plans for which items have a store: the item stage makes what it keeps, the `kept` nodes."""

    item: Stage
    kept: list[int]
    variants: list[Variant]


@dataclass
class Stages:
    """What several plans of one model share, and each plan's own; `folded` nodes come out of the weights stage.

    `variants` are the plans without a store, `catalogue` has those with one.
    """

    weights: Stage
    folded: list[int]
    constants: dict[str, torch.Tensor]
    variants: list[Variant]
    catalogue: Catalogue | None = None

    @property
    def all(self) -> list[Stage]:
        """Every stage there is."""
        return [self.weights, *(stage for v in self.all_variants for stage in (v.request, v.candidate)), *self._items]

    @property
    def all_variants(self) -> list[Variant]:
        """Without a store and with one."""
        return [*self.variants, *(self.catalogue.variants if self.catalogue is not None else [])]

    @property
    def _items(self) -> list[Stage]:
        return [] if self.catalogue is None else [self.catalogue.item]


def emit(
    plans: Sequence[Sequence[Any]], constants: dict[str, torch.Tensor], rows: sympy.Symbol, training: bool = False,
    with_store: Sequence[Sequence[Any]] = (), conditions: Sequence[Node | None] = (),
    checks: Sequence[Node | None] = (),
) -> Stages:  # fmt: skip
    """Graphs that compute each plan's outputs (nodes; all else is returned as it is), without and `with_store`.

    `conditions` and `checks` are those of the plans without a store, in their order.
    For `training` they are differentiable: see `graph.trained` for what they are given.
    """
    checks = [*checks, *[None] * (len(plans) - len(checks))]
    plans = [[*own, *([] if check is None else [check])] for own, check in zip(plans, checks, strict=True)]
    every, count = [*plans, *with_store], len(plans)
    given = [*conditions, *[None] * (len(every) - len(conditions))]
    results = [[*outputs, condition] for outputs, condition in zip(every, given, strict=True)]
    by_plan = [live_nodes([o for o in own if isinstance(o, Node)]) for own in results]
    nodes = list({n.index: n for own in by_plan for n in own}.values())
    weights = sorted((n for n in nodes if n.rate is Rate.WEIGHT), key=lambda n: n.index)
    passed_on = [_passed_on(own, made) for own, made in zip(by_plan, results, strict=True)]
    wanted = set().union(*passed_on)
    folded = [n for n in weights if n.index in wanted]
    without = zip(by_plan[:count], passed_on[:count], plans, strict=True)
    variants = [_variant(*own, folded, rows, training=training) for own in without]
    for variant, condition, check in zip(variants, given, checks, strict=False):
        variant.condition, variant.checks = None if condition is None else condition.index, check is not None
    used = {n.args[0] for n in nodes if n.op == "constant"}
    return Stages(
        _stage(weights, folded, [], rows, "Weights", {}, training), [n.index for n in folded],
        {k: v for k, v in constants.items() if k in used}, variants,
        _catalogue(by_plan[count:], passed_on[count:], with_store, folded, rows) if with_store else None,
    )  # fmt: skip


def _variant(
    own: Sequence[Node], passed: set[int], outputs: Sequence[Any], folded: Sequence[Node], rows: sympy.Symbol,
    kept: Sequence[Node] = (), training: bool = False,
) -> Variant:  # fmt: skip
    """One plan; what is `kept` of items comes last, for its rows are those of the call."""
    state = [n for n in own if n.rate is Rate.REQUEST and n.index in passed]  # its condition as well
    over, early = overwritten(own, outputs, training), {n.index for n in kept}
    request, candidate = ([n for n in own if n.rate.stage == s] for s in ("request", "candidate"))
    if kept:
        candidate = [n for n in candidate if n.rate is Rate.PAIR]
    return Variant(
        _stage(request, state, folded, rows, "Request", over, training),
        _stage(candidate, outputs, [*folded, *state, *(n for n in own if n.index in early)], rows, "Candidate", over,
               training),
        [n.index for n in state],
    )  # fmt: skip


def _catalogue(
    by_plan: Sequence[Sequence[Node]], passed_on: Sequence[set[int]], plans: Sequence[Sequence[Any]],
    folded: Sequence[Node], rows: sympy.Symbol,
) -> Catalogue:  # fmt: skip
    """One item stage makes what all plans read of an item."""
    reads = (n for own in by_plan for n in own if n.op is kernels.gathered)
    kept = list({n.args[0].index: n.args[0] for n in reads}.values())
    items = [n for n in live_nodes(kept) if n.rate is Rate.ITEM]
    over = overwritten(live_nodes(kept), kept)
    variants = [_variant(*own, folded, rows, kept) for own in zip(by_plan, passed_on, plans, strict=True)]
    return Catalogue(_stage(items, kept, folded, rows, "Item", over, False), [n.index for n in kept], variants)


def _passed_on(nodes: Sequence[Node], outputs: Sequence[Any]) -> set[int]:
    """What a later stage of a plan reads, or its caller."""
    read = {x.index for n in nodes for x in n.inputs if x.rate.stage != n.rate.stage}
    return read | {o.index for o in outputs if isinstance(o, Node) and not o.rate.per_candidate}


def _stage(
    nodes: Sequence[Node], results: Sequence[Any], earlier: Sequence[Node], rows: sympy.Symbol, name: str,
    over: dict[int, int], training: bool,
) -> Stage:  # fmt: skip
    """`over`: which nodes are written over which of their arguments."""
    writer = (TrainedWriter if training else Writer)(rows, over)
    needed = {x.index for n in nodes for x in n.inputs} | {r.index for r in results if isinstance(r, Node)}
    own = {n.index for n in nodes}
    passed = [n for n in earlier if n.index in needed and n.index not in own]
    for argument in ("rows", "owner", "offsets"):
        writer.arguments[argument] = writer.placeholder(argument)
    for node in passed:
        earlier_stage = "item" if node.rate is Rate.ITEM else node.rate.stage
        writer.values[node.index] = writer.placeholder(f"{earlier_stage}_{_label(node)}")
    leaves = [n for n in nodes if isinstance(n.op, str)]
    for node in leaves:
        writer.values[node.index] = writer.placeholder(_label(node))
    modules = [str(n.args[0]) for n in nodes if n.op is OPAQUE]
    writer.modules = {name: writer.placeholder(re.sub(r"\W", "_", name)) for name in modules}
    writer.write_all(nodes, results)
    return Stage.of(writer.graph, name, [*(str(n.args[0]) for n in leaves), *modules], [n.index for n in passed])


def _label(node: Node) -> str:
    if node.op == "constant":
        return "index"
    name = str(node.args[0]) if isinstance(node.op, str) else node.source
    return name.replace(".", "_")
