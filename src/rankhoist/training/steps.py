"""Tuning of steps: `runtime.tune` times a call of every plan, which here is one forward and backward.

Whether a plan's scores and gradients are those of the original is asked in float64, on a copy of the model in which no
operator draws a mask: a unit that rounding switches on or off has another gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import draws, overload
from rankhoist.compiler.emit import Stage
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.plan import Plans, PlanSummary, Task, Way, make_plans, single
from rankhoist.compiler.plan.choice import EVERYWHERE
from rankhoist.compiler.targets import this_machine
from rankhoist.compiler.targets.training import training
from rankhoist.errors import UnsupportedModelError
from rankhoist.runtime.alike import error, tolerance
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.planned import Tunable
from rankhoist.runtime.scoring import Candidates
from rankhoist.runtime.tune import tuned
from rankhoist.training.graph import Graph, counts_of
from rankhoist.training.graphs import Graphs
from rankhoist.verify.original import float64_by_default

CANCELS = 1e-4  # of the largest gradient of all: below, as that of a bias before a batch norm, it is what cancels out
SHARES = ("p", "dropout_p", "dropout")


class Step(NamedTuple):
    """What one forward and backward makes; a gradient is None where nothing reaches the parameter."""

    scores: Any
    gradients: tuple[Tensor | None, ...]


def tuned_steps(
    model: nn.Module, graphs: Graphs, candidates: Sequence[int], requests: Sequence[int], seconds: float,
    told: Callable[[str], Any],
) -> Graphs:  # fmt: skip
    """What computes which batches the fastest, of the best plans of a model in its mode; elsewhere that for the
    workload. Parameters, their gradients, buffers and the state of random numbers stay as they were.

    Raises:
        InputError: a number is below 1.
        VerificationError: no plan computes what the original does.
    """
    if graphs.tuning is None:
        program, main = graphs.main.blueprint.program, graphs.plans.main
        assert program is not None
        plans = make_plans(Task(program, main.asked, main.workload, training(this_machine())))
        every = tuple(Graph.of(model, Blueprint.of(program, single(plan))).here() for plan in plans.plans)
        graphs = Graphs(every, replace(plans, predicted=EVERYWHERE), graphs.captured)
    with _kept(graphs.main):
        ranges, tuning = tuned(Steps(model, graphs), candidates, requests, seconds, told)
    return replace(graphs, plans=replace(graphs.plans, ranges=ranges), tuning=tuning)


class Steps(Tunable):
    """A step of each graph of a model, on batches that are made up."""

    def __init__(self, model: nn.Module, graphs: Graphs) -> None:
        self._graphs, self._inputs, self._learning = graphs, graphs.main.inputs, _learning(model)
        exact = copy.deepcopy(model).double()
        self._exact, self._exactly_learning = graphs.copied(exact).here(), _learning(exact)

    @property
    def plans(self) -> Plans[PlanSummary]:
        """One per graph."""
        return self._graphs.plans

    def _whole_for(self, way: Way, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Step:
        return _step(self._graphs.graphs[way.plan], self._learning, context, requests, candidates)

    def _warm_up_for(self, way: Way, requests: int, candidates: int) -> None:
        """Nothing is recorded; a plan with a mask per row is refused where one per request is asked for."""
        own, main = self._graphs.graphs[way.plan], self._graphs.main
        asked = main.blueprint.program
        if asked is not None and asked.dropout == "request" and _masks(own) != _masks(main):
            raise UnsupportedModelError("it draws a mask per row")

    def _checked_for(self, way: Way, context: dict[str, Tensor], requests: int, candidates: Candidates) -> Step:
        graph, own = self._exact.graphs[way.plan], self._inputs.dtype
        context, exact = (
            {n: x.double() if x.dtype == own else x for n, x in side.items()} for side in (context, candidates.inputs)
        )
        candidates = candidates._replace(inputs=exact)
        with float64_by_default(), _kept(graph):
            return _step(_without_masks(graph), self._exactly_learning, context, requests, candidates)

    def _apart(self, checked: Step, truth: Step) -> float:
        gradients, expected = (
            [g.to_dense() if g is not None and g.is_sparse else g for g in step.gradients] for step in (checked, truth)
        )
        return max(error(checked.scores, truth.scores), error(gradients, expected, CANCELS) if expected else 0.0)

    @property
    def _tolerance(self) -> float:
        return tolerance(torch.float64, self._inputs.device)


def random_sum(result: Any, seed: int) -> Tensor | None:
    """A random sum of all that is returned and has a gradient; None where nothing has."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor) and x.requires_grad]
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in leaves]
    return torch.stack([(x * w).sum() for x, w in zip(leaves, weights, strict=True)]).sum() if leaves else None


def _step(
    graph: Graph, learning: Sequence[Tensor], context: dict[str, Tensor], requests: int, candidates: Candidates
) -> Step:
    candidate, rows, blocks = candidates
    with torch.enable_grad():
        scores = graph.run(context, candidate, requests, rows, counts_of(blocks, rows))
        total = random_sum(scores, rows)
        gradients = () if total is None else torch.autograd.grad(total, learning, allow_unused=True)
    return Step(pytree.tree_map_only(Tensor, Tensor.detach, scores), gradients)


def _learning(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


@contextmanager
def _kept(graph: Graph) -> Iterator[None]:
    """The buffers that it writes, and the state of random numbers, are afterwards as they are now."""
    assert graph.blueprint.program is not None
    written = [getattr(*graph.places[p]) for p in graph.blueprint.program.written]
    before = [buffer.clone() for buffer in written]
    device = graph.inputs.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(written, before, strict=True):
                    buffer.copy_(value)


# -- masks


def _draws(node: fx.Node) -> bool:
    return node.target is kernels.dropped or draws(node)


def _masks(graph: Graph) -> list[int]:
    """How many operators draw some, in each stage."""
    return [sum(_draws(n) for n in stage.module.graph.nodes) for stage in graph.stages.all]


def _without_masks(graph: Graph) -> Graph:
    """The same, but every operator that draws a mask leaves out nothing."""
    (variant,) = graph.stages.variants
    still = replace(variant, request=_still(variant.request), candidate=_still(variant.candidate))
    return replace(graph, stages=replace(graph.stages, variants=[still]))


def _still(stage: Stage) -> Stage:
    if not any(_draws(n) for n in stage.module.graph.nodes):
        return stage
    graph = copy.deepcopy(stage.module.graph)
    for node in graph.nodes:
        if node.target is kernels.dropped:
            node.update_arg(1, 0.0)
        elif _draws(node):
            names = [argument.name for argument in overload(node)._schema.arguments]
            node.update_arg(next(i for i, name in enumerate(names) if name in SHARES), 0.0)
    return Stage.of(graph, "Still", stage.leaves, stage.nodes)
