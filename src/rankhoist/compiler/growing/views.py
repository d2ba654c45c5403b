"""Views, and what joins or picks along an axis.

another order of axes, or cut elsewhere: the last positions of an outermost axis stay the last ones
x'[i] = x[i], x'[-1] is new; cat([a, x'])[t] = cat([a, x])[t] where a stays
"""

from __future__ import annotations

import operator
import sys
from typing import Any

from torch import fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of
from rankhoist.compiler.growing.known import Known, Says
from rankhoist.compiler.growing.law import Law, argument, operand, steady
from rankhoist.compiler.growing.step import Step

Moves = dict[int, int]  # axis of the result -> of the operand


def _moves(known: Known, node: fx.Node) -> Moves | None:
    """Where axes that grow come from; None where a view makes something else of them."""
    x = operand(node)
    name, dim, grows = name_of(node.target), known.dim(x), known.grows(x)
    if name == "permute":
        order = [d % dim for d in argument(node, 1, "dims")]
        return {i: d for i, d in enumerate(order) if d in grows}
    if name in ("transpose", "t", "numpy_T"):
        a, b = (argument(node, i, f"dim{i - 1}", i - 1) % dim for i in (1, 2)) if dim > 1 else (0, 0)
        return {a if i == b else b if i == a else i: i for i in grows}
    if name == "expand":
        shift = known.dim(node) - dim
        return {i + shift: i for i in grows}
    if name in ("select", "slice", "narrow", "index_select"):
        axis = argument(node, 1, "dim", 0) % dim
        return {i - (name == "select" and i > axis): i for i in grows if i != axis}
    return _cut_elsewhere(known, node, x)


def _cut_elsewhere(known: Known, node: fx.Node, x: fx.Node) -> Moves | None:
    """The axes of a view that keeps the order of all elements: an outermost axis may take in what lies inside of it."""
    old, new = known.sizes(x), known.sizes(node)
    mine, made = known.grows(x), known.grows(node)
    if any(0 in size for size in (*old, *new)):
        return None
    found: Moves = {}
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = i, j
        p = q = _ONE
        while True:
            if p == q and (i > a or j > b):
                break
            if i < len(old) and (j >= len(new) or i == a or p < q):
                p, i = _times(p, old[i]), i + 1
            elif j < len(new):
                q, j = _times(q, new[j]), j + 1
            else:
                return None
        inside, outside = _outermost(old, mine, a, i), _outermost(new, made, b, j)
        if (inside is None) != (outside is None) or -1 in (inside, outside):
            return None
        if inside is not None and outside is not None:
            found[outside] = inside
    return found


_ONE: tuple[int, ...] = (1, 1, 1, 1)


