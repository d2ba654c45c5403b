"""The graphs of one mode: those of its plans, and which of them computes a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from rankhoist.compiler.plan import Plans, PlanSummary
from rankhoist.report import Report
from rankhoist.report.tuning import Tuning
from rankhoist.training.captured import Captured
from rankhoist.training.graph import Graph


@dataclass(frozen=True)
class Graphs:
    """One graph per plan: one alone, until `tune` has compared several.

    Each has a weights stage of its own, for that is computed in every step.
    """

    graphs: tuple[Graph, ...]
    plans: Plans[PlanSummary]
    captured: Captured
    tuning: Tuning | None = None

    @staticmethod
    def of(graph: Graph, captured: Captured) -> Graphs:
        """One alone."""
        return Graphs((graph,), graph.blueprint.plans, captured)

    @property
    def main(self) -> Graph:
        """That of the plan for the workload."""
        return self.graphs[0]

    def at(self, rows: int, requests: int) -> Graph:
        """What computes a batch of so many rows."""
        return self.main if len(self.graphs) == 1 else self.graphs[self.plans.ranges.choose(rows, requests)]

    def here(self) -> Graphs:
        """The same, or in the dtype and on the device that the model has moved to."""
        return self if self.main.here() is self.main else self._each(Graph.here)

    def copied(self, model: nn.Module) -> Graphs:
        """The same over a copy of the model."""
        made = self._each(lambda graph: Graph.of(model, graph.blueprint, graph.snapshots))
        return replace(made, captured=Captured.of(model))

    def report(self) -> Report:
        """That of the plan for the workload, with what was measured."""
        return replace(self.main.blueprint.report(), tuning=self.tuning)

    def _each(self, made: Callable[[Graph], Graph]) -> Graphs:
        return replace(self, graphs=tuple(made(graph) for graph in self.graphs))
