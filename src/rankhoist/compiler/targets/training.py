"""A target for training: a step is a call forward and backward, and what is folded out of weights is folded in it.

The backward of a product is a product per operand that has a gradient, that of other operators a pass over their result
for each, and one more that adds up where the operand was repeated; sums hand their gradient on. Lookups write a
gradient as large as their table, views one as large as what they look at.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.graph.operators import Timed, row
from rankhoist.compiler.lower.over import overwritten_in_training
from rankhoist.compiler.targets import predict
from rankhoist.compiler.targets.profile import Profile
from rankhoist.compiler.targets.target import Target

NEVER = 2**62  # embedding tables: side by side they would be copied in every step
OUTER = 64  # columns: a product of so many by one number per row pays its start, as measured
PARTS = {aten.slice.Tensor, aten.select.int}  # whose gradient is all of what they are a part of
NODE = 3  # calls that the backward of an operator costs beside its work: an estimate
READ = 0.5  # of a pass that writes as much: one that adds up


def training(target: Target) -> Target:
    """The same machine for steps of training."""
    limits, *tried = (
        replace(own, tables=NEVER, outer=OUTER, trained=True, ends=False, attended=False)
        for own in (target.limits, *target.tried)
    )
    return replace(
        target,
        name=f"{target.name}-training",
        limits=limits,
        kind=kind,
        seconds=seconds,
        over=overwritten_in_training,
        tried=tuple(own for own in tried if own != limits),
    )


def kind(node: Node) -> Any:
    """All that the prediction depends on."""
    return predict.kind(node), tuple(x.learns for x in node.inputs)


def seconds(node: Node, profile: Profile, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    """Seconds of one operator in one step, forward and backward."""
    if node.rate is Rate.WEIGHT:
        if isinstance(node.op, str):
            return 0.0
        node, candidates, requests = replace(node, rate=Rate.REQUEST), 1, 1
    rows = candidates if node.rate.per_candidate else requests
    if node.op is kernels.spread:  # broadcast where it is read
        return profile.view + (NODE * profile.call + _added_up(node, profile, rows) if node.inputs[0].learns else 0.0)
    forward = predict.seconds(node, profile, candidates, requests, over=over)
    if isinstance(node.op, str) or not node.dtype.is_floating_point:
        return forward
    return forward + _backward(node, profile, rows, forward)


def _backward(node: Node, profile: Profile, rows: Any, forward: Any) -> Any:
    learning = [x for x in node.inputs if x.learns]
    if not learning:
        return 0.0
    start = NODE * profile.call
    if node.work.multiply_adds:
        return start + len(learning[:2]) * forward
    if node.op in PARTS:
        return start + profile.streams(predict.bytes_of(learning[0], rows))
    known = row(node.op)
    if known.timed is Timed.ROWS or node.op is aten.expand.default:
        return start + _added_up(node, profile, rows)
    if known.view or known.timed is Timed.VIEW:
        return start
    if known.timed in (Timed.GATHER, Timed.PICK, Timed.KEPT):
        return start + forward + sum(profile.streams(predict.bytes_of(x, rows)) for x in learning)
    passes = 0 if known.forgets and not known.recalls else len(learning)
    smaller = sum(math.prod(x.sizes) < math.prod(node.sizes) for x in learning)
    return start + passes * profile.streams(predict.bytes_of(node, rows)) + smaller * _added_up(node, profile, rows)


def _added_up(node: Node, profile: Profile, rows: Any) -> Any:
    """A gradient of many rows, or elements, as that of one."""
    return READ * profile.streams(predict.bytes_of(node, rows))
