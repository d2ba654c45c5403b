"""Per operator: which part of its operands a part of its result is made of.

Law: `f(x)[i] = f(x[i])` along every axis on which `f` computes each place by itself. An operator without a law is
computed as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from rankhoist.capture.operators import draws
from rankhoist.compiler.demand import along, boxes, moves, products, windows
from rankhoist.compiler.demand.boxes import Box, Part
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import Law, Made, Take, aligned, arguments, is_tensor, sizes_of
from rankhoist.compiler.graph.lengths import not_above
from rankhoist.compiler.rules.law import overloads

aten = torch.ops.aten
LawByConstants = Callable[[fx.Node, Box, Constants], Take | Made | None]


def part_of(node: fx.Node, box: Box, constants: Constants) -> Take | Made | None:
    """How a part of an operator's result is computed; None where that is not known."""
    if node.target in BY_CONSTANTS:
        return BY_CONSTANTS[node.target](node, box, constants)
    law = LAWS.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else _LOOK_THROUGH.get(node.target)
    if law is None and isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        law = pointwise
    if law is None or draws(node):
        return None
    return law(node, box)


# -- place by place


def pointwise(node: fx.Node, box: Box) -> Made:
    """`f(x, y)[i] = f(x[i], y[i])`, with what is broadcast as it is."""
    return Made(node.target, _broadcast(arguments(node), box), _broadcast(node.kwargs, box))


def _broadcast(value: Any, box: Box) -> Any:
    if is_tensor(value):
        return Take(value, aligned(value, box))
    if isinstance(value, list | tuple):
        return [_broadcast(v, box) for v in value]
    if isinstance(value, dict):
        return {k: _broadcast(v, box) for k, v in value.items()}
    return value


# -- shape


def view(node: fx.Node, box: Box) -> Made | None:
    """The same elements in order."""
    x = arguments(node)[0]
    inner = boxes.regrouped(box, sizes_of(x))
    return None if inner is None else Made(aten.reshape.default, (Take(x, inner), [boxes.width(a) for a in box]))


def permute(node: fx.Node, box: Box) -> Made:
    x, order = arguments(node)[0], arguments(node)[1]
    axes: list[Any] = [None] * len(box)
    for axis, dim in zip(box, order, strict=True):
        axes[dim] = axis
    return Made(node.target, (Take(x, tuple(axes)), order))


def transpose(node: fx.Node, box: Box) -> Made:
    axes = list(box)
    if node.target is aten.t.default:
        return Made(node.target, (Take(arguments(node)[0], tuple(reversed(axes))),))
    x, a, b = arguments(node)
    axes[a], axes[b] = axes[b], axes[a]
    return Made(node.target, (Take(x, tuple(axes)), a, b))


def unsqueeze(node: fx.Node, box: Box) -> Made:
    x, dim = arguments(node)
    axes = list(box)
    del axes[dim]
    return Made(node.target, (Take(x, tuple(axes)), dim))


def squeeze(node: fx.Node, box: Box) -> Made:
    x, sizes = arguments(node)[0], sizes_of(arguments(node)[0])
    given = arguments(node)[1] if len(arguments(node)) > 1 else range(len(sizes))
    named = {d % len(sizes) for d in (given if isinstance(given, list | tuple | range) else [given])}
    gone = sorted(d for d in named if sizes[d] == 1)
    own = iter(box)
    axes = tuple((Part(1),) if d in gone else next(own) for d in range(len(sizes)))
    return Made(aten.squeeze.dims, (Take(x, axes), gone))


def expand(node: fx.Node, box: Box) -> Made:
    x = arguments(node)[0]
    return Made(node.target, (Take(x, aligned(x, box)), [boxes.width(axis) for axis in box]))


def select(node: fx.Node, box: Box) -> Made | None:
    """`x[:, i]` reads place i."""
    x, dim, index = arguments(node)
    return _place(x, box, dim % (len(box) + 1), index)


def _place(x: fx.Node, box: Box, dim: int, index: Any) -> Made | None:
    size = sizes_of(x)[dim]
    if not isinstance(index, int):
        return None
    first = index if index >= 0 else boxes.plain(size + index)
    axes = list(box)
    axes.insert(dim, boxes.cut(size, first, first + 1))
    return Made(aten.select.int, (Take(x, tuple(axes)), dim, 0))


def slice_(node: fx.Node, box: Box) -> Take | Made | None:
    """`x[:, a:b]` reads places a to b."""
    x, dim, first, end, step = arguments(node)
    sizes = sizes_of(x)
    dim = dim % len(sizes)
    if any(isinstance(i, fx.Node) for i in (first, end)):
        return None
    size = sizes[dim]
    if step != 1:
        return _every(x, box, dim, range(*slice(first, end, step).indices(size))) if isinstance(size, int) else None
    if isinstance(size, int):
        return _moved(x, box, dim, slice(first, end).indices(size)[0])
    begins = first if first is None or first >= 0 else boxes.plain(size + first)
    return _moved(x, box, dim, begins or 0) if not_above(0, begins or 0) else None


