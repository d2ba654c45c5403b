"""The blueprint of a hoisted model: everything but its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from rankhoist.capture import Interface, OpaqueCall, Program
from rankhoist.compiler.emit import Stages, emit
from rankhoist.compiler.plan import Plan, Plans, PlanSummary
from rankhoist.report import Report
from rankhoist.report.make import make_report
from rankhoist.runtime.opaque import Kept, kept_modules


@dataclass(frozen=True)
class Blueprint:
    """What scoring needs beside weights; never changed, so that copies of a model share it.

    Attributes:
        interface: how the model is called.
        plans: the plans in numbers, and where each is used.
        with_store: the same for plans of calls whose items have a store; None where no input is marked as the item's.
        stages: the plans as graphs, in the dtype and on the device of the interface.
        pinned: placeholders of the weights that the plans were made from (indices, masks, what its Python asked).
        report: makes the report.
        program: the captured program; None where the model was loaded from a file, which does not hold it.
        opaque: calls of modules that are kept as they are, by name.
        modules: these modules, by path, whatever their weights are.
    """

    interface: Interface
    plans: Plans[PlanSummary]
    stages: Stages
    pinned: frozenset[str]
    report: Callable[[], Report]
    program: Program | None = None
    with_store: Plans[PlanSummary] | None = None
    opaque: Mapping[str, OpaqueCall] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)

    def kept(self, original: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Kept]:
        """The modules that are kept, with these weights."""
        return kept_modules(self.opaque, self.modules, self.interface, original, dtype, device)

    @property
    def unread(self) -> frozenset[str]:
        """Placeholders of buffers that no call reads and no plan was made from: what they hold is not the model's."""
        if self.program is None:
            return frozenset()
        read = {leaf for stage in self.stages.all for leaf in stage.leaves}
        of_modules = {
            placeholder
            for name, placeholder in self.interface.state.items()
            if name.startswith(tuple(f"{path}." for path in self.modules))
        }
        return frozenset(n for n, w in self.program.weights.items() if not w.trained) - read - self.pinned - of_modules

    @staticmethod
    def of(program: Program, plans: Plans[Plan], with_store: Plans[Plan] | None = None) -> Blueprint:
        """Emit the graphs of a captured program's plans, which share a builder."""
        b, others = plans.main.interpreter.b, () if with_store is None else with_store.plans
        own, stored = ([p.outputs for p in some] for some in (plans.plans, others))
        conditions, checks = ([getattr(p, name) for p in plans.plans] for name in ("condition", "check"))
        stages = emit(own, b.constants, program.rows, program.training, stored, conditions, checks)
        interpreters = [plan.interpreter for plan in (*plans.plans, *others)]
        pinned = program.asked.union(*(i.memo.pinned | i.program.asked for i in interpreters))
        report, kept = partial(make_report, plans, with_store), (program.opaque, program.modules)
        return Blueprint(program.interface, plans, stages, pinned, report, program, with_store, *kept)
