"""Versions of a hoisted model's weights: each is whole, so that a call never mixes two."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankhoist.capture import Interface
from rankhoist.capture.wrappers import under_own_names
from rankhoist.compiler.emit import Stage, Stages, Variant
from rankhoist.errors import WeightsError
from rankhoist.runtime.laid_out import MANY, LaidOut
from rankhoist.runtime.opaque import Kept

Argument = Tensor | Kept | int | str  # a weight; a kept module; the number of a node of the state; an input's name


@dataclass(frozen=True)
class Weights:
    """One version of the weights: originals by placeholder, and what the weights stage made of them.

    `folded` are what the weights stage returns, which plans share. `opaque` are the calls of modules that are kept as
    they are, with these weights.
    `arguments` are those of every plan's (request, candidate) stage: a weight, or what each call puts in its place: the
    number of a node of the state (or of a store), or the name of an input. `with_store` are those of the plans for
    items with a store, and `item` those of the item stage. `interface` is that of their model, by which a state of
    another model is known.
    """

    original: dict[str, Tensor]
    constants: dict[str, Tensor]
    folded: Sequence[Tensor]
    opaque: Mapping[str, Kept]
    interface: Interface
    arguments: list[tuple[list[Argument], list[Argument]]]
    with_store: Sequence[tuple[list[Argument], list[Argument]]] = ()
    item: Sequence[Argument] = ()

    @staticmethod
    def of(
        original: dict[str, Tensor], constants: dict[str, Tensor], stages: Stages, interface: Interface,
        folded: Sequence[Tensor] | None = None, opaque: Mapping[str, Kept] = types.MappingProxyType({}),
    ) -> Weights:  # fmt: skip
        """Run the weights stage, if what it made (`folded`) is not at hand."""
        if folded is None:
            folded = _fold(stages.weights, original, constants)
        known: dict[int, Any] = dict(zip(stages.folded, folded, strict=True))
        inputs = {
            placeholder + leaf: spec.name + (leaf if spec.bags else "")
            for placeholder, spec in interface.inputs.items()
            for side in ("context", "candidate", "item", "pair")
            for leaf in spec.leaves(side)
        }

        def arguments(stage: Stage) -> list[Argument]:
            leaves = (inputs.get(n) or opaque.get(n) or original.get(n, constants.get(n)) for n in stage.leaves)
            return [*(known.get(i, i) for i in stage.nodes), *leaves]

        laid_out = LaidOut()

        def of_plans(variants: Sequence[Variant]) -> list[tuple[list[Argument], list[Argument]]]:
            return [
                (laid_out.of(v.request, arguments(v.request)), laid_out.of(v.candidate, arguments(v.candidate), MANY))
                for v in variants
            ]

        plans, items = of_plans(stages.variants), stages.catalogue
        if items is None:
            return Weights(original, constants, folded, opaque, interface, plans)
        return Weights(
            original, constants, folded, opaque, interface, plans, of_plans(items.variants), arguments(items.item)
        )


def _fold(stage: Stage, original: dict[str, Tensor], constants: dict[str, Tensor]) -> Sequence[Tensor]:
    with torch.no_grad():
        return stage.run(None, None, None, *(original[n] if n in original else constants[n] for n in stage.leaves))


def filled(arguments: Sequence[Argument], early: Mapping[int, Tensor], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The arguments of one call: `early` are the state's tensors (and a store's) by node."""
    return [early[a] if type(a) is int else inputs[a] if type(a) is str else a for a in arguments]  # type: ignore


def _tensor(given: Tensor, name: str) -> Tensor:
    if not isinstance(given, Tensor):
        raise WeightsError(f"weight {name!r} is {type(given).__name__}, expected a tensor")
    return given


def renewed(
    original: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], names: Mapping[str, str], pinned: Collection[str]
) -> dict[str, Tensor]:
    """Originals by placeholder with the values of a state dict; `names` are the placeholders of its entries.

    Raises:
        WeightsError: names or shapes differ, or a `pinned` one changed.
    """
    state_dict = under_own_names(state_dict, names)
    missing = [n for n in names if n not in state_dict]
    if missing:
        raise WeightsError(f"the state dict lacks {len(missing)} weights: {', '.join(missing[:5])}")
    result = dict(original)
    for name, placeholder in names.items():
        old, new = original[placeholder], _tensor(state_dict[name], name).detach()
        if new.shape != old.shape:
            raise WeightsError(f"weight {name!r} has shape {list(new.shape)}, expected {list(old.shape)}")
        new = new.to(device=old.device, dtype=old.dtype)
        if placeholder in pinned and not torch.equal(new, old):
            raise WeightsError(
                f"{name!r} decides what is computed, and the plan is made for it; hoist the new model instead"
            )
        result[placeholder] = new
    return result