def _every(x: fx.Node, box: Box, dim: int, places: range) -> Take | Made | None:
    """Some of every so many places: of an axis that has as many of each, they are one column of it."""
    inner, size, step = boxes.interval(box[dim]), sizes_of(x)[dim], places.step
    if inner is None:
        return None
    own, axes = places[slice(*inner)], list(box)
    if len(own) > 1 and size % step == 0:
        first, column = divmod(own[0], step)
        rows = boxes.cut(size // step, first, first + len(own))
        axes[dim] = (*rows, *boxes.cut(step, column, column + 1))
        return Take(x, tuple(axes))
    axes[dim] = boxes.cut(size, own[0], own[-1] + 1)
    taken = Take(x, tuple(axes))
    return taken if len(own) == 1 else Made(aten.slice.Tensor, (taken, dim, 0, own[-1] + 1 - own[0], step))


def _moved(x: fx.Node, box: Box, dim: int, by: int) -> Take | None:
    """A part of what begins at place `by` of an axis of `x`."""
    size, inner = sizes_of(x)[dim], boxes.interval(box[dim])
    if inner is None:
        return None
    axes = list(box)
    axes[dim] = boxes.cut(size, boxes.plain(inner[0] + by), boxes.plain(inner[1] + by))
    return Take(x, tuple(axes))


def item_of(node: fx.Node, box: Box) -> Take | Made | None:
    """One of several results: of a split it is a slice, of `unbind` a place, of others a part of a part of them."""
    several, index = arguments(node)
    if several.target in along.SEVERAL:
        if boxes.all_of(box):  # of all results at once
            return None
        made = along.SEVERAL[several.target](several, box)
        return Made(node.target, (replace(made, of=several), index)) if isinstance(made, Made) else None
    if several.target is aten.unbind.int:
        x, dim = arguments(several)
        return _place(x, box, dim % (len(box) + 1), index)
    if several.target not in SPLITS:
        return None
    x, _, dim = arguments(several)
    before = [t.shape[dim] for t in several.meta["val"][:index]]
    return _moved(x, box, dim % len(box), sum(before)) if all(isinstance(s, int) for s in before) else None


def cat(node: fx.Node, box: Box) -> Take | Made | None:
    """Those of its operands that the places are of."""
    tensors, dim = arguments(node)
    dim = dim % len(box)
    inner, widths = boxes.interval(box[dim]), [sizes_of(t)[dim] for t in tensors]
    if inner is None and not boxes.is_whole(box[dim]):
        return None
    takes, start = [], 0
    for t, size in zip(tensors, widths, strict=True):
        axes = list(box)
        axes[dim] = (Part(size),)
        if inner is not None:
            overlap = boxes.overlap(inner, start, size)
            if overlap is None:
                return None
            start = boxes.plain(start + size)
            if not_above(overlap[1], overlap[0]):
                continue
            axes[dim] = boxes.cut(size, *overlap)
        takes.append(Take(t, tuple(axes)))
    return takes[0] if len(takes) == 1 else Made(node.target, (takes, dim))


def stack(node: fx.Node, box: Box) -> Made | None:
    tensors, dim = arguments(node)
    dim = dim % len(box)
    inner = boxes.interval(box[dim])
    if inner is None:
        return None
    axes = list(box)
    del axes[dim]
    return Made(node.target, ([Take(t, tuple(axes)) for t in tensors[slice(*inner)]], dim))


def complex_of(node: fx.Node, box: Box) -> Made:
    """`[..., 2] -> [...]`: a number of each pair."""
    return Made(node.target, (Take(arguments(node)[0], (*box, (Part(2),))),))


def pairs_of(node: fx.Node, box: Box) -> Made | None:
    """`[...] -> [..., 2]`: both parts of a number."""
    *axes, parts = box
    return Made(node.target, (Take(arguments(node)[0], tuple(axes)),)) if boxes.is_whole(parts) else None


# -- lookups


def embedding(node: fx.Node, box: Box) -> Made | None:
    """Of fewer ids; a table is not copied for its columns."""
    table, ids, *others = arguments(node)
    if not boxes.is_whole(box[-1]):
        return None
    return Made(node.target, (Take(table, boxes.whole(sizes_of(table))), Take(ids, box[:-1]), *others), node.kwargs)


SPLITS = {*overloads("split split_with_sizes chunk tensor_split.sections tensor_split.indices")}
_LOOK_THROUGH: dict[Any, Law] = {operator.getitem: item_of}
_TABLE: dict[str, Law] = {
    "clone contiguous alias detach lift_fresh_copy _to_copy to.dtype to.dtype_layout dropout": pointwise,
    "where.ScalarOther where.ScalarSelf where.Scalar __or__ __and__": pointwise,
    "view.default reshape _unsafe_view flatten unflatten": view,
    "permute": permute,
    "transpose.int t": transpose,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "select.int": select,
    "slice.Tensor": slice_,
    "view_as_complex": complex_of,
    "view_as_real": pairs_of,
    "_conj resolve_conj complex polar": pointwise,
    "unfold": windows.unfold,
    "conv1d conv2d conv3d": windows.convolution,
    "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d": windows.pooling,
    "cat": cat,
    "stack": stack,
    "flip": moves.moved(moves.flipped),
    "roll": moves.moved(moves.rolled),
    "repeat tile": moves.moved(moves.repeated),
    "repeat_interleave.self_int": moves.moved(moves.repeated_each),
    "pad constant_pad_nd": moves.moved(moves.padded),
    "linear bilinear": products.linear,
    "cdist": products.distances,
    "mm bmm matmul addmm baddbmm": products.product,
    "einsum": products.einsum,
    "embedding": embedding,
}
BY_CONSTANTS: dict[Any, LawByConstants] = {
    aten.index.Tensor: moves.indexed,
    aten.index_select.default: moves.indexed,
    aten.scaled_dot_product_attention.default: products.attention,
}
LAWS: dict[Any, Law] = {op: law for names, law in (_TABLE | along.TABLE).items() for op in overloads(names)}
