"""Products that sum: linear layers in all their spellings, einsums, convolutions, products of two values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.operands import floats, like, sequence, wide
from random_models.steps.table import Made, Step


def matmul(draft: Draft, x: fx.Node, weight: fx.Node) -> fx.Node:
    return draft.call(aten.matmul.default, x, draft.call(aten.t.default, weight))


def mm(draft: Draft, x: fx.Node, weight: fx.Node) -> fx.Node:
    if len(draft.extent(x)) != 2:
        return matmul(draft, x, weight)
    return draft.call(aten.mm.default, x, draft.call(aten.permute.default, weight, [1, 0]))


def addmm(draft: Draft, x: fx.Node, weight: fx.Node) -> fx.Node:
    if len(draft.extent(x)) != 2:
        return matmul(draft, x, weight)
    bias = draft.random(draft.extent(weight)[0])
    return draft.call(aten.addmm.default, bias, x, draft.call(aten.t.default, weight), beta=0.5, alpha=2)


SPELLINGS = [  # of a linear layer with a weight `[out, width]`
    lambda draft, x, weight: draft.call(aten.linear.default, x, weight),
    lambda draft, x, weight: draft.call(aten.linear.default, x, weight, draft.random(draft.extent(weight)[0])),
    matmul,
    mm,
    addmm,
]


def linear(draft: Draft, x: fx.Node) -> Made:
    out = draft.number(1, 5)
    spelling = draft.pick(SPELLINGS)
    return spelling(draft, x, draft.random(out, draft.extent(x)[-1], scale=0.7))


def linear_vector(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.matmul.default, x, draft.random(draft.extent(x)[-1]))


def cross_layer(draft: Draft, x: fx.Node) -> Made:
    first = like(draft, draft.extent(x))
    width = draft.extent(x)[1]
    gate = draft.call(aten.linear.default, x, draft.random(width, width, scale=0.5), draft.random(width))
    return draft.call(aten.add.Tensor, draft.call(aten.mul.Tensor, first, gate), x)


def einsum(draft: Draft, x: fx.Node) -> Made:
    """A product with a weight along any axis, or between two values."""
    letters = "bijk"[: len(draft.extent(x))]
    axis = draft.axis(x)
    at = letters[axis]
    if draft.flag():
        weight = draft.random(draft.extent(x)[axis], draft.number(1, 4), scale=0.7)
        return draft.call(aten.einsum.default, f"{letters},{at}o->{letters.replace(at, 'o')}", [x, weight])
    other = like(draft, draft.extent(x))
    kept = letters.replace(at, "") if draft.flag() else letters
    return draft.call(aten.einsum.default, f"{letters},{letters}->{kept}", [x, other])


def einsum_any_depth(draft: Draft, x: fx.Node) -> Made:
    """The same, whatever the axes in front."""
    extent = draft.extent(x)
    out = draft.number(1, 4)
    if draft.flag():
        return draft.call(aten.einsum.default, "...d,de->...e", [x, draft.random(extent[-1], out, scale=0.7)])
    if len(extent) > 2 and extent[-2] > 0:
        return draft.call(aten.einsum.default, "...id,...jd->...ij", [x, like(draft, extent, len(extent) - 2)])
    return draft.call(aten.einsum.default, draft.pick(["...d,...d->...", "...d,...d"]), [x, like(draft, extent)])


def field_matrix(draft: Draft, x: fx.Node) -> Made:
    """Its own matrix for every field."""
    _, fields, width = draft.extent(x)
    if min(fields, width) < 1:
        raise UnstableError
    weight = draft.random(fields, width, draft.number(1, 3), scale=0.7)
    return draft.call(aten.einsum.default, "bfd,fde->bfe", [x, weight])


def bilinear(draft: Draft, x: fx.Node) -> Iterator[fx.Node]:
    """Every position of one value with every position of another."""
    other = x if draft.flag() else like(draft, draft.extent(x), 1)
    other = draft.call(aten.transpose.int, other, 1, 2)
    products = draft.call(draft.pick([aten.bmm.default, aten.matmul.default]), x, other)
    yield products
    rows, columns = draft.extent(products)[1:]
    if draft.flag() and rows == columns and rows > 1:
        i, k = torch.triu_indices(rows, columns, draft.number(0, 1)).unbind(0)
        yield draft.call(aten.index.Tensor, products, [None, draft.weight(i.clone()), draft.weight(k.clone())])
    elif draft.flag():
        yield draft.view(products, [-1, rows * columns])


def learned_product(draft: Draft, x: fx.Node) -> Made:
    """`nn.Bilinear` of two values."""
    extent = draft.extent(x)
    other = like(draft, extent, len(extent) - 1)
    out = draft.number(1, 3)
    weight = draft.random(out, extent[-1], draft.extent(other)[-1], scale=0.5)
    return draft.call(aten.bilinear.default, x, other, weight, draft.random(out) if draft.flag() else None)


def convolution(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.conv1d.default, x, draft.random(2, draft.extent(x)[1], 2))


STEPS = [
    Step(5, linear, floats(lambda e: len(e) > 0 and e[-1] > 0)),
    Step(1, linear_vector, floats(wide)),
    Step(2, cross_layer, floats(lambda e: len(e) == 2 and e[0] == -1 and 1 < e[1] < 8)),
    Step(2, einsum, floats(lambda e: 1 < len(e) < 4 and e[0] < 0)),
    Step(1, einsum_any_depth, floats(wide)),
    Step(1, field_matrix, floats(lambda e: len(e) == 3 and e[0] < 0)),
    Step(2, bilinear, floats(sequence)),
    Step(1, learned_product, floats(lambda e: len(e) > 1 and 0 < e[-1] < 8)),
    Step(1, convolution, floats(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 1)),
]
