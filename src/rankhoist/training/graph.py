"""The graph of one mode: three stages over the weights of a model, differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.compiler.emit import Stages
from rankhoist.compiler.graph.trained import Counts
from rankhoist.errors import WeightsError
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.ids import Feed, Guard
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.offsets import Blocks
from rankhoist.runtime.placed import placed
from rankhoist.runtime.retarget import moved
from rankhoist.runtime.weights import Weights


@dataclass(frozen=True)
class Graph:
    """The stages of one mode, and where their weights are.

    Attributes:
        places: placeholder -> the module and the name of its parameter or buffer.
        others: placeholder -> a tensor that is neither.
        snapshots: placeholder -> what plans were made from, as it was then.
        seen: placeholder -> the tensor, and its version, that was last found equal to its snapshot.
    """

    blueprint: Blueprint
    stages: Stages
    inputs: Inputs
    places: dict[str, tuple[nn.Module, str]]
    others: dict[str, Tensor]
    snapshots: dict[str, Tensor]
    seen: dict[str, tuple[Tensor, int]]

    @staticmethod
    def of(model: nn.Module, blueprint: Blueprint, snapshots: Mapping[str, Tensor] | None = None) -> Graph:
        """In the dtype and on the device of the capture; snapshots are taken now, unless they are given."""
        assert blueprint.program is not None
        places, others = {}, dict(blueprint.stages.constants)
        for placeholder, weight in blueprint.program.weights.items():
            place = _place(model, weight.name)
            if place is None:
                others[placeholder] = weight.tensor
            else:
                places[placeholder] = place
        interface = blueprint.interface
        if snapshots is None:
            pinned = {p: places[p] for p in blueprint.pinned if p in places}
            snapshots = {p: getattr(*place).detach().clone() for p, place in pinned.items()}
        inputs = Inputs(interface, interface.dtype, interface.device)
        stages = placed(blueprint, interface.dtype, interface.device, "eager")
        return Graph(blueprint, stages, inputs, places, others, dict(snapshots), {})

    def here(self) -> Graph:
        """The same, or in the dtype and on the device that the model has moved to."""
        probe = next((t for m, n in self.places.values() if (t := getattr(m, n)).is_floating_point()), None)
        if probe is None or (probe.dtype, probe.device) == (self.inputs.dtype, self.inputs.device):
            return self
        dtype, device = probe.dtype, probe.device
        names = moved(self.blueprint.interface, dtype, device)

        def here(t: Tensor) -> Tensor:
            return t.to(device, names.get(t.dtype, t.dtype))

        return Graph(
            self.blueprint, placed(self.blueprint, dtype, device, "eager"),
            Inputs(self.blueprint.interface, dtype, device), self.places,
            {n: here(t) for n, t in self.others.items()}, {n: here(t) for n, t in self.snapshots.items()}, {},
        )  # fmt: skip

    def run(
        self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], requests: int, rows: int, counts: Counts
    ) -> Any:
        """All three stages, of tensors by the names that stages read; then the buffers that the model writes are
        written.
        """
        weights = {p: getattr(module, name) for p, (module, name) in self.places.items()} | self.others
        self._check_pinned(weights)
        for placeholder in self._written:  # what a backward reads is not written over
            weights[placeholder] = weights[placeholder].clone()
        (variant,) = self.stages.variants
        values: dict[Any, Any] = dict(weights)
        for placeholder, spec in self.inputs.interface.inputs.items():
            for side, given in (("context", context), ("candidate", candidate)):
                leaves = spec.leaves(side)
                values |= {placeholder + leaf: given[spec.name + (leaf if spec.bags else "")] for leaf in leaves}
        stages: Any = (
            (self.stages.weights, self.stages.folded, 1, {}),
            (variant.request, variant.state, requests, context),
            (variant.candidate, None, rows, candidate),
        )
        made: Any = ()
        for stage, results, count, given in stages:
            arguments = count, counts, counts, *(values[x] for x in [*stage.nodes, *stage.leaves])
            try:
                made = stage.run(*arguments)
            except (IndexError, RuntimeError) as error:
                side = "context" if stage is variant.request else "candidate"
                raise self._guard(weights).explained(error, 0, stage, Feed(arguments, side, given)) from None
            values |= dict(zip(results or (), made, strict=False))
        return self._returned(made)

    def _guard(self, weights: dict[str, Tensor]) -> Guard:
        """What is asked why a stage failed, as a hoisted model's is."""
        own = Weights.of(weights, {}, self.stages, self.inputs.interface)
        return Guard(self.inputs, self.stages, own)

    def _returned(self, made: tuple[Any, ...]) -> Any:
        """What the model returns, of all that the last stage makes."""
        own = len(made) - len(self._written)
        with torch.no_grad():
            for placeholder, value in zip(self._written, made[own:], strict=True):
                module, name = self.places[placeholder]
                getattr(module, name).copy_(value)
        return self.inputs.interface.result(made[:own])

    @property
    def _written(self) -> tuple[str, ...]:
        assert self.blueprint.program is not None
        return self.blueprint.program.written

    def _check_pinned(self, weights: Mapping[str, Tensor]) -> None:
        """That nobody has changed what the plan was made from; looked at again only where it was written."""
        for placeholder, snapshot in self.snapshots.items():
            tensor = weights[placeholder]
            before = self.seen.get(placeholder)
            if before is not None and before[0] is tensor and before[1] == tensor._version:
                continue
            if not torch.equal(tensor, snapshot):
                _, name = self.places[placeholder]
                raise WeightsError(
                    f"{name!r} decides what is computed, and the plan is made for it; group the model anew"
                )
            self.seen[placeholder] = tensor, tensor._version


def counts_of(blocks: Blocks | None, rows: int) -> Counts:
    """Candidates of each request; a single one owns all rows."""
    return Counts.of(torch.tensor([0, rows]) if blocks is None else blocks.offsets)


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str] | None:
    """The module that holds a parameter or buffer, and its name there; None where it is neither."""
    owner, _, name = path.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    found = isinstance(getattr(module, name, None), Tensor) and (name in module._parameters or name in module._buffers)
    return (module, name) if found else None
