"""Rows in another order. Law: for f that computes every row by itself, `f(x[p], y[p]) = f(x, y)[p]` for any order p of
all rows.

So what stands between an order and the one that undoes it is computed of rows as they are, and once per request where
it is the request's. Which f compute every row by itself is known by their laws, which hold whatever rows there are.
What has no law is given the rows in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from rankhoist.capture.operators import draws
from rankhoist.compiler.algebra.forms import Form, plain
from rankhoist.compiler.algebra.memo import Outcome
from rankhoist.compiler.algebra.orders import Chosen, InOrder, Permutation, Permuted, RowNumber, as_tensor
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.values import TensorValue, Value, as_form, flat, mapped, tensors_in
from rankhoist.compiler.graph.node import Rate, aten

ByLaw = Callable[[fx.Node, Any, Any], tuple[Value, Outcome]]


def order(
    originals: OriginalOperators, node: fx.Node, args: list[Value], kwargs: dict[str, Value], of: Permutation | None,
    back: bool,
) -> Permutation:  # fmt: skip
    """The order of rows that an operator makes, the last of its results: `of` or what undoes it, else a new one."""

    def made() -> Form:
        *_, form = flat(originals.fallback(node, args, kwargs))
        return as_form(form)

    def take(value: Form, places: Form) -> Form:
        rows, at = originals.b.rowwise(originals.node(value), Rate.PAIR), originals.node(places)
        taken = originals.b.call(aten.index_select.default, (rows, 0, at), Rate.PAIR, rows.shape, rows.dtype)
        return plain(taken, value.dtype, value.layout)

    *_, promised = flat(originals.promised(node))
    if of is None:
        return Permutation(promised.dtype, object(), False, made, take)
    return Permutation(promised.dtype, of.order, of.back is not back, made, take)


def as_tensors(value: Any) -> Any:
    """Arguments with tensors in place of orders, of rows in one, and of those that a mask chooses."""
    return mapped(value, InOrder | Chosen, as_tensor)


def by_law(law: ByLaw, node: fx.Node, args: Any, kwargs: Any) -> tuple[Value, Outcome]:
    """What a law makes of an operator; of rows in one order, what it makes of them as they are, in that order."""
    operands = tensors_in((args, kwargs))
    orders = [v.by for v in operands if isinstance(v, Permuted)]
    if orders and not draws(node) and all(_follows(v, orders[0]) for v in operands):
        value, outcome = law(node, *(mapped(own, Permuted, lambda v: v.value) for own in (args, kwargs)))
        if outcome.law and all(v is None or isinstance(v, Form) for v in flat(value)):
            return mapped(value, Form, lambda v: orders[0].of(v) if v.has_rows else v), outcome
    return law(node, args, kwargs)


def _follows(value: TensorValue, by: Permutation) -> bool:
    """Whether rows of it are in this order, in any order, or each is told by its number."""
    if isinstance(value, Permuted):
        return value.by.order is by.order and value.by.back is by.back
    return isinstance(value, RowNumber) or (isinstance(value, Form) and (not value.has_rows or value.of_weights))
