"""Recurrences: from the state after the history, one step per event.

h'[t] = f(x'[t], h'[t - 1]): in one direction no state reads what comes later
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from rankhoist.compiler.growing.known import Known, Says
from rankhoist.compiler.growing.law import Law, operand
from rankhoist.compiler.growing.step import Step


def _time(node: fx.Node) -> int:
    """The axis of time of a recurrence over padded rows."""
    return 1 if node.args[8] else 0


def _runs_on(known: Known, node: fx.Node) -> bool:
    """Whether it goes in one direction over what is stable, from a state that stays."""
    x, states, *_ = node.args
    if len(node.args) != 9 or isinstance(x, list | tuple) or node.args[7] or node.args[6]:
        return False
    given = states if isinstance(states, list | tuple) else [states]
    stays = all(known[s].stable and not known[s].moves for s in given)  # type: ignore[index]
    return stays and known[x].stable and [*known.grows(x)] == [_time(node)]  # type: ignore[index, arg-type]


def says(known: Known, node: fx.Node) -> Says:
    """Of one result: all states, or the last."""
    made = operand(node)
    return Says(bool(node.args[1] == 0) and _runs_on(known, made))


def _went_on(step: Step, made: fx.Node) -> fx.Node:
    """The recurrence over the last positions, from the states that were last."""
    x, states, *others = made.args
    count = 2 if isinstance(states, list | tuple) else 1
    last = [step.keep(step.of_stage(operator.getitem, (made, i + 1))) for i in range(count)]
    given: Any = last if count == 2 else last[0]
    went = step.call(made.target, step.part(x, _time(made)), given, *fx.map_arg(others, step.whole))  # type: ignore
    for i in range(count):
        own = step.of_stage(operator.getitem, (made, i + 1))
        step.renewed[own] = step.call(operator.getitem, went, i + 1)
    return went


def part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    made = operand(node)
    if node.args[1] != 0 or not _runs_on(step.known, made) or axis != _time(made):
        return None
    return step.call(operator.getitem, _went_on(step, made), 0)


def whole(step: Step, node: fx.Node) -> fx.Node | None:
    made = operand(node)
    if node.args[1] == 0 or not _runs_on(step.known, made):
        return None
    return step.call(operator.getitem, _went_on(step, made), node.args[1])


LAW = Law(says, part, whole)
