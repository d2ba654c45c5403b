"""A hoisted model as a folder that several processes map: one copy of its weights, folded ones too, for all of them.

A folder is made from an artifact by one process and is trusted by those that it is made for: nothing in it is checked
again beyond what reading it needs.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rankhoist.runtime import artifact, container, loading, tensor_file
from rankhoist.runtime.hoisted import HoistedModel
from rankhoist.runtime.plain import entry

FOLDED = "folded."  # before the number of a folded weight; no placeholder has a dot in its name


def version_of(path: str | os.PathLike[str]) -> str:
    """The version of an artifact: 12 hexadecimal digits that depend on all that is in it but its date.

    Raises:
        ArtifactError: as `rankhoist.load` does, as far as the file is read.
    """
    with container.opened(path) as file:
        return _version(file)


def unpack(path: str | os.PathLike[str], folder: Path) -> tuple[HoistedModel, str]:
    """Load an artifact, write it to a folder for `load_mapped`; returns the model and its version.

    Raises:
        ArtifactError: as `rankhoist.load` does.
    """
    with container.opened(path) as file:
        hoisted, version = loading.read(file), _version(file)
    folder.mkdir(parents=True)
    folded = {f"{FOLDED}{i}": tensor for i, tensor in enumerate(hoisted.weights.folded)}
    described = hoisted.blueprint, hoisted.weights, hoisted.dtype, hoisted.certificate
    for name, data in artifact.members(*described, folded).items():
        with (folder / name).open("wb") as member:
            member.writelines(container.pieces_of(data))
    return hoisted, version


def load_mapped(folder: Path) -> HoistedModel:
    """The model in a folder; its weights are read where they lie, when they are first needed."""
    model, stages = (container.from_json((folder / name).read_bytes()) for name in ("model.json", "stages.json"))
    tensors = tensor_file.from_file(folder / "weights.safetensors", entry(model, "tensors", dict))
    example = tensor_file.from_file(folder / "example.safetensors", entry(model, "example", dict))
    count = sum(name.startswith(FOLDED) for name in tensors)
    folded = [tensors.pop(f"{FOLDED}{i}") for i in range(count)]
    return loading.of(model, stages, tensors, example, folded)


def _version(file: container.Container) -> str:
    listed = sorted((name, member["sha256"]) for name, member in file.manifest["members"].items())
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:12]
