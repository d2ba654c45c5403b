"""Rows in an order that data decides, as by the lengths of their histories. Law: `f(x[p])[q] = f(x)` where q undoes
p, for f that computes every row by itself.
"""

from __future__ import annotations

import torch

from rankhoist.compiler.algebra import orders
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

NUMBERS = (torch.int64, torch.int32)


def sorted_rows(call: Call) -> Value:
    """`x.sort(0)`, x `[rows]`: the rows of x in an order. Where x is an order itself, it is what undoes that one."""
    given = call.value("self")
    if isinstance(given, orders.Permutation):
        if call.value("descending"):
            raise Elsewhere("sorts an order of rows the other way round")
        order = call.order(given, back=True)
        return [orders.RowNumber(given.dtype), order] if len(call.outs) > 1 else order
    value = call.form("self")
    if value.layout != ((ROW,),):
        raise Elsewhere(f"{value.axes} is no number per row")
    order = call.order()
    return [order.of(value), order] if len(call.outs) > 1 else order


def in_order(call: Call) -> Value:
    """`x[p]`: rows of x in the order p; `x[p][q]` is x where q undoes p."""
    axis, by = _chosen(call)
    x = call.value("self")
    undone = isinstance(x, orders.Permuted) and by.undoes(x.by)
    value = call.form(of=x.value) if undone else call.form("self")
    if value.layout[axis] != (ROW,):
        raise Decline(f"axis {axis} of {value.axes} is read in an order of rows")
    return value if undone else by.of(value)


def _chosen(call: Call) -> tuple[int, orders.Permutation]:
    """The axis that is read, by an order of rows."""
    axes = call.value("dim") if call.name == "index_select" else 0
    given = [call.value("index")] if call.name == "index_select" else call.value("indices")
    chosen = [(i + axes, by) for i, by in enumerate(given) if by is not None]
    if len(chosen) != 1 or not isinstance(chosen[0][1], orders.Permutation):
        raise Elsewhere("no order of rows is read by")
    return chosen[0]


def put_back(call: Call) -> Value:
    """`y[p] = arange(rows)` is what undoes p, whatever y `[rows]` was."""
    places = call.value("index") if call.name == "scatter" else call.value("indices")[0]
    source = call.value("src", "values")
    if (
        not isinstance(places, orders.Permutation)
        or not isinstance(source, orders.RowNumber)
        or call.value("accumulate")
    ):
        raise Elsewhere("puts elements at places that depend on the inputs")
    if not source.own_row or source.behind or call.out.extents != [(1, True)] or call.out.dtype not in NUMBERS:
        raise Decline(f"makes {call.out.axes} of row numbers in an order")
    return call.order(places, back=True)


def same_order(call: Call) -> Value:
    """An order that is copied, moved or cast to other whole numbers."""
    given = call.value("self")
    if not isinstance(given, orders.Permutation):
        raise Elsewhere("no order of rows")
    if call.out.extents != [(1, True)] or call.out.dtype not in NUMBERS:
        raise Decline(f"makes {call.out.axes} of {call.out.dtype} of an order of rows")
    return call.order(given)


LAWS = law("rows in another order", Level.REQUEST, {
    "sort argsort": sorted_rows,
    "index index_select": in_order,
    "index_put scatter.src": put_back,
    "_to_copy clone": same_order,
}, blocks=Level.LINEAR, orders=True)  # fmt: skip
