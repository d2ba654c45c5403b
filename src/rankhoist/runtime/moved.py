"""Plans for where a model moves to: another device or dtype is another target, with another best plan."""

from __future__ import annotations

import warnings
from dataclasses import replace

from rankhoist.compiler.plan import Plan, make_plans, plans_with_store
from rankhoist.compiler.targets import Target, with_replays
from rankhoist.errors import HoistingWarning
from rankhoist.runtime.blueprint import Blueprint


def for_target(blueprint: Blueprint, target: Target | None) -> Blueprint:
    """The plans that it holds for a target; new ones where the captured program is at hand; else those it has, and a
    warning. Where nothing is known of a target (None), they are as good as any.
    """
    plans = blueprint.plans
    if target is None or target.name == plans.target:
        return blueprint
    if target.name in plans.elsewhere:
        return _held(blueprint, target)
    if blueprint.program is not None and isinstance(plans.main, Plan):
        return _made_anew(blueprint, plans.main, target)
    warnings.warn(
        f"its plans are for {plans.target}, and it moves to {target.name}: it scores the same, perhaps not as fast as "
        f"it could; hoist it with targets=['{target.name}'], or `tune` it there",
        HoistingWarning,
        stacklevel=2,
    )
    return blueprint


def for_replays(blueprint: Blueprint, target: Target) -> Blueprint:
    """The same where calls stay where they are and are recorded; what is not planned for that is as good as before."""
    if target.name in blueprint.plans.elsewhere:
        return _held(blueprint, target)
    if target.name != blueprint.plans.target and isinstance(blueprint.plans.main, Plan):
        return _made_anew(blueprint, blueprint.plans.main, target)
    return blueprint


def _held(blueprint: Blueprint, target: Target) -> Blueprint:
    plans = blueprint.plans
    elsewhere = {name: ranges for name, ranges in plans.elsewhere.items() if name != target.name}
    elsewhere[plans.target] = plans.ranges
    ranges = plans.elsewhere[target.name]
    moved = replace(plans, ranges=ranges, predicted=None, target=target.name, elsewhere=elsewhere)
    return replace(blueprint, plans=moved)


def _made_anew(blueprint: Blueprint, main: Plan, target: Target) -> Blueprint:
    """Also for calls that are recorded there, if there are two kinds of them."""
    program = blueprint.program
    if program is None or main.safe:
        return blueprint  # there is no other
    others = [t for t in with_replays([target]) if t.name != target.name]
    made = make_plans(replace(main.task, level=main.asked, target=target), others)
    room = None if blueprint.with_store is None else blueprint.with_store.main.workload.item_bytes
    with_store = plans_with_store(made, room)
    return replace(Blueprint.of(program, made, with_store), interface=blueprint.interface)
