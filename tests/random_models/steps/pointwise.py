"""Elementwise operators: functions, arithmetic, conditions, casts."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from random_models.draft import GAP, Draft, UnstableError, aten
from random_models.operands import broadcasting, floats, like, whole_broadcasting, wide
from random_models.steps.table import Made, Step, one_of

UNARY = [
    aten.relu.default, aten.tanh.default, aten.sigmoid.default, aten.gelu.default, aten.silu.default, aten.abs.default,
    aten.neg.default, aten.sin.default, aten.softplus.default, aten.leaky_relu.default, aten.elu.default,
    aten.erf.default, aten.clone.default, aten.atan.default,
]  # fmt: skip


def unary(draft: Draft, x: fx.Node) -> Made:
    return draft.call(draft.pick(UNARY), x)


def distance(draft: Draft, x: fx.Node, least: float) -> fx.Node:
    """|x| + least."""
    return draft.call(aten.add.Tensor, draft.call(aten.abs.default, x), least)


def root(draft: Draft, x: fx.Node) -> Made:
    square = draft.call(aten.mul.Tensor, x, x)
    return draft.call(aten.sqrt.default, draft.call(aten.add.Tensor, square, 0.25))


CAREFUL = [  # functions with a pole or a fast growth, kept away from it
    lambda draft, x: draft.call(aten.exp.default, draft.call(aten.clamp.default, x, -3.0, 3.0)),
    lambda draft, x: draft.call(aten.log.default, distance(draft, x, 0.5)),
    root,
    lambda draft, x: draft.call(aten.pow.Tensor_Scalar, x, draft.pick([2, 3])),
    lambda draft, x: draft.call(aten.reciprocal.default, distance(draft, x, 1.0)),
]

BINARY = [
    aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default,
]  # fmt: skip


def binary(draft: Draft, x: fx.Node) -> Made:
    y = broadcasting(draft, x)
    target = draft.pick(BINARY)
    if not isinstance(y, fx.Node) and target is aten.maximum.default:
        target = aten.add.Tensor
    if target is aten.div.Tensor and isinstance(y, fx.Node):
        y = distance(draft, y, 1.0)
    pair = (y, x) if isinstance(y, fx.Node) and target is not aten.div.Tensor and draft.flag() else (x, y)
    scaled = target in (aten.add.Tensor, aten.sub.Tensor) and draft.number(0, 5) == 5
    return draft.call(target, *pair, **({"alpha": draft.pick([2, -0.5])} if scaled else {}))


def gate(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    one = like(draft, (*extent[:-1], 1) if extent[-1] > 0 else extent)
    return draft.call(aten.mul.Tensor, x, draft.call(aten.sigmoid.default, one))


def weights_alone(draft: Draft, x: fx.Node) -> Made:
    """A computation on weights that meets a value at the end."""
    weight = draft.call(aten.softmax.int, draft.random(3, draft.extent(x)[-1]), -1)
    first = draft.flag()
    weight = draft.call(aten.select.int, weight, 0, 1) if first else draft.call(aten.sum.dim_IntList, weight, [0])
    return draft.call(aten.mul.Tensor, x, weight)


def mixed_kinds(draft: Draft, x: fx.Node) -> Made:
    """A float value with an integer or boolean one."""
    y = whole_broadcasting(draft, x)
    signed = draft.dry[y].dtype != torch.bool  # no subtraction of masks
    target = draft.pick([aten.mul.Tensor, aten.add.Tensor, *([aten.sub.Tensor] if signed else [])])
    return draft.call(target, *((x, y) if draft.flag() else (y, x)))


# -- other overloads, and operators with several operands


def with_number(draft: Draft, x: fx.Node) -> Made:
    return draft.call(draft.pick([aten.mul.Scalar, aten.add.Scalar, aten.sub.Scalar]), x, draft.pick([2, -0.5]))


def addcmul(draft: Draft, x: fx.Node) -> Made:
    y, z = like(draft, draft.extent(x)), like(draft, draft.extent(x))
    return draft.call(aten.addcmul.default, x, y, z, value=draft.pick([1, -0.5]))


def power(draft: Draft, x: fx.Node) -> Made:
    base = draft.call(aten.sigmoid.default, x)
    return draft.call(aten.pow.Tensor_Tensor, base, draft.call(aten.abs.default, like(draft, draft.extent(x))))


def constant_like(draft: Draft, x: fx.Node) -> Made:
    return draft.call(aten.zeros_like.default, x) if draft.flag() else draft.call(aten.full_like.default, x, 0.25)


def vector_norm(draft: Draft, x: fx.Node) -> Made:
    if draft.extent(x)[-1] < 1:
        raise UnstableError
    draft.check_spread(x, [-1])
    return draft.call(aten.linalg_vector_norm.default, x, 2.0, [-1], draft.flag())


LESS_COMMON = [
    lambda draft, x: draft.call(aten.rsub.Scalar, x, draft.pick([1, 0.5]), draft.pick([1, 2])),
    with_number,
    addcmul,
    lambda draft, x: draft.call(aten.lerp.Scalar, x, like(draft, draft.extent(x)), 0.25),
    power,
    lambda draft, x: draft.call(aten.clamp.default, x, *draft.pick([(None, 0.5), (-0.5, None), (-0.25, 0.75)])),
    constant_like,
    vector_norm,
]


# -- conditions, and what they do


def chosen(draft: Draft, test: fx.Node, x: fx.Node, y: Any) -> Made:
    other = y if isinstance(y, fx.Node) else draft.call(aten.neg.default, x)
    return draft.call(aten.where.self, test, x, other)


def filled(draft: Draft, test: fx.Node, x: fx.Node, y: Any) -> Made:
    return draft.call(aten.masked_fill.Scalar, x, test, -0.5) if draft.extent(test) == draft.extent(x) else test


USES = [
    chosen,
    filled,
    lambda draft, test, x, y: draft.call(aten._to_copy.default, test, dtype=torch.float64),
    lambda draft, test, x, y: test,
]


def compare(draft: Draft, x: fx.Node) -> Made:
    """A condition that chooses, fills or counts."""
    y = broadcasting(draft, x) if draft.flag() else 0.25
    draft.check_apart(x, y)
    kinds = (aten.gt.Tensor, aten.le.Tensor) if isinstance(y, fx.Node) else (aten.gt.Scalar, aten.le.Scalar)
    test = draft.call(draft.pick(kinds), x, y)
    return draft.pick(USES)(draft, test, x, y)


def cast(draft: Draft, x: fx.Node) -> Made:
    """To integers and back, where no rounding error can jump."""
    if draft.flag():
        return draft.call(aten._to_copy.default, x, dtype=torch.float64)
    scaled = draft.call(aten.mul.Tensor, x, 3.0)
    if x in draft.mixed or bool(((draft.sample[scaled] - draft.sample[scaled].round()).abs() < GAP).any()):
        raise UnstableError
    whole = draft.call(aten._to_copy.default, scaled, dtype=torch.int64)
    back = draft.call(aten._to_copy.default, whole, dtype=torch.float64) if draft.flag() else whole
    draft.values.append(back)  # as it is, however large
    return None


STEPS = [
    Step(6, binary, floats()),
    Step(3, unary, floats()),
    Step(1, one_of(CAREFUL), floats()),
    Step(1, gate, floats(lambda e: len(e) > 1 and e[0] == -1)),
    Step(1, weights_alone, floats(wide)),
    Step(1, mixed_kinds, floats(lambda e: len(e) > 0)),
    Step(2, one_of(LESS_COMMON), floats(lambda e: len(e) > 0)),
    Step(1, compare, floats()),
    Step(1, cast, floats()),
]
