"""The same graphs with another dtype or device in their arguments, for a hoisted model that moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from rankhoist.capture import Interface
from rankhoist.compiler.emit import Catalogue, Stage, Stages, Variant

SHORTER = (torch.float16, torch.bfloat16, torch.float32)  # than float64


def moved(captured: Interface, dtype: torch.dtype, device: torch.device) -> dict[Any, Any]:
    """What a model's graphs name, and what they are to name; a model that was on `cuda:0` may name `cuda` as well.

    A model that moves to float64 rounds nowhere: the casts that autocast left in its graph are lifted as its own are.
    The ends of a dtype, which masks are filled with, are those of a shorter one, which cannot hold them.
    """
    places = {torch.device(captured.device.type): device, captured.device: device}
    lifted: dict[Any, Any] = {}
    if dtype == torch.float64 != captured.dtype:
        lifted = {**dict.fromkeys(SHORTER, dtype), torch.complex64: torch.complex128}
    own, new = torch.finfo(captured.dtype), torch.finfo(dtype)
    ends = {own.min: new.min, own.max: new.max} if new.max < own.max else {}
    return {**lifted, captured.dtype: dtype, **places, **ends}


def dtypes(stages: Stages) -> set[torch.dtype]:
    """The floating dtypes that the graphs name, such as those that autocast casts to."""
    plans = [*stages.variants, *(stages.catalogue.variants if stages.catalogue else ())]
    graphs = [stages.weights, *(stage for v in plans for stage in (v.request, v.candidate))]
    named = pytree.tree_leaves([(n.args, n.kwargs) for stage in graphs for n in stage.module.graph.nodes])
    return {x for x in named if isinstance(x, torch.dtype) and x.is_floating_point}


def retargeted(stages: Stages, names: Mapping[Any, Any]) -> Stages:
    """Stages of the caller's own, with dtypes and devices replaced in the arguments of all graphs."""
    changed = {old: new for old, new in names.items() if old != new}

    def own(stage: Stage) -> Stage:
        return _retargeted(stage, changed) if changed else replace(stage)

    def all_of(variants: list[Variant]) -> list[Variant]:
        return [Variant(own(v.request), own(v.candidate), v.state, v.condition, v.checks) for v in variants]

    items = stages.catalogue
    if items is not None:
        items = Catalogue(own(items.item), items.kept, all_of(items.variants))
    return replace(stages, weights=own(stages.weights), variants=all_of(stages.variants), catalogue=items)


def _retargeted(stage: Stage, names: Mapping[Any, Any]) -> Stage:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in stage.module.graph.nodes:
        values[node] = made = graph.node_copy(node, values.__getitem__)
        made.args, made.kwargs = _replaced(made.args, names), _replaced(dict(made.kwargs), names)
    return Stage.of(graph, type(stage.module).__name__, stage.leaves, stage.nodes)


def _replaced(value: Any, names: Mapping[Any, Any]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_replaced(v, names) for v in value)
    if isinstance(value, dict):
        return {k: _replaced(v, names) for k, v in value.items()}
    if isinstance(value, fx.Node) or value.__hash__ is None:
        return value
    return names.get(value, value) if type(value) in {type(k) for k in names} else value
