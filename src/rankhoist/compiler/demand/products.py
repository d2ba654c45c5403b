"""Products: a part of a result reads the rows and columns that it is of. Law: `(x y)[i, j] = x[i] y[:, j]`."""

from __future__ import annotations

import math

import torch
from torch import fx

from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Part, Size
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import Made, Take, aligned, arguments, is_tensor, sizes_of
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.products import einsum_axes


def linear(node: fx.Node, box: Box) -> Made:
    """`(x W^T)[i, j] = x[i] W[j]^T`; of two inputs `(x W y)[i, j] = x[i] W[j] y[i]`."""
    count = 2 if node.target is aten.bilinear.default else 1
    inputs, (w, *bias) = arguments(node)[:count], arguments(node)[count:]
    *rows, columns = box
    own = [Take(x, (*rows, (Part(sizes_of(x)[-1]),))) for x in inputs]
    biases = [Take(b, (columns,)) if is_tensor(b) else b for b in bias]
    return Made(node.target, (*own, Take(w, (columns, *boxes.whole(sizes_of(w)[1:]))), *biases))


def distances(node: fx.Node, box: Box) -> Made:
    """`|x_i - y_j|` of points i and j, batches alike."""
    x, y, *others = arguments(node)
    *batch, row, column = box
    inner = (Part(sizes_of(x)[-1]),)
    takes = [Take(t, aligned(t, (*batch, points, inner))) for t, points in ((x, row), (y, column))]
    return Made(node.target, (*takes, *others))


def product(node: fx.Node, box: Box) -> Made | None:
    """`(x y)[i, j] = x[i] y[:, j]`, batches alike; `baddbmm` and `addmm` have what is added first."""
    added = node.target in (aten.addmm.default, aten.baddbmm.default)
    x, y = arguments(node)[1:3] if added else arguments(node)[:2]
    own, other = sizes_of(x), sizes_of(y)
    if min(len(own), len(other)) < 2:
        return None
    *batch, row, column = box
    inner = (Part(own[-1]),)
    left, right = (aligned(t, (*batch, *rest)) for t, rest in ((x, (row, inner)), (y, (inner, column))))
    takes = [Take(x, left), Take(y, right)]
    before = [Take(arguments(node)[0], aligned(arguments(node)[0], box))] if added else []
    return Made(node.target, (*before, *takes), node.kwargs)


def einsum(node: fx.Node, box: Box) -> Made:
    """Of an axis that the result has, the same part of every operand."""
    equation, operands, *path = arguments(node)
    axes, result = einsum_axes(equation, [len(sizes_of(x)) for x in operands])
    read = dict(zip(result, box, strict=True))
    takes = [
        Take(
            x, tuple(read[n] if n in read and size != 1 else (Part(size),) for n, size in zip(own, sizes, strict=True))
        )
        for x, own, sizes in zip(operands, axes, map(sizes_of, operands), strict=True)
    ]
    return Made(node.target, (equation, takes, *path), node.kwargs)


def attention(node: fx.Node, box: Box, constants: Constants) -> Made | None:
    """Each query by itself over all keys; of causal ones, over those before it; over one key it is the key's value.

    Of keys that a mask hides from all of the queries none is read.
    """
    q, k, v, mask, dropout, causal = arguments(node)
    *batch, queries, columns = box
    if sizes_of(k)[-2] == 1 and mask is None and not node.kwargs.get("enable_gqa"):
        own = Take(v, aligned(v, (*batch, (Part(1),), columns)))
        return Made(aten.expand.default, (own, [boxes.width(a) for a in box]))
    gqa = node.kwargs.get("enable_gqa")  # fewer heads of keys than of queries
    if gqa and not boxes.all_of(tuple(batch)):
        return None
    keys: Axis = (Part(sizes_of(k)[-2]),)
    if causal and not boxes.is_whole(queries):
        inner, count = boxes.interval(queries), sizes_of(k)[-2]
        seen = boxes.overlap((0, inner[1]), 0, count) if inner else None
        if inner is None or seen is None or boxes.plain(inner[1] - inner[0]) != 1:
            return None
        keys, causal = boxes.cut(count, *seen), False
    if is_tensor(mask) and (shown := _shown(mask, queries, sizes_of(k)[-2], constants)):
        keys, all_of_them = shown
        mask = None if all_of_them else mask
    batches = [boxes.whole(sizes_of(t)[:-2]) if gqa else batch for t in (q, k, v)]
    width: Axis = (Part(sizes_of(q)[-1]),)
    ends = ((q, (queries, width)), (k, (keys, width)), (v, (keys, columns)))
    takes = [Take(t, aligned(t, (*b, *end))) for b, (t, end) in zip(batches, ends, strict=True)]
    if is_tensor(mask):
        mask = Take(mask, aligned(mask, (*batch, queries, keys)))
    return Made(node.target, (*takes, mask, dropout, causal), node.kwargs)


def _shown(mask: fx.Node, queries: Axis, count: Size, constants: Constants) -> tuple[Axis, bool] | None:
    """The keys from the first that queries see to the last, and whether all see all of these; None where all are read.

    `exp(-inf) = 0`: what is hidden weighs nothing, if something else is seen.
    """
    value, rows = constants.value(mask), boxes.interval(queries)
    if value is None or rows is None or value.dim() < 2 or value.shape[-1] != count:
        return None
    seen = value if value.dtype == torch.bool else value != -math.inf
    own = slice(*rows) if value.shape[-2] > 1 else slice(None)
    seen, value = seen[..., own, :].flatten(0, -2), value[..., own, :].flatten(0, -2)
    if not seen.any(1).all():
        return None
    places = seen.any(0).nonzero().flatten().tolist()
    first, last = places[0], places[-1]
    between = value[:, first : last + 1]
    plain = bool(between.all() if value.dtype == torch.bool else not between.any())
    if (first, last + 1) == (0, count) and not plain:
        return None
    constants.decides(mask)
    return boxes.cut(count, first, last + 1), plain
