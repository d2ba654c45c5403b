"""Products, attention and convolutions.

y'[m, n] = sum_k a'[m, k] b'[k, n]: a new m reads its own row of a' and all of b'
y'[m] = y[m] for an old m where new k are none, or a'[m, k] = 0 for them
attention of an old query is what it was where new keys are hidden from it; a new query reads all keys
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of
from rankhoist.compiler.growing.along import hides
from rankhoist.compiler.growing.known import Known, Says
from rankhoist.compiler.growing.law import Law, Path, argument, operand, operands, replaced, steady
from rankhoist.compiler.growing.step import Step

Labels = list[Any]  # of every axis


def _labels(known: Known, node: fx.Node) -> tuple[dict[Path, Labels], Labels] | None:
    """Of every operand, by where it stands, and of the result: what is summed has a label that the result lacks."""
    name, given = name_of(node.target), [*operands(node.args)]
    dims = {path: known.dim(x) for path, x in given}
    made = list(range(-known.dim(node), 0))  # of the result, from the right
    if name in ("linear", "linear_onto"):
        first, weight = ((0,), (1,)) if name == "linear" else ((1,), (2,))
        found = {first: [*made[:-1], "k"], weight: [-1, "k"][2 - dims[weight] :]}
        if dims[weight] != 2 or dims[first] != len(made):
            return None
        beside = [path for path in dims if path not in found]
        return found | {path: made[len(made) - dims[path] :] for path in beside}, made
    if name in ("matmul", "bmm", "mm", "mv", "baddbmm", "addmm"):
        start = int(name in ("baddbmm", "addmm"))
        a, b = (start,), (start + 1,)
        summed = {(0,): made[len(made) - dims[(0,)] :]} if start else {}
        if any(isinstance(x, fx.Node) for x in node.kwargs.values()) or min(dims[a], dims[b]) < 2:
            return None
        batch = made[:-2]
        return summed | {
            a: [*batch[len(batch) + 2 - dims[a] :], -2, "k"],
            b: [*batch[len(batch) + 2 - dims[b] :], "k", -1],
        }, made
    if name == "einsum" and "." not in str(node.args[0]):
        left, right = str(node.args[0]).replace(" ", "").split("->")
        return {(1, i): list(own) for i, own in enumerate(left.split(","))}, list(right)
    return None


def says(known: Known, node: fx.Node) -> Says:
    found = _labels(known, node)
    if found is None or not steady(known, node):
        return Says()
    labels, made = found
    given = dict(operands(node.args))
    growing = {(path, labels[path][axis]): axis for path, x in given.items() for axis in known.grows(x)}
    summed = {label for _, label in growing if label not in made}
    return Says(all(_unread(known, given, growing, made, label) for label in summed))


def _unread(known: Known, given: dict[Path, fx.Node], growing: dict[Any, int], made: Labels, summed: Any) -> bool:
    """Whether an old result reads nothing of what is new along an axis that is summed: it is multiplied by 0."""
    return any(
        hides(known, given[path], query, growing[path, summed], 0.0)
        for (path, label), query in growing.items()
        if label in made and (path, summed) in growing
    )


def part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    found = _labels(step.known, node)
    if found is None:
        return None
    labels, made = found

    def own(path: Path, x: fx.Node) -> fx.Node:
        places = [i for i, label in enumerate(labels[path]) if label == made[axis]]
        return step.part_or_whole(x, places[0]) if places else step.whole(x)

    return step.placed(node, replaced(node.args, own))


# -- attention


def attention_says(known: Known, node: fx.Node) -> Says:
    return Says(steady(known, node) and _hidden(known, node))


def _hidden(known: Known, node: fx.Node) -> bool:
    """Whether what is new among the keys is hidden from all old queries, and nothing else grows."""
    query, key, value, mask, causal = _attention(node)
    along = [known.dim(x) - 2 for x in (query, key, value)]
    grows = [{*known.grows(x)} for x in (query, key, value)]
    if not any(grows[1:]):
        return True
    if any(own != {axis} for own, axis in zip(grows, along, strict=True)):
        return False
    if causal:
        return known.sizes(query)[along[0]] == known.sizes(key)[along[1]]
    if mask is None:
        return False
    false = known[mask].at[0].dtype == torch.bool
    dim = known.dim(mask)
    return {*known.grows(mask)} == {dim - 2, dim - 1} and hides(
        known, mask, dim - 2, dim - 1, 0.0 if false else -torch.inf
    )


def attention_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    """New queries over all keys."""
    query, key, value, mask, causal = _attention(node)
    known = step.known
    if axis != known.dim(query) - 2 or axis not in known.grows(query):
        return None
    if causal and known.sizes(query)[axis] != known.sizes(key)[known.dim(key) - 2]:
        return None
    last = step.part(query, axis)
    own: fx.Node | None
    if causal:
        own = _triangle(step, query, axis)
    else:
        own = None if mask is None else step.part_or_whole(mask, known.dim(mask) - 2)
    args = [last, step.whole(key), step.whole(value), own, 0.0, False]
    scale, shared = argument(node, 6, "scale"), argument(node, 7, "enable_gqa", False)
    return step.call(node.target, *args, scale=scale, enable_gqa=shared)


def _triangle(step: Step, query: fx.Node, axis: int) -> fx.Node:
    """The mask of the last queries: what lies up to their places."""
    count, total = step.fresh(step.known.grows(query)[axis]), step.length(query, axis)
    before = step.length(query, axis, before=True)
    kwargs = {"dtype": torch.bool, "device": step.device}
    full = step.call(aten.full.default, [count, total], True, **kwargs)
    return step.call(aten.tril.default, full, before)


def _attention(node: fx.Node) -> tuple[Any, Any, Any, Any, bool]:
    """Queries, keys, values, mask, and whether the mask is the triangle."""
    query, key, value = node.args[:3]
    return query, key, value, argument(node, 3, "attn_mask"), bool(argument(node, 5, "is_causal", False))


# -- convolutions along a history


def convolution_says(known: Known, node: fx.Node) -> Says:
    """Padding inside of the operator lies behind the history as well, and moves."""
    x = operand(node)
    return Says(steady(known, node) and _window(known, node) is not None and [*known.grows(x)] == [2])


def _window(known: Known, node: fx.Node) -> int | None:
    """How many earlier positions a position reads, for a convolution of stride 1 without padding."""
    stride, padding, dilation = (
        argument(node, 3, "stride", 1),
        argument(node, 4, "padding", 0),
        argument(node, 5, "dilation", 1),
    )
    plain = [[v] if isinstance(v, int) else v for v in (stride, padding, dilation)]
    if isinstance(padding, str) or plain[0] != [1] or plain[1] != [0]:
        return None
    return int(plain[2][0] * (known.sizes(operand(node, 1))[2][0] - 1))


def convolution_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    x = operand(node)
    window = _window(step.known, node)
    if axis != 2 or window is None:
        return None
    count = step.call(operator.add, step.fresh(step.known.grows(x)[axis]), window)
    given = [step.last(step.whole(x), axis, count), *fx.map_arg(node.args[1:], step.whole)]
    return step.placed(node, given)


LAWS = {
    "linear linear_onto matmul bmm mm baddbmm addmm einsum": Law(says, part),
    "scaled_dot_product_attention": Law(attention_says, attention_part),
    "conv1d": Law(convolution_says, convolution_part),
}
