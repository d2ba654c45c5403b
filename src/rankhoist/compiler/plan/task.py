"""What is to be planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankhoist.capture import Program
from rankhoist.compiler.algebra.call import Law
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.demand import narrowed
from rankhoist.compiler.rules import CONDITIONAL, all_rules, rules_without
from rankhoist.compiler.targets import Target, this_machine


@dataclass(frozen=True)
class Task:
    """What a plan is made for: a captured program, how much of it may be hoisted, which calls, and where they run.

    `without` names laws that are switched off.
    """

    program: Program
    level: Level
    workload: Workload
    target: Target = field(default_factory=this_machine)
    without: frozenset[str] = frozenset()

    @property
    def interpreted(self) -> Program:
        """The program as this level reads it: at `full` without what nobody reads."""
        if self.level is not Level.FULL:
            return self.program.captured
        return narrowed(self.program, supposing=not (self.workload.stored or self.without & CONDITIONAL))

    @property
    def laws(self) -> Mapping[Any, Sequence[Law]]:
        """Operator -> the laws that may be applied, the best first."""
        return rules_without(self.without) if self.without else all_rules()
