"""Per captured operator: at which rate it is computed, what that costs before and after, and why the rest stayed.

A node of the plan belongs to the operator whose rule made it (`Node.source`). A matrix operator may keep its result as
a form, though, and leave its products to the operators that evaluate it: products made for an operator that has none
of its own belong to the nearest matrix operator before it, if that one did leave them; to one whose result is of both
sides, where there is such, for one of context alone beside it left none. Work on weights alone is done once per model
and counts nothing, before as after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from rankhoist.capture.operators import module_path
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.demand.made import is_tensor
from rankhoist.compiler.graph.node import Rate, aten
from rankhoist.compiler.graph.work import original_work
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.report.record import Amount, Operator


def make_operators(plan: Plan) -> list[Operator]:
    """Every operator that makes tensors, in graph order, and a last one for work that belongs to the outputs."""
    outcomes = plan.interpreter.outcomes
    before = _before(plan)
    levels = _levels(plan, before)
    work = _attributed(plan, before)
    found = [
        Operator(
            name=node.name,
            operator=str(node.target),
            module=module_path(node),
            rates=tuple(
                rate.name.lower() for rate in sorted(outcomes[node.name].rates if node.name in outcomes else ())
            ),
            level=levels.get(node.name),
            reason=_reason(plan, node) if work.candidate[node.name] or node.meta.get("val") is None else None,
            before=before[node.name],
            request=work.request[node.name],
            candidate=work.candidate[node.name],
        )
        for node in plan.interpreter.program.captured.graph.nodes
        if node.name in before
    ]
    rest = Operator(
        name="output",
        operator="",
        module="",
        rates=("pair",),
        level=None,
        reason="every result has one row per candidate",
        before=Amount(),
        request=_rest(work.request, before),
        candidate=_rest(work.candidate, before),
    )
    return [*found, rest] if rest.works else found


# -- before


def _before(plan: Plan) -> dict[str, Amount]:
    """Work per candidate of every operator as its author wrote it, of those too of which nothing is left."""
    program, outcomes = plan.interpreter.program, plan.interpreter.outcomes
    there = {n.name for n in program.graph.nodes}
    return {
        n.name: _original(plan, n)
        for n in program.captured.graph.nodes
        if n.name in outcomes or (n.op == "call_function" and is_tensor(n) and n.name not in there)
    }


def _original(plan: Plan, node: fx.Node) -> Amount:
    outcome = plan.interpreter.outcomes.get(node.name)
    if outcome is not None and outcome.rates <= {Rate.WEIGHT}:
        return Amount()
    program = plan.interpreter.program
    work = original_work(node, program.rows, plan.workload.candidates, program.lengths, program.places)
    value = node.meta["val"]
    first = value if isinstance(value, torch.Tensor) else next(v for v in value if isinstance(v, torch.Tensor))
    return Amount(work.multiply_adds, work.elements * first.dtype.itemsize)


# -- after


@dataclass(frozen=True)
class _Work:
    """Work per request and per candidate by operator name; names that are missing have none."""

    request: defaultdict[str, Amount]
    candidate: defaultdict[str, Amount]


def _attributed(plan: Plan, before: Mapping[str, Amount]) -> _Work:
    """The plan's work by the operator that it belongs to."""
    nodes = plan.nodes
    evaluated = {n.source for n in nodes if n.rate.per_candidate}
    multiplied = {n.source for n in nodes if n.rate.per_candidate and n.work.multiply_adds}
    # Behind a value that exists per candidate, products of candidates have been made; coefficients may reach further.
    matrix = {name for name, amount in before.items() if amount.multiply_adds}
    pairs = {name for name, o in plan.interpreter.outcomes.items() if Rate.PAIR in o.rates}
    differ = {name for name in plan.interpreter.outcomes if _per_candidate(plan, name)}
    own = matrix | (_sums_of_products(plan) & differ)
    candidate, request = (_nearest(plan, own, stop, pairs) for stop in (evaluated, set[str]()))
    work = {stage: defaultdict[str, Amount](Amount) for stage in ("weight", "request", "candidate")}
    for n in nodes:
        name = (candidate if n.rate.per_candidate else request).get(n.source, n.source)
        if name in multiplied or not n.work.multiply_adds or not _per_candidate(plan, n.source):
            name = n.source
        work[n.rate.stage][name] += Amount(n.work.multiply_adds, n.work.elements * n.dtype.itemsize)
    return _Work(work["request"], work["candidate"])


