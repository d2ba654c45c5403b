"""A hoisted model as a file: saved on one machine, loaded on another.

    model.json            interface, plans and their ranges, report, certificate
    stages.json           the emitted graphs
    weights.safetensors   weights and index constants; what the weights stage makes of them is made again on loading
    example.safetensors   rows that the model takes: made up, or those of the example where that is wanted

What no call reads is not written: neither the example's rows nor a buffer that the model keeps for other purposes.
The file holds data alone. Loading it runs none of it as code: graphs are rebuilt from names of operators that are
looked up in a list, and what they make of the weights is no larger than the weights explain. The plans are those of the
machine that made them; another machine scores the same with them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.capture import Interface
from rankhoist.capture.jagged import flat
from rankhoist.compiler.emit import Catalogue, Stage, Stages, Variant
from rankhoist.errors import ArtifactError
from rankhoist.runtime import allowance, container, graph_json, model_json, opaque, tensor_file
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.plain import counts, entries, entry
from rankhoist.runtime.retarget import moved, retargeted
from rankhoist.runtime.weights import Weights

CONSTANT = "constant."  # before the number of an index constant; no placeholder has a dot in its name


def save(
    path: str | os.PathLike[str], blueprint: Blueprint, weights: Weights, dtype: torch.dtype,
    certificate: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Write a hoisted model, whose weights are in `dtype`, whole or not at all.

    Raises:
        ArtifactError: it holds something that a file cannot, or the file cannot be written.
    """
    container.write(path, members(blueprint, weights, dtype, certificate))


def members(
    blueprint: Blueprint, weights: Weights, dtype: torch.dtype, certificate: dict[str, Any] | None,
    more: Mapping[str, Tensor] | None = None,
) -> dict[str, bytes | list[tensor_file.Piece]]:  # fmt: skip
    """The members of its file, those of tensors in pieces; `more` are tensors to write beside its weights.

    Raises:
        ArtifactError: it holds something that a file cannot.
    """
    blueprint, original = _read_by_calls(blueprint, weights.original)
    keys = {name: f"{CONSTANT}{i}" for i, name in enumerate(weights.constants)}  # their own names hold their values
    constants = {keys[name]: tensor for name, tensor in weights.constants.items()}
    try:
        stages = _stages_data(blueprint.stages, keys)
        model = model_json.to_data(blueprint, dtype)
        tensors, table = tensor_file.to_pieces({**original, **constants, **(more or {})})
        rows = flat(blueprint.interface.example)
        example, example_table = tensor_file.to_pieces(rows)
    except ArtifactError as error:
        raise ArtifactError(f"the model cannot be saved: {error}") from error
    model["tensors"], model["example"] = table, example_table
    model["certificate"] = certificate
    # What is written can be read.
    blueprint, _ = blueprint_of(model, stages, original, constants, rows, blueprint.modules)
    check_folding(blueprint, dtype, {**original, **constants})
    model_data, stages_data = container.to_json(model), container.to_json(stages)
    return dict(zip(container.MEMBERS, (model_data, stages_data, tensors, example), strict=True))


def _read_by_calls(blueprint: Blueprint, original: Mapping[str, Tensor]) -> tuple[Blueprint, dict[str, Tensor]]:
    """Without the buffers that no call reads, and without their names."""
    unread = blueprint.unread
    state = {name: p for name, p in blueprint.interface.state.items() if p not in unread}
    kept = {p: tensor for p, tensor in original.items() if p not in unread}
    return replace(blueprint, interface=replace(blueprint.interface, state=state)), kept


def blueprint_of(
    model: Any, stages: Any, original: dict[str, Tensor], constants: dict[str, Tensor], example: dict[str, Tensor],
    modules: Mapping[str, nn.Module],
) -> tuple[Blueprint, torch.dtype]:  # fmt: skip
    """Everything but the weights, and the dtype they are in; `modules` are those that no file holds."""
    description = model_json.from_data(model)
    interface = model_json.with_example(description, example)
    made = _stages(stages, constants)
    blueprint = Blueprint(
        interface, description.plans, made, description.pinned, lambda: description.report,
        with_store=description.with_store, opaque=description.opaque,
        modules=opaque.given(description.opaque, interface, modules),
    )  # fmt: skip
    _check_names(blueprint, original)
    return blueprint, description.dtype


