"""Weights that a model reaches by another way than their names: in a list, a dict, a closure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.multiprocessing.reductions import StorageWeakRef

NAMED = (InputKind.PARAMETER, InputKind.BUFFER)


def by_their_names(exported: torch.export.ExportedProgram) -> None:
    """`torch.export` takes such a tensor for a constant; of the same memory, it is the parameter or buffer itself, to
    which new weights and gradients go.
    """
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    specs = [s for s in exported.graph_signature.input_specs if s.target is not None]
    weights = {
        _memory(exported.state_dict[s.target]): s.arg.name
        for s in specs
        if s.kind in NAMED and s.target in exported.state_dict
    }
    for spec in specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:
            tensor = exported.constants[spec.target]
            name = weights.get(_memory(tensor)) if tensor.numel() else None
            if name is not None:
                nodes[spec.arg.name].replace_all_uses_with(nodes[name])


def _memory(tensor: Tensor) -> Any:
    storage = StorageWeakRef(tensor.untyped_storage())  # on the meta device, every address is zero
    return storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
