"""Distances of points, or coordinates of points, that are known at different rates.

Law: `|x - y|^2 = sum_b |x_b - y_b|^2` over blocks b of coordinates, and, where torch itself does so, of many points,
`|x - y|^2 = |x|^2 - 2 x y + |y|^2`.
"""

from __future__ import annotations

from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

MANY = 25  # points on either side, from which on torch multiplies matrices
ALWAYS, NEVER = 1, 2  # as `compute_mode` has it


def distances(call: Call) -> Value:
    """`cdist` of power 2 where an axis of points or of coordinates holds both context and candidate."""
    x, y = (call.tidy(call.form(name)) for name in ("x1", "x2"))
    cut = [len(f.dims[f.dim(-1)]) > 1 for f in (x, y)]
    if call.value("p") != 2 or not x.arithmetic or not (x.mixed or y.mixed):
        raise Elsewhere(f"all of {x.axes} and all of {y.axes} is known at one rate, or meets by another power")
    mode, points = call.value("compute_mode"), (x.extents[-2], y.extents[-2])
    by_product = mode == ALWAYS or (mode != NEVER and any(rows or size > MANY for size, rows in points))
    if by_product and not any(cut):  # a distance that is 0 would be rounded otherwise
        raise Elsewhere(f"the coordinates of {x.axes} and {y.axes} are known at one rate, and torch multiplies them")
    x = moves.with_axes(x, [len(x.layout) - 1])
    y = moves.with_axes(y, [len(y.layout) - 2])
    if not by_product:
        return _root(call, _summed(call, call.each(aten.square.default, call.each(aten.sub.Tensor, x, y))))
    products = [_summed(call, grid.multiply(call.builder, pair, x.dtype)) for pair in ([x, x], [x, y], [y, y])]
    squares = call.settled(grid.total(call.builder, products, x.dtype, (1.0, -2.0, 1.0)))
    return _root(call, call.each(aten.clamp_min.default, squares, 0))


def _summed(call: Call, form: Form) -> Form:
    """Over the coordinates."""
    return grid.sum_dims(call.builder, form, [form.dim(-1)])


def _root(call: Call, squares: Form) -> Form:
    return call.each(aten.sqrt.default, call.settled(squares))


LAWS = law("distances over blocks", Level.LINEAR, {"cdist": distances})
