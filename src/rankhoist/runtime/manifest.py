"""The manifest beside exported stages: how the model is called, and each stage's file, inputs and outputs in order."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rankhoist.capture import Interface
from rankhoist.errors import ArtifactError, BackendError
from rankhoist.runtime import interface_json
from rankhoist.runtime.ids import Bounds, Ids
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.plain import as_dtype, dtype_name, entries, entry

FORMAT = 5
NAME = "manifest.json"


@dataclass(frozen=True)
class StageFile:
    """A stage's file and what it takes and returns.

    `row_axes` say of each output which axis are the rows of a call (-1: none). `guards` say what is wrong where a
    number of the output `ids.outside`, if there is one, is not zero.
    """

    file: str
    inputs: list[str]
    outputs: list[str]
    row_axes: list[int]
    guards: list[str]


@dataclass(frozen=True)
class Manifest:
    """What a folder of exported stages says of itself.

    Attributes:
        interface: how the model is called; read from a folder it has no example and no names of weights.
        dtype: the one that it computes in.
        stages: `request`, `candidate` and perhaps `several`.
        constants: the results that are no tensors, by position.
        ids: of the inputs that index tables, by side and name, what they may hold: the stages do not look.
    """

    interface: Interface
    dtype: torch.dtype
    stages: dict[str, StageFile]
    constants: dict[int, Any]
    ids: Ids

    def to_data(self) -> dict[str, Any]:
        """As data for JSON.

        Raises:
            ArtifactError: the model's inputs or results are containers that a file cannot hold.
        """
        stages = {name: vars(stage) for name, stage in self.stages.items()}
        described = interface_json.to_data(self.interface)
        return {
            "format": FORMAT, "dtype": dtype_name(self.dtype), **described, "stages": stages,
            "constant_results": self.constants,
            "ids": {side: {n: b.to_data() for n, b in bounds.items()} for side, bounds in self.ids.items()},
        }  # fmt: skip

    @staticmethod
    def from_data(data: Any) -> Manifest:
        """The inverse of `to_data`.

        Raises:
            ArtifactError: the data is none that `to_data` makes.
        """
        found = entry(data, "format", int)
        if found != FORMAT:
            newer = "upgrade rankhoist, or " if found > FORMAT else ""
            raise ArtifactError(f"it has format {found}, and this version reads {FORMAT}: {newer}export it again")
        stages = {
            name: StageFile(
                entry(stage, "file", str), entries(stage, "inputs", str), entries(stage, "outputs", str),
                entries(stage, "row_axes", int), entries(stage, "guards", str),
            )
            for name, stage in entry(data, "stages", dict).items()
        }  # fmt: skip
        constants = {int(i): value for i, value in entry(data, "constant_results", dict).items()}
        interface, dtype = interface_json.from_data(data, {}), as_dtype(entry(data, "dtype", str))
        tensors = Inputs(interface, dtype, torch.device("cpu")).tensors
        ids = {
            side: {
                n: replace(Bounds.from_data(b), name=tensors[side][n].name, lengths=tensors[side][n].lengths)
                for n, b in entry(entry(data, "ids", dict), side, dict).items()
                if n in tensors[side]
            }
            for side in ("context", "candidate")
        }
        return Manifest(interface, dtype, stages, constants, ids)

    def write(self, folder: Path) -> None:
        """Into the folder of the stages."""
        (folder / NAME).write_text(json.dumps(self.to_data(), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Of the folder of the stages.

        Raises:
            BackendError: there is none, or none that this version reads.
        """
        try:
            return Manifest.from_data(json.loads((folder / NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, ArtifactError) as error:
            raise BackendError(f"{folder} holds no readable {NAME}, export it again: {error}") from error
