"""The blueprint of a hoisted model: everything but its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rankhoist.capture import Interface, Program
from rankhoist.compiler.emit import Stages, emit
from rankhoist.compiler.plan import Plan, Plans, PlanSummary
from rankhoist.report import Report
from rankhoist.report.make import make_report


@dataclass(frozen=True)
class Blueprint:
    """What scoring needs beside weights; never changed, so that copies of a model share it.

    Attributes:
        interface: how the model is called.
        plans: the plans in numbers, and where each is used.
        stages: the plans as graphs, in the dtype and on the device of the interface.
        pinned: placeholders of the buffers that the plans were made from (indices, masks).
        report: makes the report.
        program: the captured program; None where the model was loaded from a file, which does not hold it.
    """

    interface: Interface
    plans: Plans[PlanSummary]
    stages: Stages
    pinned: frozenset[str]
    report: Callable[[], Report]
    program: Program | None = None

    @property
    def unread(self) -> frozenset[str]:
        """Placeholders of buffers that no call reads and no plan was made from: what they hold is not the model's."""
        if self.program is None:
            return frozenset()
        read = {leaf for stage in self.stages.all for leaf in stage.leaves}
        return frozenset(n for n, w in self.program.weights.items() if not w.trained) - read - self.pinned

    @staticmethod
    def of(program: Program, plans: Plans[Plan]) -> Blueprint:
        """Emit the graphs of a captured program's plans."""
        b = plans.main.interpreter.b
        stages = emit([p.outputs for p in plans.plans], b.constants, program.rows, program.training)
        pinned = frozenset(name for plan in plans.plans for name in plan.interpreter.memo.pinned)
        return Blueprint(program.interface, plans, stages, pinned, partial(make_report, plans), program)
