"""Rows that a mask chooses, and that are put back. Law: `z[m] = f(x[m])` is `where(m, f(x), z)`, for f that computes
every row by itself.
"""

from __future__ import annotations

from rankhoist.compiler.algebra import orders
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law


def chosen(call: Call) -> Value:
    """`x[m]`, a mask over rows and places of each."""
    first, *others = call.value("indices")
    if others or first is None:
        raise Elsewhere("no mask is the one index")
    return call.chosen(call.form("self"), call.form(of=first))


def selected(call: Call) -> Value:
    """`x.masked_select(m)`, of as many axes."""
    value, mask = call.form("self"), call.form("mask")
    if len(value.layout) != len(mask.layout):
        raise Elsewhere(f"a mask of {mask.axes} selects from {value.axes}")
    return call.chosen(value, mask)


def put_back(call: Call) -> Form:
    """`z[m] = y`, y what the mask has chosen."""
    (first, *others), given = call.value("indices"), call.value("values")
    if others or not isinstance(given, orders.Chosen) or call.value("accumulate"):
        raise Elsewhere("puts elements at places that depend on the inputs")
    return given.put(call.form("self"), call.form(of=first))


def added_back(call: Call) -> Form:
    """`z.index_add(0, places, y)`, y what a mask has chosen, places along one of its axes."""
    given = call.value("source")
    if not isinstance(given, orders.Chosen) or call.value("dim") != 0 or call.value("alpha") != 1:
        raise Elsewhere("adds elements at places that depend on the inputs")
    return call.added(call.form("self"), 2, given)


def scattered_back(call: Call) -> Form:
    """`z.masked_scatter(m, y)`."""
    given = call.value("source")
    if not isinstance(given, orders.Chosen):
        raise Decline("puts elements of all rows one after the other where a mask is true")
    return given.put(call.form("self"), call.form("mask"))


LAWS = law("rows chosen by a mask", Level.REQUEST, {
    "index": chosen,
    "masked_select": selected,
    "index_put": put_back,
    "index_add": added_back,
    "masked_scatter": scattered_back,
}, blocks=Level.LINEAR, orders=True)  # fmt: skip
