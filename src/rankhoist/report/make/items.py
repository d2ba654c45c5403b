"""What plans for a store of items do at each of the four rates, and what they keep of an item."""

from __future__ import annotations

import math
from collections import defaultdict

from rankhoist.compiler.graph.node import Node, Rate
from rankhoist.compiler.plan import Plan, Plans
from rankhoist.report.record import Amount, Items, Kept


def make_items(plans: Plans[Plan], without: Plan) -> Items:
    """Of the main plan, beside the one `without` a store; the store has what all plans read of an item."""
    plan = plans.main
    work = defaultdict[str, Amount](Amount)
    for n in plan.nodes:
        if n.rate is not Rate.WEIGHT:
            work[plan.workload.stage(n.rate)] += Amount(n.work.multiply_adds, n.work.elements * n.dtype.itemsize)
    kept = {n.index: n for p in plans.plans for n in p.stored}.values()
    return Items(
        room=plan.workload.item_bytes or 0,
        kept=tuple(_kept(n) for n in kept),
        request=work["request"],
        item=work["item"],
        pair=work["candidate"],
        milliseconds=float(plan.target.predicted(plan.per_call, plan.outputs, *_sizes(plan))) * 1e3,
        milliseconds_without=without.cost.seconds * 1e3,
    )


def _sizes(plan: Plan) -> tuple[int, int]:
    return plan.workload.candidates, plan.workload.requests


def _kept(node: Node) -> Kept:
    name = str(node.args[0]) if isinstance(node.op, str) else node.source
    dtype = str(node.dtype).removeprefix("torch.")
    return Kept(name, tuple(map(str, node.shape)), dtype, math.prod(node.sizes) * node.dtype.itemsize)
