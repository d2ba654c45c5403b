"""Results that flags weigh, added up, as a choice among them.

Law: `sum_d [v = d] y_d` is `y_d` where v is d, and 0 where v is none of them, for numbers d that differ: of flags that
compare one value with other numbers one at most is true, and 0 y is 0 for every finite y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.compiler.demand.made import is_tensor, of_one_kind, sizes_of

aten = torch.ops.aten
MOVED = (aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.view.default, aten.reshape.default,
         aten._to_copy.default)  # fmt: skip
PARTS = (*MOVED, aten.select.int, aten.slice.Tensor)
NOT = (aten.logical_not.default, aten.bitwise_not.default)


@dataclass(frozen=True)
class Weighed:
    """A tensor where a value of the row, `[rows]` or `[rows, 1, ...]`, is a number, and 0 elsewhere."""

    way: fx.Node
    value: fx.Node
    number: Any

    def excludes(self, others: Sequence[Weighed]) -> bool:
        """Whether it is 0 wherever one of the others is not."""
        return all(same(self.value, x.value) and self.number != x.number for x in others)


def choices(node: fx.Node, rows: sympy.Symbol) -> tuple[list[list[Weighed]], list[Any]]:
    """Tensors of which one at most is not 0 in any row, and all else that is added up to a tensor."""
    if not _terms(node) or not node.meta["val"].is_floating_point() or _added_again(node):
        return [], []
    found = [(term, _weighed(term, rows) if of_one_kind(term, node) else None) for term in _addends(node)]
    chains: list[list[Weighed]] = []
    for own in (own for _, own in found if own):
        chain = next((c for c in chains if own.excludes(c)), None)
        if chain is None:
            chains.append(chain := [])
        chain.append(own)
    chains = [c for c in chains if len(c) > 1]
    return chains, [term for term, own in found if not any(own in c for c in chains)]


def _addends(node: fx.Node) -> list[Any]:
    terms, left = [], _terms(node)[::-1]
    while left:  # sums of a thousand pairs are as deep
        term = left.pop()
        more = _terms(term) if of_one_kind(term, node) and len(term.users) == 1 else []
        left += more[::-1]
        terms += [] if more else [term]
    return terms


def _terms(node: Any) -> list[Any]:
    """What an operator adds up; nothing if it is none that adds."""
    if node.target is aten.add.Tensor and not node.kwargs:
        return [term for term in node.args if term != 0]
    if node.target is aten.sum.dim_IntList and node.args[2:] in ((), (False,)):
        stack, axes = node.args[:2]
        if stack.target is aten.stack.default and len(stack.users) == 1:
            ways, axis = (*stack.args, 0)[:2]
            dims = len(sizes_of(stack))
            return list(ways) if [a % dims for a in axes] == [axis % dims] else []
    return []


def _added_again(node: fx.Node) -> bool:
    users = list(node.users)
    return (
        len(users) == 1
        and users[0].target is aten.add.Tensor
        and bool(_terms(users[0]))
        and of_one_kind(users[0], node)
    )


# -- one of them


def _weighed(term: fx.Node, rows: sympy.Symbol) -> Weighed | None:
    """`y * [v = d]`, or y where v is d and 0 elsewhere."""
    spelled = SPELLED.get(term.target)
    for way, flag, true in spelled(*term.args) if spelled else ():
        found = (
            _flag(flag, rows, true) if of_one_kind(way, term) and len(sizes_of(flag)) == len(sizes_of(term)) else None
        )
        if found:
            return Weighed(way, *found)
    return None


def _products(x: Any, y: Any) -> list[Any]:
    return [(x, y, True), (y, x, True)] if is_tensor(x) and is_tensor(y) else []


def _otherwise_none(flag: fx.Node, way: Any, other: Any) -> list[Any]:
    return [(way, flag, True)] if _is_none(other) else []


def _filled_with_none(way: fx.Node, flag: fx.Node, other: Any) -> list[Any]:
    return [(way, flag, False)] if _is_none(other) else []


def _is_none(value: Any) -> bool:
    """Whether it is 0, in all places."""
    if not is_tensor(value):
        return bool(value == 0)
    if value.target in ZEROS:
        return True
    if value.target in (aten.full.default, aten.full_like.default, aten.new_full.default):
        return bool(value.args[-1] == 0)
    return value.target in MOVED and _is_none(value.args[0])


SPELLED: Any = {
    aten.mul.Tensor: _products,
    aten.where.self: _otherwise_none,
    aten.where.ScalarOther: _otherwise_none,
    aten.masked_fill.Scalar: _filled_with_none,
}
ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)


def _flag(node: Any, rows: sympy.Symbol, true: bool) -> tuple[fx.Node, Any] | None:
    """The value and the number that are compared by a flag, 1 or 0, of which each row has one."""
    while is_tensor(node) and sizes_of(node)[:1] == [rows]:
        if node.target in (aten.eq.Scalar, aten.ne.Scalar):
            value, number = node.args
            own = sizes_of(value)[:1] == [rows] and {*sizes_of(value)[1:]} <= {1} and _exact(value, number)
            return (value, number) if own and (node.target is aten.eq.Scalar) is true else None
        if node.target not in (*MOVED, *NOT) or (node.target in NOT and node.meta["val"].dtype != torch.bool):
            return None
        true, node = true ^ (node.target in NOT), node.args[0]
    return None


def _exact(value: fx.Node, number: Any) -> bool:
    """Whether a number is itself in the value's dtype, and in what a model may be moved to, so that two stay two."""
    wide = value.meta["val"].dtype in (torch.int64, torch.int32)
    return float(number).is_integer() and abs(number) < (2**31 if wide else 128)


def same(x: Any, y: Any) -> bool:
    """Whether they are one value: the same part of the same tensor."""
    if not isinstance(x, fx.Node) or not isinstance(y, fx.Node) or x is y:
        return x is y or bool(x == y)
    alike = x.target is y.target and x.target in PARTS and len(x.args) == len(y.args) and x.kwargs == y.kwargs
    return alike and all(same(a, b) for a, b in zip(x.args, y.args, strict=True))
