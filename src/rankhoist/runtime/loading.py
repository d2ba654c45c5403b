"""The hoisted model in a file."""

from __future__ import annotations

import copyreg
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist.errors import HoistingWarning
from rankhoist.runtime import artifact, container, tensor_file
from rankhoist.runtime.hoisted import HoistedModel
from rankhoist.runtime.plain import entry, printable
from rankhoist.runtime.tune import tuned_elsewhere


def load(path: str | os.PathLike[str], *, opaque: Mapping[str, nn.Module] | None = None) -> HoistedModel:
    """The hoisted model in a file, on the CPU.

    It scores, is verified, moved, copied and given new weights like the one that was saved; its `program` is None. One
    that another machine tuned says so, by a `HoistingWarning`, and so does one that was tuned for a backend that is not
    here: what that one was to score is scored as was predicted.

    Args:
        opaque: of a model that was hoisted with `opaque=[...]`, the modules of these paths: a file holds their weights,
            and nobody's code.

    Raises:
        ArtifactError: the file is no artifact, is damaged, was made up, or comes from a newer version.
    """
    with container.opened(path) as file:
        return read(file, opaque)


def _pickled(model: HoistedModel) -> Any:
    """For another process, as the file that `save` writes: there it is what `load` gives, where and as it was run."""
    with TemporaryDirectory() as folder:
        model.save(path := Path(folder) / "model", example=True)
        return _unpickled, (path.read_bytes(), dict(model.blueprint.modules), model.device, model.backend)


def _unpickled(data: bytes, opaque: Mapping[str, nn.Module], device: torch.device, backend: str) -> HoistedModel:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(data)
        hoisted = load(path, opaque=opaque).to(device)
    return hoisted if hoisted.backend == backend else hoisted.to_backend(backend)


copyreg.pickle(HoistedModel, _pickled)


def read(file: container.Container, opaque: Mapping[str, nn.Module] | None = None) -> HoistedModel:
    """The same, of a file that is open."""
    model, stages = file.read_json("model.json"), file.read_json("stages.json")
    with file.member("weights.safetensors") as member:
        tensors = tensor_file.from_stream(*member, entry(model, "tensors", dict))
    with file.member("example.safetensors") as member:
        example = tensor_file.from_stream(*member, entry(model, "example", dict))
    hoisted = of(model, stages, tensors, example, opaque=opaque)
    told = [tuned_elsewhere(hoisted.blueprint.report().tuning)]
    told += [_without(backend) for backend in hoisted.blueprint.plans.absent(hoisted.device)]
    for words in filter(None, told):
        warnings.warn(printable(words), HoistingWarning, stacklevel=3)
    return hoisted


def _without(backend: str) -> str:
    """What to say where a backend is absent that the file was tuned for."""
    needs = "it needs a C++ compiler" if backend.startswith("inductor") else f"pip install 'rankhoist[{backend}]'"
    return (
        f"it was tuned for backend {backend!r}, which is not here ({needs}): such calls are scored by the plans that "
        "were predicted to be the fastest. Or run `rankhoist tune` here"
    )


def of(
    model: Any, stages: Any, tensors: dict[str, Tensor], example: dict[str, Tensor],
    folded: Sequence[Tensor] | None = None, opaque: Mapping[str, nn.Module] | None = None,
) -> HoistedModel:  # fmt: skip
    """From what its members hold; `folded` is what the weights stage made, if that is at hand."""
    constants = {name: tensor for name, tensor in tensors.items() if name.startswith(artifact.CONSTANT)}
    original = {name: tensor for name, tensor in tensors.items() if name not in constants}
    blueprint, dtype = artifact.blueprint_of(model, stages, original, constants, example, opaque or {})
    if folded is None:
        artifact.check_folding(blueprint, dtype, tensors)
    hoisted = HoistedModel.of(blueprint, original, constants, dtype, torch.device("cpu"), folded)
    hoisted.certificate = None if model.get("certificate") is None else entry(model, "certificate", dict)
    return hoisted
