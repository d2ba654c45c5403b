"""Operators along some axes: each place of the others is computed by itself.

Law: `f(x)[:, i] = f(x[:, i])` for an f along the first axis.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import named_arguments, operator_name
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Part
from rankhoist.compiler.demand.made import Law, Made, Take, arguments, is_tensor, sizes_of
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import overloads


def along_dims(node: fx.Node, box: Box) -> Made | None:
    """`f` along the axes that `dim` says, the others by themselves; without it, over all."""
    x, *others = arguments(node)
    dims, sizes = named_arguments(node).get("dim"), sizes_of(x)
    if dims is None or dims == []:
        return None
    dims = {d % len(sizes) for d in (dims if isinstance(dims, list | tuple) else [dims])}
    own, keeps = iter(box), len(sizes) == len(box)
    axes: list[Axis] = []
    for d, size in enumerate(sizes):
        axis = next(own) if keeps or d not in dims else (Part(size),)
        if d in dims and not boxes.is_whole(axis):
            return None
        axes.append((Part(size),) if d in dims else axis)
    return Made(node.target, (Take(x, tuple(axes)), *others), node.kwargs)


def norm(node: fx.Node, box: Box) -> Made | None:
    """Of the last axes together."""
    x, shape, *others = arguments(node)
    last = len(box) - len(shape)
    if not boxes.all_of(box[last:]):
        return None
    weights = [Take(w, boxes.whole(sizes_of(w))) if is_tensor(w) else w for w in others]
    return Made(node.target, (Take(x, box), shape, *weights), node.kwargs)


def softmax(node: fx.Node, box: Box) -> Made | None:
    """Of one place it is 1, whatever finite number is there, and its logarithm 0."""
    x, dim = arguments(node)[:2]
    if sizes_of(x)[dim] != 1 or not _finite(x):
        return along_dims(node, box)
    value, shape = node.meta["val"], [boxes.width(a) for a in box]
    number = 0.0 if "log" in operator_name(node) else 1.0
    return Made(aten.full.default, (shape, number), dict(dtype=value.dtype, device=value.device))


def _finite(node: fx.Node) -> bool:
    """Whether nothing that it is made of writes an infinity, as masks do, or takes a logarithm."""
    before, waiting = {node}, [node]
    while waiting:
        new = {*waiting.pop().all_input_nodes} - before
        before, waiting = before | new, [*waiting, *new]
    numbers = pytree.tree_leaves([(n.args, n.kwargs) for n in before])
    logs = any(n.op == "call_function" and "log" in getattr(n.target, "__name__", "") for n in before)
    return not logs and not any(isinstance(x, float) and math.isinf(x) for x in numbers)


def group_norm(node: fx.Node, box: Box) -> Made | None:
    """Of a place of the first axis all together."""
    x, groups, *others = arguments(node)
    if not boxes.all_of(box[1:]):
        return None
    weights = [Take(w, boxes.whole(sizes_of(w))) if is_tensor(w) else w for w in others]
    return Made(node.target, (Take(x, box), groups, *weights), node.kwargs)


def gather(node: fx.Node, box: Box) -> Made | None:
    """`gather(x, dim, i)[box]` is of the index in that box, and of x there, but along `dim` of all."""
    x, dim, index = arguments(node)[:3]
    sizes, own = sizes_of(x), sizes_of(index)
    every = dim % len(sizes)
    if any(a != b for d, (a, b) in enumerate(zip(sizes, own, strict=True)) if d != every):  # of x the first places
        return None
    axes = tuple((Part(size),) if d == every else box[d] for d, size in enumerate(sizes))
    return Made(node.target, (Take(x, axes), dim, Take(index, box)), node.kwargs)


def by_channel(node: fx.Node, box: Box) -> Made:
    """Place by place, beside a number for every channel of axis 1, or one for all."""
    x, *others = arguments(node)
    numbers = [
        Take(w, (box[1],) if sizes_of(w) == [sizes_of(x)[1]] else boxes.whole(sizes_of(w))) if is_tensor(w) else w
        for w in others
    ]
    return Made(node.target, (Take(x, box), *numbers), node.kwargs)


TABLE: dict[str, Law] = {
    "softmax.int _softmax log_softmax.int _log_softmax": softmax,
    "cumsum cumprod logcumsumexp fft_fft fft_ifft fft_rfft fft_irfft": along_dims,
    "sum.dim_IntList mean.dim prod.dim_int amax amin logsumexp any.dim all.dim argmax argmin": along_dims,
    "var.dim var.correction std.dim std.correction linalg_vector_norm norm.ScalarOpt_dim": along_dims,
    "gather": gather,
    "layer_norm rms_norm": norm,
    "group_norm": group_norm,
    "prelu": by_channel,
}
_SEVERAL: dict[str, Law] = {
    "max.dim min.dim sort topk kthvalue median.dim mode cummax cummin var_mean.dim var_mean.correction": along_dims,
    "_native_batch_norm_legit_no_training": by_channel,
}
SEVERAL: dict[Any, Law] = {op: law for names, law in _SEVERAL.items() for op in overloads(names)}
