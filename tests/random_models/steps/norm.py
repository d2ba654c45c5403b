"""Normalisation, away from divisions by nearly 0."""

from __future__ import annotations

import operator

from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.operands import floats, several_wide
from random_models.steps.table import Made, Step

EPS = 1e-3  # a batch of few rows may be all alike


def layer_norm(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    depth = 2 if len(extent) > 2 and extent[-2] > 0 and draft.number(0, 3) == 3 else 1
    draft.check_spread(x, range(-depth, 0))
    shape = list(extent[-depth:])
    weights = [draft.random(*shape), draft.random(*shape)] if draft.flag() else []
    return draft.call(aten.layer_norm.default, x, shape, *weights)


def group_norm(draft: Draft, x: fx.Node) -> Made:
    width, sample = draft.extent(x)[1], draft.sample[x]
    if width != sample.shape[1] or not sample.numel():
        raise UnstableError  # channels that vary, or nothing to norm
    groups = draft.pick([n for n in range(1, width + 1) if width % n == 0])
    if float(sample.reshape(len(sample), groups, -1).std(2, correction=0).amin()) < 1e-2:
        raise UnstableError
    weights = [draft.random(width), draft.random(width)] if draft.flag() else []
    return draft.call(aten.group_norm.default, x, groups, *weights)


def batch_norm(draft: Draft, x: fx.Node) -> Made:
    width = draft.extent(x)[1]
    weights = [draft.random(width), draft.random(width)] if draft.flag() else [None, None]
    variance = draft.weight(draft.normal(width).abs() + 0.5)
    return draft.call(aten.batch_norm.default, x, *weights, draft.random(width), variance, False, 0.1, 1e-5, True)


def batch_norm_in_training(draft: Draft, x: fx.Node) -> Made:
    """By the statistics of the batch, which in some models move running ones."""
    width = draft.extent(x)[1]
    affine = [draft.random(width), draft.random(width)] if draft.flag() else [None, None]
    if draft.flag():
        made = draft.call(aten._native_batch_norm_legit.no_stats, x, *affine, True, 0.1, EPS)
    else:
        running = draft.random(width), draft.weight(draft.normal(width).abs())
        made = draft.call(aten._native_batch_norm_legit_functional.default, x, *affine, *running, True, 0.1, EPS)
    normed = draft.call(operator.getitem, made, 0)
    draft.mixed.add(normed)
    return normed


CHANNELS = floats(lambda e: len(e) in (2, 3) and e[0] < 0 and e[1] > 0)
STEPS = [Step(1, layer_norm, floats(several_wide)), Step(1, group_norm, CHANNELS), Step(1, batch_norm, CHANNELS)]
IN_TRAINING = Step(12, batch_norm_in_training, CHANNELS)
