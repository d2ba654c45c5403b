"""Operators that only change axes. Law: a transpose, a fold of rows or an unfold changes the layout, blocks stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankhoist.compiler.algebra import folds, grid, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Form
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

# -- reshape


def reshape(call: Call) -> Form:
    """`view`, `reshape`, `flatten`: rows may fold with other axes and unfold again; one number has any shape."""
    number = grid.the_number(call.form())
    if number is not None:
        return grid.constant_form(call.builder, number, call.out.dtype, call.out.extents)
    return folds.to_shape(call.builder, call.form(), call.out.extents)


# -- axes


def transpose(call: Call) -> Form:
    """Two axes swapped: the layout changes, nothing moves."""
    value = call.form()
    order = list(range(len(value.layout)))
    i, k = value.place(call.value("dim0", "axis0")), value.place(call.value("dim1", "axis1"))
    order[i], order[k] = order[k], order[i]
    return _permuted(value, order)


def permute(call: Call) -> Form:
    """Axes reordered: the layout changes, nothing moves."""
    value = call.form()
    return _permuted(value, [value.place(a) for a in call.value("dims")])


def reverse_axes(call: Call) -> Form:
    """`t`, `numpy_T`: axes in reverse."""
    value = call.form()
    return _permuted(value, range(len(value.layout))[::-1])


def _permuted(value: Form, order: Sequence[int]) -> Form:
    """New axis i is old axis `order[i]`."""
    return replace(value, layout=tuple(value.layout[a] for a in order))


def unsqueeze(call: Call) -> Form:
    """A new axis of size 1."""
    value, axis = call.form(), call.value("dim")
    return moves.with_axes(value, [axis if axis >= 0 else axis + len(value.layout) + 1])


def squeeze(call: Call) -> Form:
    """Axes that the exported graph shows to be of size 1 go, whatever the row count of a call."""
    value, axes = call.form(), call.value("dim")
    chosen = range(len(value.layout)) if axes is None else [axes] if isinstance(axes, int) else axes
    for axis in sorted((value.place(a) for a in chosen), reverse=True):
        if value.extents[axis] == (1, False):
            for dim in sorted(value.layout[axis], reverse=True):
                value = moves.drop_dim(call.builder, value, dim)
    return value


LAWS = law("positions move", Level.LOOKUP, {
    # `view.dtype` is no reshape: another number of elements, from the same bytes
    "view.default reshape _unsafe_view flatten unflatten ravel _reshape_alias view_copy.default": reshape,
    "transpose swapaxes swapdims": transpose,
    "permute": permute,
    "t numpy_T": reverse_axes,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
})  # fmt: skip
