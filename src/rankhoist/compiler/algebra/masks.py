"""Masks of positions whose number varies: which number all of a part is, whatever the lengths are.

Law: positions `a` to `b` hold numbers `a` to `b - 1`, so of two ranges that do not overlap all of one is below all of
the other. A causal mask over a history of any length hides the candidate behind it from all of the history.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from rankhoist.compiler.algebra.forms import EXACT
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.lengths import Length, not_above
from rankhoist.compiler.graph.node import Node, Size, aten, first_axis

Place = Any  # int | sympy.Expr
Range = tuple[Any, Any]  # the lowest and the highest: places, or one number twice
Region = tuple[tuple[Place, Place], ...]  # first and end along every axis after the rows


def number_of(memo: Memo, node: Node) -> Any:
    """The one number that all elements of a node are, or None."""
    found = _within(memo, node, tuple((0, _place(size)) for size in node.shape))
    return found[0] if found is not None and found[0] == found[1] and _is_number(found[0]) else None


def _is_number(x: Any) -> bool:
    return isinstance(x, bool | int | float)


def _place(size: Any) -> Place:
    """A size or an argument as a place."""
    size = size.expr if isinstance(size, Length | Size) else size
    return int(size) if isinstance(size, sympy.Integer) else size


def _within(memo: Memo, x: Any, region: Region) -> Range | None:
    """The lowest and the highest of a part of a node, or of a number; None if they are not known."""
    if not isinstance(x, Node):
        return (x, x) if _is_number(x) else None
    key = x.index, region
    if key not in memo.ranges:
        memo.ranges[key] = None  # of what is being looked for nothing is known
        rule = RULES.get(x.op) if x.rows_first or x.op in COUNTS else None
        memo.ranges[key] = rule(memo, x, region) if rule else None
    found: Range | None = memo.ranges[key]
    return found


# -- what positions are, and where they come from


def _filled(memo: Memo, node: Node, region: Region) -> Range | None:
    return _within(memo, node.args[1], region)


def _counted(memo: Memo, node: Node, region: Region) -> Range | None:
    start, step = (*node.args[:1], 1) if node.op is aten.arange.start else (0, 1)
    ((first, end),) = region
    low = _place(start) + first * step
    return low, low + (end - first) - 1


def _sliced(memo: Memo, node: Node, region: Region) -> Range | None:
    x, dim, start, _, *step = node.args
    axis = dim - first_axis(node)
    if axis < 0 or step not in ([], [1]) or (isinstance(start, int) and start < 0):
        return None
    first, end = region[axis]
    by = _place(start)
    return _within(memo, x, (*region[:axis], (first + by, end + by), *region[axis + 1 :]))


def _reshaped(memo: Memo, node: Node, region: Region) -> Range | None:
    """Axes of size 1 come and go."""
    x = node.args[0]
    own = iter([r for r, size in zip(region, node.shape, strict=True) if size != 1])
    if [s for s in x.shape if s != 1] != [s for s in node.shape if s != 1]:
        return None
    return _within(memo, x, tuple((0, 1) if size == 1 else next(own) for size in x.shape))


def _permuted(memo: Memo, node: Node, region: Region) -> Range | None:
    x, axes = node.args
    order_, skip = [a - first_axis(node) for a in axes], first_axis(node)
    if list(axes[:skip]) != list(range(skip)):
        return None
    places = dict(zip(order_[skip:], region, strict=True))
    return _within(memo, x, tuple(places[i] for i in range(len(region))))


def _broadcast(memo: Memo, node: Node, region: Region) -> Range | None:
    return _within(memo, node.args[0], _own(node.args[0], region))


def _own(x: Any, region: Region) -> Region:
    """The part of an operand that is broadcast to a part of the result."""
    if not isinstance(x, Node) or not x.shape:
        return ()
    inner = region[len(region) - len(x.shape) :]
    return tuple((0, 1) if size == 1 else r for size, r in zip(x.shape, inner, strict=True))


# -- what is computed of them


def _operands(memo: Memo, node: Node, region: Region) -> list[Range | None]:
    return [_within(memo, x, _own(x, region)) for x in node.args]


def _added(memo: Memo, node: Node, region: Region) -> Range | None:
    x, y = _operands(memo, node, region)
    if x is None or y is None or node.kwargs:
        return None
    if node.dtype is not torch.int64:
        return _exact([x[0], y[0]], x[0] + y[0] if node.op in ADDS else x[0] - y[0]) if x[0] == x[1] else None
    return (x[0] + y[0], x[1] + y[1]) if node.op in ADDS else (x[0] - y[1], x[1] - y[0])


def _compared(memo: Memo, node: Node, region: Region) -> Range | None:
    x, y = _operands(memo, node, region)
    if x is None or y is None:
        return None
    test = COMPARES[node.op]
    if all(map(_is_number, (*x, *y))) and x[0] == x[1] and y[0] == y[1]:
        return (test(x[0], y[0]),) * 2
    (low, high), (least, most) = x, y
    if test(1, 0) and not test(0, 1):  # is it larger? by one, if equal is not enough
        equal = int(test(0, 0))
        return _decided(not_above(most + 1 - equal, low), not_above(high, least - equal))
    if test(0, 1) and not test(1, 0):
        equal = int(test(0, 0))
        return _decided(not_above(high + 1 - equal, least), not_above(most, low - equal))
    return None


def _decided(yes: bool, no: bool) -> Range | None:
    return (yes, yes) if yes != no else None


def _chosen(memo: Memo, node: Node, region: Region) -> Range | None:
    """What the condition says, and either where both are the same."""
    condition, yes, no = node.args if node.op in WHERE else (node.args[1], node.args[2], node.args[0])
    which = _within(memo, condition, _own(condition, region))
    if which is not None and which[0] == which[1]:
        taken = yes if which[0] else no
        return _within(memo, taken, _own(taken, region))
    either = _within(memo, yes, _own(yes, region))
    return either if either == _within(memo, no, _own(no, region)) else None


def _computed(memo: Memo, node: Node, region: Region) -> Range | None:
    """Of numbers a number; for `and`, `or` and products one may be enough."""
    operands = _operands(memo, node, region)
    known = [x[0] for x in operands if x is not None and x[0] == x[1] and _is_number(x[0])]
    absorbing = ABSORBS.get(node.op)
    if absorbing is not None and node.dtype is torch.bool and absorbing in known:
        return absorbing, absorbing
    if len(known) < len(operands):
        return None
    made = node.op(*(torch.tensor(k) for k in known), **node.kwargs).item()  # type: ignore[operator]
    return _exact(known, made)


def _exact(given: Sequence[Any], made: Any) -> Range | None:
    """A number that no dtype rounds, or that its author wrote."""
    return (made, made) if made in EXACT or made in given else None


def _cast(memo: Memo, node: Node, region: Region) -> Range | None:
    found = _within(memo, node.args[0], region)
    if found is None or not all(map(_is_number, found)) or found[0] != found[1]:
        return found if node.dtype is torch.int64 and node.args[0].dtype is torch.int64 else None
    made = torch.tensor(found[0], dtype=torch.float64).to(node.dtype).item()
    return _exact(found, made)


COUNTS = {aten.arange.default, aten.arange.start}
WHERE = {aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar}
ADDS = {aten.add.Tensor, aten.add.Scalar}
COMPARES: dict[Any, Callable[[Any, Any], bool]] = {
    getattr(getattr(aten, name), kind): getattr(operator, name)
    for name in ("ge", "gt", "le", "lt", "eq", "ne")
    for kind in ("Tensor", "Scalar")
}
BOTH = {aten.bitwise_and, aten.logical_and, aten.__and__}
EITHER = {aten.bitwise_or, aten.logical_or, aten.__or__}
ABSORBS: dict[Any, bool] = {
    getattr(op, kind): absorbing
    for ops, absorbing in ((BOTH | {aten.mul}, False), (EITHER, True))
    for op in ops
    for kind in ("Tensor", "default")
    if kind in op.overloads()
}
RULES: dict[Any, Callable[[Memo, Node, Region], Range | None]] = {
    aten.full.default: _filled,
    **dict.fromkeys(COUNTS, _counted),
    aten.slice.Tensor: _sliced,
    **dict.fromkeys((aten.reshape.default, aten.view.default, aten.unsqueeze.default), _reshaped),
    aten.permute.default: _permuted,
    **dict.fromkeys((aten.expand.default, kernels.spread), _broadcast),
    **dict.fromkeys((*ADDS, aten.sub.Tensor, aten.sub.Scalar), _added),
    **dict.fromkeys(COMPARES, _compared),
    **dict.fromkeys((*WHERE, aten.masked_fill.Scalar, aten.masked_fill.Tensor), _chosen),
    **dict.fromkeys((*ABSORBS, aten.bitwise_not.default, aten.logical_not.default, aten.mul.Scalar), _computed),
    aten._to_copy.default: _cast,
}
