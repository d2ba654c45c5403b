"""Between which numbers a mask lies, whatever the ids are that it is made of: `-1e9 (1 + pad)` is -1e9 at most.

A guess of what may be hidden, not a proof: what products make are scores, and trained numbers are biases, which are
taken to be 0. Whether a score is hidden is found out when there is one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.known import LARGEST, MASKING, MOVES, by_rows, known, moved
from rankhoist.compiler.graph.lengths import varies
from rankhoist.compiler.graph.node import Node, aten, first_axis

BETWEEN = MASKING | {  # their extremes are where their operands' are
    aten.rsub, aten.neg, aten.maximum, aten.minimum, aten.clamp, aten.clamp_max, aten.clamp_min, aten._to_copy,
    aten.logical_not, aten.bitwise_not,
}  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """The least and the largest that each element of a node may be, in its dtype and over one row."""

    least: Tensor
    largest: Tensor


def largest(evaluator: Evaluator, node: Node) -> float:
    """The largest that an element of a node may be; infinity or no number where nothing is known of one."""
    if math.prod(size for size in node.shape if not varies([size])) > LARGEST:
        return math.inf
    return float(_ends(evaluator, node).largest.double().amax())


def _ends(evaluator: Evaluator, node: Node) -> Ends:
    found = known(evaluator, node)
    if found is not None and bool(found.sure.all()):
        return Ends(found.values, found.values)
    if varies(node.shape) or any(varies(x.shape) for x in node.inputs):
        return _of_any_length(evaluator, node)
    shape = [1] * first_axis(node) + list(node.shape)
    if by_rows(node) and node.op in MOVES:
        return _moved(evaluator, node)
    if by_rows(node) and isinstance(node.op, torch._ops.OpOverload) and node.op.overloadpacket in BETWEEN:
        return _of_corners(evaluator, node)
    return Ends(*(torch.tensor(end, dtype=node.dtype).expand(shape) for end in _unknown(node)))


def _unknown(node: Node) -> tuple[float, float]:
    if node.dtype == torch.bool:
        return False, True
    if node.dtype.is_floating_point or node.dtype.is_complex:
        return (-math.inf, math.inf) if node.op == "input" else (0.0, 0.0)
    whole = torch.iinfo(node.dtype)
    return whole.min, whole.max


def _of_any_length(evaluator: Evaluator, node: Node) -> Ends:
    """The same ends for all elements."""
    shape = [1] * first_axis(node) + [1 if varies([size]) else size for size in node.shape]
    if node.op in MOVES:
        first = node.args[0]
        ends = [_ends(evaluator, x) for x in (first if isinstance(first, list | tuple) else [first])]
        found = min(e.least.amin().item() for e in ends), max(e.largest.amax().item() for e in ends)
    elif isinstance(node.op, torch._ops.OpOverload) and node.op.overloadpacket in BETWEEN:
        corners = _of_corners(evaluator, node)
        found = corners.least.amin().item(), corners.largest.amax().item()
    else:
        found = _unknown(node)
    return Ends(*(torch.tensor(end, dtype=node.dtype).expand(shape) for end in found))


def _moved(evaluator: Evaluator, node: Node) -> Ends:
    """Elements keep their ends wherever they go."""
    own = {x.index: _ends(evaluator, x) for x in node.inputs}

    def least(x: Node) -> Tensor:
        return own[x.index].least

    def most(x: Node) -> Tensor:
        return own[x.index].largest

    return Ends(moved(node, least, least), moved(node, most, least))


def _of_corners(evaluator: Evaluator, node: Node) -> Ends:
    """The operator at every combination of its operands' ends."""
    kwargs = {k: v for k, v in node.kwargs.items() if k != "device"}
    given = [_ends(evaluator, a) if isinstance(a, Node) else a for a in node.args]
    corners = itertools.product(*((x.least, x.largest) if isinstance(x, Ends) else (x,) for x in given))
    op: Callable[..., Tensor] = node.op  # type: ignore[assignment]
    made = torch.stack([op(*corner, **kwargs) for corner in corners])
    return Ends(made.amin(0), made.amax(0))