def check_folding(blueprint: Blueprint, dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> None:
    """Refuse to run a weights stage that makes far more than its weights explain."""
    captured = blueprint.interface
    names = moved(captured, dtype, torch.device("cpu"))
    allowance.check(retargeted(replace(blueprint.stages, variants=[]), names).weights, tensors)


# -- stages


def _stages_data(stages: Stages, keys: dict[str, str]) -> dict[str, Any]:
    def data(stage: Stage) -> dict[str, Any]:
        leaves = [keys.get(name, name) for name in stage.leaves]
        return {"leaves": leaves, "passed": stage.nodes, **graph_json.to_data(stage.module.graph)}

    def all_of(variants: Sequence[Variant]) -> list[dict[str, Any]]:
        return [
            {
                "request": data(v.request),
                "candidate": data(v.candidate),
                "state": v.state,
                "condition": v.condition,
                "checks": v.checks,
            }
            for v in variants
        ]

    made = {"weights": data(stages.weights), "folded": stages.folded, "variants": all_of(stages.variants)}
    items = stages.catalogue
    if items is not None:
        made["catalogue"] = {"item": data(items.item), "kept": items.kept, "variants": all_of(items.variants)}
    return made


def _stages(data: Any, constants: dict[str, Tensor]) -> Stages:
    def stage(data: dict[str, Any], name: str) -> Stage:
        leaves, passed = entries(data, "leaves", str), list(counts(data, "passed"))
        return Stage.of(graph_json.to_graph(data), name, leaves, passed)

    def all_of(data: Any) -> list[Variant]:
        return [
            Variant(
                stage(entry(variant, "request", dict), "Request"),
                stage(entry(variant, "candidate", dict), "Candidate"),
                list(counts(variant, "state")),
                None if variant.get("condition") is None else entry(variant, "condition", int),
                entry(variant, "checks", bool) if "checks" in variant else False,
            )
            for variant in entries(data, "variants", dict)
        ]

    variants, items = all_of(data), None
    if "catalogue" in data:
        given = entry(data, "catalogue", dict)
        items = Catalogue(stage(entry(given, "item", dict), "Item"), list(counts(given, "kept")), all_of(given))
    weights = stage(entry(data, "weights", dict), "Weights")
    return Stages(weights, list(counts(data, "folded")), constants, variants, items)


def _check_names(blueprint: Blueprint, original: Collection[str]) -> None:
    """Every stage reads what there is and returns what others read: a wrong name fails here and not in a call."""
    stages, interface = blueprint.stages, blueprint.interface
    fixed = {*original, *stages.constants, *blueprint.opaque}
    if not blueprint.pinned | set(interface.state.values()) <= set(original):
        raise ArtifactError("it names weights that it does not hold")
    if len(stages.variants) != len(blueprint.plans.plans):
        raise ArtifactError(f"it has {len(blueprint.plans.plans)} plans and graphs for {len(stages.variants)}")
    conditional = [variant for variant in stages.all_variants if variant.conditional]
    otherwise = blueprint.plans.otherwise
    if any(variant.condition not in [None, *variant.state] for variant in conditional):
        raise ArtifactError("a plan has a condition that its request stage does not tell")
    if conditional and (otherwise is None or stages.variants[otherwise].conditional):
        raise ArtifactError("a plan has a condition, and there is none for where it does not hold")
    _check_stage(stages.weights, fixed, [], len(stages.folded))
    for variant in stages.variants:
        _check_variant(variant, blueprint, fixed, "candidate", [])
    items = stages.catalogue
    plans = 0 if blueprint.with_store is None else len(blueprint.with_store.plans)
    if plans != (0 if items is None else len(items.variants)):
        raise ArtifactError(f"it has {plans} plans for a store, and graphs for another number")
    if items is not None:
        _check_stage(items.item, fixed | _leaves(interface, "item"), stages.folded, len(items.kept))
        for variant in items.variants:
            _check_variant(variant, blueprint, fixed, "pair", items.kept)


def _check_variant(variant: Variant, blueprint: Blueprint, fixed: set[str], side: str, kept: Sequence[int]) -> None:
    interface, folded = blueprint.interface, blueprint.stages.folded
    _check_stage(variant.request, fixed | _leaves(interface, "context"), folded, len(variant.state))
    leaves, early = fixed | _leaves(interface, side), [*folded, *variant.state, *kept]
    _check_stage(variant.candidate, leaves, early, interface.out_spec.num_leaves + variant.checks)


def _leaves(interface: Interface, side: str) -> set[str]:
    """What stages call the tensors of one side."""
    return {name + leaf for name, spec in interface.inputs.items() for leaf in spec.leaves(side)}


def _check_stage(stage: Stage, leaves: Collection[str], earlier: Collection[int], results: int) -> None:
    nodes = list(stage.module.graph.nodes)
    inputs = sum(node.op == "placeholder" for node in nodes)
    if inputs != 3 + len(stage.nodes) + len(stage.leaves) or len(nodes[-1].args[0]) != results:
        raise ArtifactError("a stage takes or returns another number of values than the others expect")
    if not set(stage.leaves) <= set(leaves) or not set(stage.nodes) <= set(earlier):
        raise ArtifactError("a stage reads a value that there is not")
