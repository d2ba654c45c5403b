"""A target for training: a step is a call forward and backward, and what is folded out of weights is folded in it.

The backward of a product is a product per operand that has a gradient; of all else it reads and writes about what the
forward did. Lookups write a gradient as large as their table, views one as large as what they look at, and what is
computed per request gathers its gradient from all candidates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.graph.operators import Timed, row
from rankhoist.compiler.targets import predict
from rankhoist.compiler.targets.profile import Profile
from rankhoist.compiler.targets.target import Target

NEVER = 2**62  # embedding tables: side by side they would be copied in every step
PARTS = {aten.slice.Tensor, aten.select.int}  # whose gradient is all of what they are a part of
NODE = 3  # calls that the backward of an operator costs beside its work: an estimate


def training(target: Target) -> Target:
    """The same machine for steps of training."""
    limits = replace(target.limits, tables=NEVER, ends=False)
    return replace(target, name=f"{target.name}-training", limits=limits, kind=kind, seconds=seconds)


def kind(node: Node) -> Any:
    """All that the prediction depends on."""
    return predict.kind(node), tuple(_learns(x) for x in node.inputs)


def seconds(node: Node, profile: Profile, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    """Seconds of one operator in one step, forward and backward; nothing is written over."""
    if node.rate is Rate.WEIGHT:
        if isinstance(node.op, str):
            return 0.0
        node, candidates, requests = replace(node, rate=Rate.REQUEST), 1, 1
    forward = predict.seconds(node, profile, candidates, requests)
    if isinstance(node.op, str) or not node.dtype.is_floating_point:
        return forward
    return forward + _backward(node, profile, candidates if node.rate.per_candidate else requests, forward)


def _backward(node: Node, profile: Profile, rows: Any, forward: Any) -> Any:
    learning = [x for x in node.inputs if _learns(x)]
    if not learning:
        return 0.0
    start = NODE * profile.call
    if node.work.multiply_adds:
        return start + len(learning[:2]) * forward
    if node.op in PARTS:
        return start + profile.streams(predict.bytes_of(learning[0], rows))
    known = row(node.op)
    if known.timed is Timed.ROWS or node.op is aten.expand.default:
        return start + profile.streams(predict.bytes_of(node, rows))
    if known.view or known.timed is Timed.VIEW:
        return start
    return start + forward + sum(profile.streams(predict.bytes_of(x, rows)) for x in learning if x.rate is Rate.WEIGHT)


def _learns(node: Node) -> bool:
    """Whether a gradient goes there: not to what is given."""
    return node.op not in ("input", "constant") and node.dtype.is_floating_point