def _times(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _outermost(sizes: list[tuple[int, ...]], grows: dict[int, int], start: int, end: int) -> int | None:
    """The axis of a group that grows, if there is one; -1 if it is not the outermost one."""
    own = [i for i in range(start, end) if sizes[i] != _ONE]
    growing = [i for i in own if i in grows]
    if not growing:
        return None
    return growing[0] if growing == own[:1] else -1


def view_says(known: Known, node: fx.Node) -> Says:
    x = operand(node)
    moves, own = _moves(known, node), known[x].says
    if moves is None or not steady_but_sizes(known, node):
        return Says(uniform=own.uniform)
    back, steps = {old: new for new, old in moves.items()}, known.grows(node)
    later = {
        (back[q], back[k]): value
        for (q, k), value in own.later.items()
        if q in back and k in back and steps.get(back[q]) == steps.get(back[k]) == 1
    }
    places = own.places
    if places is not None:
        axes = {a: c for a, c in places[0].items() if c}
        kept = {*axes} <= {*back} and all(steps.get(back[a]) == 1 for a in axes)
        places = ({back[a]: c for a, c in axes.items()}, places[1]) if kept else None
    return Says(known[x].stable, places, later, own.uniform)


def steady_but_sizes(known: Known, node: fx.Node) -> bool:
    """Whether all it reads is stable but for sizes, which are those of its result."""
    return all(known[x].stable or known[x].number for x in node.all_input_nodes)


def view_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    moves = _moves(step.known, node)
    if moves is None or axis not in moves:
        return None
    x = operand(node)
    last = step.part(x, moves[axis])
    if name_of(node.target) not in ("reshape", "view", "_unsafe_view"):
        return step.placed(node, [last, *fx.map_arg(node.args[1:], step.whole)])
    count = step.fresh(step.known.grows(node)[axis])
    sizes = [count if i == axis else fx.map_arg(s, step.whole) for i, s in enumerate(argument(node, 1, "shape"))]
    return step.call(aten.reshape.default, last, sizes)


def expand_part(step: Step, node: fx.Node, axis: int) -> fx.Node:
    """What is repeated along a new axis is the same at its last positions."""
    x = operand(node)
    own = axis - (step.known.dim(node) - step.known.dim(x))
    grows = own >= 0 and own in step.known.grows(x)
    given = step.part(x, own) if grows else step.whole(x)
    there: Any = -1 if grows else step.fresh(step.known.grows(node)[axis])
    sizes = [there if i == axis else s for i, s in enumerate(argument(node, 1, "size"))]
    asked = [s if i == axis else fx.map_arg(s, step.whole) for i, s in enumerate(sizes)]
    return step.call(aten.expand.default, given, asked)


# -- one place, or some


def select_says(known: Known, node: fx.Node) -> Says:
    x, axis, index = operand(node), argument(node, 1, "dim", 0), argument(node, 2, "index")
    own = view_says(known, node)
    first = not isinstance(index, fx.Node) and index >= 0
    return own if axis % known.dim(x) not in known.grows(x) or first else Says()


def select_whole(step: Step, node: fx.Node) -> fx.Node | None:
    """The last place lies among the last ones."""
    x = operand(node)
    axis = argument(node, 1, "dim", 0) % step.known.dim(x)
    if axis not in step.known.grows(x) or argument(node, 2, "index") != -1:
        return None
    return step.call(aten.select.int, step.part(x, axis), axis, -1)


def _sliced(node: fx.Node) -> tuple[Any, Any, Any, Any]:
    """Axis, start, end and step."""
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    return argument(node, 1, "dim", 0), start or 0, sys.maxsize if end is None else end, argument(node, 4, "step", 1)


def slice_says(known: Known, node: fx.Node) -> Says:
    x = operand(node)
    axis, start, end, stride = _sliced(node)
    axis %= known.dim(x)
    if axis not in known.grows(x) and axis not in known.grows(node):
        return view_says(known, node)
    if isinstance(start, fx.Node) or start < 0 or stride != 1 or not known[x].stable:
        return Says()
    if axis in known.grows(x):  # from a place that there is at any length, to the end
        whole = isinstance(end, int) and end == sys.maxsize
        return Says(whole and known.least(x, axis) >= start, uniform=known[x].says.uniform)
    return Says(True, uniform=known[x].says.uniform)  # the first ones of a table


def slice_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    x = operand(node)
    own, _, end, stride = _sliced(node)
    if own % step.known.dim(x) != axis:
        return view_part(step, node, axis)
    if not step.known[node].stable:
        return None
    if axis in step.known.grows(x):
        return step.part(x, axis)
    end, count = step.whole(end), step.fresh(step.known.grows(node)[axis])
    return step.call(aten.slice.Tensor, step.whole(x), axis, step.call(operator.sub, end, count), end, stride)


def slice_whole(step: Step, node: fx.Node) -> fx.Node | None:
    x = operand(node)
    axis, start, end, _ = _sliced(node)
    axis %= step.known.dim(x)
    if axis not in step.known.grows(x) or start != -1 or end != sys.maxsize:
        return None
    return step.last(step.part(x, axis), axis, 1)


# -- joined


def cat_says(known: Known, node: fx.Node) -> Says:
    parts: Any = node.args[0]
    axis = argument(node, 1, "dim", 0) % known.dim(node)
    first = [x for x in parts[:-1] if name_of(node.target) == "cat" and axis in known.grows(x)]
    return Says(steady(known, node) and not first)


def cat_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    parts: Any = node.args[0]
    known, stacked = step.known, name_of(node.target) == "stack"
    along = argument(node, 1, "dim", 0) % known.dim(node)
    if axis == along:
        return step.part(parts[-1], axis) if known[node].stable and not stacked else None
    own = axis - (stacked and axis > along)
    return step.call(node.target, [step.part_or_whole(x, own) for x in parts], along)


def pad_says(known: Known, node: fx.Node) -> Says:
    x = operand(node)
    return Says(known[x].stable and all(not _pads(known, node, x, a)[1] for a in known.grows(x)))


def pad_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    x = operand(node)
    if not step.known[node].stable and any(_pads(step.known, node, x, axis)):
        return None
    pads = list(node.args[1])  # type: ignore[arg-type]
    if 2 * (step.known.dim(x) - 1 - axis) < len(pads):
        pads[2 * (step.known.dim(x) - 1 - axis)] = 0
    return step.placed(node, [step.part(x, axis), pads, *node.args[2:]])


def _pads(known: Known, node: fx.Node, x: fx.Node, axis: int) -> tuple[int, int]:
    """In front and behind; with numbers alone."""
    pads: Any = node.args[1]
    mode = argument(node, 2, "mode", "constant") if name_of(node.target) == "pad" else "constant"
    place = 2 * (known.dim(x) - 1 - axis)
    if mode != "constant" or any(isinstance(p, fx.Node) or p < 0 for p in pads):
        return 1, 1
    return (pads[place], pads[place + 1]) if place < len(pads) else (0, 0)


VIEWS = Law(view_says, view_part)
LAWS = {
    "permute transpose t numpy_T reshape view _unsafe_view flatten unsqueeze index_select": VIEWS,
    "expand": Law(view_says, expand_part),
    "select": Law(select_says, view_part, select_whole),
    "slice": Law(slice_says, slice_part, slice_whole),
    "cat stack": Law(cat_says, cat_part),
    "pad constant_pad_nd": Law(pad_says, pad_part),
}
