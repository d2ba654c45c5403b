"""The product of two factors, by the operator that carries it out: elementwise, by a matrix, or by a read."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from rankhoist.compiler.algebra.forms import Factor, Label, Labels
from rankhoist.compiler.algebra.gathers import before_gather
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized
from rankhoist.compiler.graph.node import OFFSETS, OWNER, Node, Op, Rate, aten, first_axis, join


class Roles(NamedTuple):
    """What the labels of a product of x and y do: `[batch, outer, inner] x [batch, inner, width]`.

    Attributes:
        batch: of both, and kept.
        outer: of x alone.
        inner: of both, and summed.
        width: of y alone.
    """

    batch: list[Label]
    outer: list[Label]
    inner: list[Label]
    width: list[Label]

    @staticmethod
    def of(x: Factor, y: Factor, keep: Collection[Label]) -> Roles:
        """Those of two factors that have no label of their own that is summed."""
        both = [label for label in x.labels if label in y.labels]
        return Roles(
            [label for label in both if label in keep],
            [label for label in x.labels if label not in y.labels],
            [label for label in both if label not in keep],
            [label for label in y.labels if label not in x.labels],
        )

    @property
    def swapped(self) -> Roles:
        """Those of y times x."""
        return Roles(self.batch, self.width, self.inner, self.outer)

    @property
    def result(self) -> Labels:
        """The labels of the product."""
        return (*self.batch, *self.outer, *self.width)

    @property
    def multiply_adds(self) -> Sized:
        """Of one row."""
        return math.prod(map(size, self))


def product(builder: Builder, x: Factor, y: Factor, keep: Collection[Label]) -> Factor:
    """`sum over labels not kept of x * y`, by one elementwise or matrix product, or by a read."""
    for chosen, value in ((x, y), (y, x)):
        if chosen.place in value.labels and chosen.place not in keep:
            return _read(builder, chosen, value, keep)
    found = before_gather(builder, x, y, keep, product)
    if found is not None:
        return found
    if (y.node.rate, len(y.labels)) > (x.node.rate, len(x.labels)):
        x, y = y, x
    x = sum_out(builder, x, set(keep) | set(y.labels))
    y = sum_out(builder, y, set(keep) | set(x.labels))
    roles = Roles.of(x, y, keep)
    if not roles.inner:
        labels = _union(x, y)
        sides = arrange(builder, x, labels), arrange(builder, y, labels)
        return Factor(builder.pointwise(aten.mul.Tensor, sides, x.node.dtype), labels)
    shared = y.node.rate is Rate.WEIGHT or (y.node.rate is Rate.REQUEST and x.node.rate.per_candidate)
    if shared and not roles.batch:
        return _linear(builder, x, y, roles)
    return _matmul(builder, x, y, roles)


def add(builder: Builder, x: Factor, y: Factor) -> Factor:
    """Sum of two factors; either may lack labels of the other."""
    labels = _union(x, y)
    node = builder.pointwise(aten.add.Tensor, (arrange(builder, x, labels), arrange(builder, y, labels)), x.node.dtype)
    return Factor(node, labels)


def scaled(builder: Builder, f: Factor, scale: float) -> Factor:
    """A number times a factor."""
    if scale == 1.0:
        return f
    return Factor(builder.pointwise(aten.mul.Tensor, (f.node, scale), f.node.dtype), f.labels)


def sum_out(builder: Builder, f: Factor, keep: Collection[Label]) -> Factor:
    """Sum over the labels that are not kept."""
    gone = [i for i, x in enumerate(f.labels) if x not in keep]
    if not gone:
        return f
    shape = [x.size for x in f.labels if x in keep]
    left = tuple(x for x in f.labels if x in keep)
    if all(f.labels[i].size == 1 for i in gone):
        return Factor(builder.reshape(f.node, shape), left)
    axes = [i + first_axis(f.node) for i in gone]
    node = builder.call(aten.sum.dim_IntList, (f.node, axes), f.node.rate, shape, f.node.dtype)
    return Factor(node, left)


def size(labels: Collection[Label]) -> Sized:
    """Elements of a row with these labels."""
    return math.prod(label.size for label in labels)


# -- axes in the order that an operator takes them in


def arrange(builder: Builder, f: Factor, labels: Sequence[Label]) -> Node:
    """The factor with its axes in the order of `labels`, of size 1 where it lacks one."""
    own = [x for x in labels if x in f.labels]
    node = builder.permute(f.node, [f.labels.index(x) for x in own])
    return builder.reshape(node, [x.size if x in f.labels else 1 for x in labels])


def _folded(builder: Builder, f: Factor, *axes: Sequence[Label]) -> Node:
    """The factor with one axis for some of its labels each."""
    node = arrange(builder, f, [x for labels in axes for x in labels])
    return builder.reshape(node, [size(labels) for labels in axes])


def _unfolded(builder: Builder, node: Node, labels: Labels) -> Factor:
    """What was computed of folded axes, with an axis per label."""
    return Factor(builder.reshape(node, [x.size for x in labels]), labels)


def _union(x: Factor, y: Factor) -> Labels:
    """All labels, in the order of the factor computed most often."""
    high, low = (x, y) if (x.node.rate, len(x.labels)) >= (y.node.rate, len(y.labels)) else (y, x)
    missing = tuple(label for label in low.labels if label not in high.labels)
    return (*missing, *high.labels) if len(low.labels) > len(high.labels) else (*high.labels, *missing)


# -- one operator each


def _read(builder: Builder, chosen: Factor, value: Factor, keep: Collection[Label]) -> Factor:
    """`sum_t chosen[n, batch, outer, t] value[batch, t, width]` is what the value has at the places chosen."""
    place, own = chosen.labels[-1], chosen.labels[:-1]
    value = sum_out(builder, value, {*keep, *chosen.labels})
    batch, outer = ([x for x in own if (x in value.labels) is shared] for shared in (True, False))
    width = [x for x in value.labels if x not in chosen.labels]
    at = _folded(builder, Factor(chosen.node.args[0], own), batch, outer)
    table = _folded(builder, value, batch, [place], width)
    shape = [size(batch), size(outer), size(width)]
    if table.rate.per_candidate:
        at = builder.reshape(at, [*shape[:2], 1])
        at = builder.call(aten.expand.default, (at, [-1, *shape]), at.rate, shape, at.dtype, free=True)
        made = builder.call(aten.gather.default, (table, 2, at), join((table.rate, at.rate)), shape, table.dtype)
    elif table.rate is Rate.WEIGHT and not batch:
        rows = builder.reshape(table, [place.size, shape[2]]), builder.reshape(at, shape[1:2])
        made = builder.call(aten.embedding.default, rows, at.rate, shape[1:], table.dtype)
    else:
        args = (builder.rowwise(table, Rate.REQUEST), at, OWNER)
        made = builder.call(kernels.request_rows, args, Rate.PAIR, shape, table.dtype)
    return sum_out(builder, _unfolded(builder, made, (*batch, *outer, *width)), keep)


def _linear(builder: Builder, x: Factor, y: Factor, roles: Roles) -> Factor:
    """Rows times one matrix, of the model or of their request: `[rows, outer, inner]` -> `[rows, outer, width]`."""
    _, outer, inner, width = roles
    left = _folded(builder, x, *([o] for o in outer), inner)
    shape, madds = [*(o.size for o in outer), size(width)], roles.multiply_adds
    if y.node.rate is Rate.WEIGHT:
        weight = _folded(builder, y, width, inner)
        node = builder.call(aten.linear.default, (left, weight), x.node.rate, shape, x.node.dtype, multiply_adds=madds)
    else:
        args = (left, _folded(builder, y, inner, width), OFFSETS)
        node = builder.call(kernels.request_linear, args, Rate.PAIR, shape, x.node.dtype, multiply_adds=madds)
    return _unfolded(builder, node, roles.result)


def _matmul(builder: Builder, x: Factor, y: Factor, roles: Roles) -> Factor:
    """`[rows, batch, outer, inner] x [rows, batch, inner, width] -> [rows, batch, outer, width]`.

    A vector by a matrix that lies in memory as `[inner, outer]` comes before it: nothing is transposed.
    """
    vector = not roles.width and y.node.rate.stage == x.node.rate.stage
    if vector and x.labels == (*roles.batch, *roles.inner, *roles.outer):
        x, y, roles = y, x, roles.swapped
    batch, outer, inner, width = roles
    left, right = _folded(builder, x, batch, outer, inner), _folded(builder, y, batch, inner, width)
    op: Op = aten.matmul.default
    args: tuple[Any, ...] = (left, right)
    if y.node.rate is Rate.REQUEST and x.node.rate.per_candidate:
        op, args = kernels.request_matmul, (left, right, OFFSETS)
    elif y.node.rate is Rate.WEIGHT and x.node.rate is not Rate.WEIGHT:
        op = kernels.batched_matmul
    rate, shape = join((x.node.rate, y.node.rate)), [size(batch), size(outer), size(width)]
    node = builder.call(op, args, rate, shape, x.node.dtype, multiply_adds=roles.multiply_adds)
    return _unfolded(builder, node, roles.result)