def _per_candidate(plan: Plan, name: str) -> bool:
    """Whether an operator's result has parts that differ per candidate; the outputs themselves do."""
    outcome = plan.interpreter.outcomes.get(name)
    return outcome is None or any(rate.per_candidate for rate in outcome.rates)


def _nearest(plan: Plan, own: Container[str], stop: Container[str], first: Container[str]) -> dict[str, str]:
    """Operator -> the nearest one before it that has products of its own, one in `first` before others; no way leads
    through those in `stop`.
    """
    found: dict[fx.Node, tuple[bool, int, int, str]] = {}
    for order, node in enumerate(plan.interpreter.program.captured.graph.nodes):
        if node.name in own:
            found[node] = (node.name not in first, 0, -order, node.name)
            continue
        reached = [found[x] for x in node.all_input_nodes if x in found and (not found[x][1] or x.name not in stop)]
        if reached:
            other, steps, place, name = min(reached)
            found[node] = (other, steps + 1, place, name)
    return {node.name: name for node, (*_, name) in found.items()}


def _sums_of_products(plan: Plan) -> set[str]:
    """Operators that are matrix operators in other words, `(q * k).sum(-1)`."""
    nodes = plan.interpreter.program.captured.graph.nodes
    return {n.name for n in nodes if n.target is aten.sum.dim_IntList and n.args[0].target is aten.mul.Tensor}


def _rest(work: dict[str, Amount], outcomes: Container[str]) -> Amount:
    """Work that is attributed to no operator."""
    return sum((amount for name, amount in work.items() if name not in outcomes), Amount())


# -- levels and reasons


def _levels(plan: Plan, before: Mapping[str, Amount]) -> dict[str, str]:
    """Operator -> the lowest level that leaves it less work per candidate; only what this plan moved."""
    moved = _moved(plan, before)
    levels: dict[str, str] = {}
    for level in (level for level in Level if Level.EXPAND < level < plan.level):
        lower = _moved(attempt(replace(plan.task, level=level)), before)
        levels = {name: level.name.lower() for name in moved & lower} | levels
    return {name: plan.level.name.lower() for name in moved} | levels


def _moved(plan: Plan, before: Mapping[str, Amount]) -> set[str]:
    """Operators on context that `plan` leaves less work per candidate: fewer multiply-adds, or as many and fewer bytes.

    What reads candidate inputs only may be shared or evaluated later, but no level can take it out of the stage.
    """
    left, outcomes = _attributed(plan, before).candidate, plan.interpreter.outcomes
    smaller = {name for name, amount in before.items() if _size(left[name]) < _size(amount)}
    return {n for n in smaller if n not in outcomes or not outcomes[n].rates <= {Rate.WEIGHT, Rate.ITEM}}


def _size(amount: Amount) -> tuple[int, int]:
    return amount.multiply_adds, amount.bytes


def _reason(plan: Plan, node: fx.Node) -> str:
    """Why an operator has work left per candidate: what its rule said when it declined, or what its result reads."""
    declined = plan.reasons.get(node.name)
    if declined:
        return declined
    outcome = plan.interpreter.outcomes.get(node.name)
    rates = outcome.rates if outcome else {Rate.PAIR}  # of ways that a request chooses, one stands for all
    if plan.level <= Level.LOOKUP and Rate.PAIR in rates:
        whose = f"level {plan.level.name.lower()}" if plan.level is plan.asked else "the plan predicted to be fastest"
        return f"{whose} runs it on all rows"
    if Rate.PAIR in rates:
        return "its result depends on context and candidate"
    if Rate.ITEM in rates:
        return "reads candidate inputs"
    return "its result is repeated for each candidate"
