"""A plan: what is computed, how often, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.text import graph_text
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.node import Node, Rate, live_nodes
from rankhoist.compiler.plan.cut import stored
from rankhoist.compiler.plan.task import Task
from rankhoist.compiler.targets import Target


@dataclass(frozen=True)
class Cost:
    """Work of one call of the workload, both stages: multiply-adds, elements written, and predicted seconds."""

    multiply_adds: int
    elements: int
    seconds: float


@dataclass(frozen=True)
class PlanSummary:
    """A plan in numbers, which is all that is left of it in a file.

    `level` is that of the plan, which may be lower than the one that was `asked` for.
    """

    level: Level
    asked: Level
    workload: Workload
    cost: Cost


@dataclass(frozen=True)
class Plan(PlanSummary):
    """An interpreted program: its outputs as nodes, what it costs, and the operators whose forms are evaluated.

    `target` is what it was made for.
    `reasons` says, per captured operator, why no rule applied at the level asked for, or its form was not kept. A
    `safe` plan is in the place of one that could not be made; laws in `without` were switched off.
    `condition` says of a request whether the plan holds, `[R]`, and `check` of a row, `[N]`: another scores those for
    which it does not. None: it holds for all.
    """

    interpreter: Interpreter
    outputs: list[Any]
    evaluated: frozenset[str]
    target: Target
    reasons: dict[str, str] = field(default_factory=dict)
    safe: bool = False
    without: frozenset[str] = frozenset()
    condition: Node | None = None
    check: Node | None = None

    @property
    def task(self) -> Task:
        """What it was made for, at its own level."""
        return Task(self.interpreter.program.captured, self.level, self.workload, self.target, self.without)

    @property
    def results(self) -> list[Any]:
        """Its outputs, then on what it holds."""
        return [*self.outputs, *(n for n in (self.condition, self.check) if n is not None)]

    @property
    def conditional(self) -> bool:
        """Whether there are calls that it must not score."""
        return self.condition is not None or self.check is not None

    @property
    def nodes(self) -> list[Node]:
        """Everything it computes, operands first."""
        return live_nodes([o for o in self.results if isinstance(o, Node)])

    @property
    def per_call(self) -> list[Node]:
        """The part of it that calls compute; what is made once per item of a store is left out."""
        return [n for n in self.nodes if n.rate is Rate.WEIGHT or not self.workload.before(n.rate)]

    @property
    def stored(self) -> list[Node]:
        """What a store holds of an item for it."""
        return stored(self.outputs)

    def __str__(self) -> str:
        return graph_text(self.nodes)
