"""A hoisted model as exported stages, for ONNX Runtime or as native code, with a manifest beside them.

What is exported is the plan for the workload that the model was hoisted for, with its weights inside; another plan
would hold them again. So it holds for every request: where that plan has a condition, it is the one without.

    request      context inputs [R, ...]                                       -> state.0, state.1, ... [R, ...]
    candidate    state [1, ...], candidate inputs [N, ...]                     -> output.0, ... [N, ...]
    several      request.owner [N], request.slots [R, M], state, candidates    -> the same, for several requests

`rankhoist.compiler.emit.traceable` says what owner and slots are. A stage takes only the inputs that it reads, of a
packed input its own columns. Where it computes ids that it looks up, it has one more output, `ids.outside`: of each
such lookup, how many ids were outside of the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from rankhoist.arguments import writing
from rankhoist.capture.varying import MOST
from rankhoist.compiler.emit import Stages, Variant
from rankhoist.compiler.targets import aoti, onnx
from rankhoist.compiler.targets.exported import BOUNDS, REQUESTS, ROWS, Exported, Moving, Write, export, refused
from rankhoist.errors import ArtifactError, BackendError
from rankhoist.runtime import interface_json
from rankhoist.runtime.ids import ids_of
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.manifest import Manifest, StageFile
from rankhoist.runtime.opaque import Kept
from rankhoist.runtime.vocabulary import Vocabulary
from rankhoist.runtime.weights import Argument, Weights


@dataclass(frozen=True)
class Source:
    """What is exported: a plan of a model by its number, and its weights.

    `inputs` are those of calls whose axes may vary; ids are checked against `vocabulary`.
    """

    inputs: Inputs
    stages: Stages
    weights: Weights
    vocabulary: Vocabulary
    plan: int = 0

    def exported(self, several: bool) -> Iterator[Exported]:
        """The stages of the plan, with `several` also the candidate stage of several requests."""
        self.vocabulary.guard(self.stages)
        variant = self.stages.variants[self.plan]
        with torch.no_grad():
            context = self._arguments("context", {})
            state = _state(variant, context)
            request = export("request", variant.request, False, context, "state")
            yield request
            found = request.axes[: len(state)] or [None] * len(state)
            moving = [Moving(f"state.{n}", *own) for n, own in enumerate(zip(state, found, strict=True))]
            one = [replace(m, example=m.example[:1], axes=m.axes or None) for m in moving]
            candidate = self._arguments("candidate", dict(zip(variant.state, one, strict=True)))
            yield export("candidate", variant.candidate, False, candidate, "output")
            if several:
                many = [replace(m, axes={0: REQUESTS} | (m.axes or {})) for m in moving]
                candidate = self._arguments("candidate", dict(zip(variant.state, many, strict=True)))
                yield export("several", variant.candidate, True, candidate, "output")

    def _arguments(self, side: str, state: Mapping[int, Moving]) -> list[Moving | torch.Tensor]:
        """What a stage takes behind `rows`, `owner` and `offsets`: what moves, and weights."""
        of_request, of_candidate = self.weights.arguments[self.plan]
        given, axis, rows = (
            (of_request, REQUESTS, len(BOUNDS) - 1) if side == "context" else (of_candidate, ROWS, int(BOUNDS[-1]))
        )
        made_up, known = self.inputs.several(side, rows), self.inputs.tensors[side]
        totals: dict[str, Any] = {}  # how many values the bags of an input have

        def axes(name: str) -> dict[int, Any]:
            if name not in known:
                return {0: axis}
            if not known[name].lengths:
                return {0: axis} | {v.axis: self._lengths[v.length] for v in known[name].row.varying}
            return {0: totals.setdefault(known[name].lengths, Dim(f"values_{len(totals)}", min=0))}

        def argument(a: Argument) -> Moving | torch.Tensor:
            assert not isinstance(a, Kept), "models with modules that are kept are not exported"
            if isinstance(a, int):
                return state[a]
            return Moving(a, made_up[a], axes(a)) if isinstance(a, str) else a

        return list(map(argument, given))

    @cached_property
    def _lengths(self) -> dict[str, Any]:
        """The symbolic size of every axis that varies, by length; in files it is called by its first input."""
        made: dict[str, Any] = {}
        for spec in self.inputs.interface.inputs.values():
            for v in spec.varying:
                name = f"axis_{v.axis}_of_{re.sub(r'[^0-9A-Za-z]', '_', spec.name)}"
                name += "_" * sum(dim.__name__.rstrip("_") == name for dim in made.values())
                made.setdefault(v.length, Dim(name, min=v.low, max=v.high or MOST))
        return made


def _state(variant: Variant, context: Sequence[Moving | torch.Tensor]) -> list[torch.Tensor]:
    """The state that the request stage makes of rows to export with, as a compiled stage takes it."""
    requests = len(BOUNDS) - 1
    made = variant.request.module(requests, None, None, *(a.example if isinstance(a, Moving) else a for a in context))
    state = [t.contiguous() for t in made]
    if any(len(t) != requests for t in state):
        raise BackendError("cannot export bags of a request that are computed with once per candidate")
    return state


def to_onnx(folder: Path, source: Source, several: bool) -> None:
    """Both stages of a plan as ONNX models, in files of a folder.

    Raises:
        BackendError: the extra `onnx` is not installed, or an operator has no ONNX counterpart.
    """
    write(folder, source, several, onnx.SUFFIX, onnx.writer())


def to_package(folder: Path, source: Source, several: bool) -> None:
    """Both stages of a plan compiled ahead of time, in files of a folder.

    Raises:
        BackendError: a stage does not compile.
    """
    write(folder, source, several, aoti.SUFFIX, aoti.write)


def write(folder: Path, source: Source, several: bool, suffix: str, write_one: Write) -> None:
    """Every stage, each to a file of its own, and the manifest.

    Raises:
        BackendError: the model is called in a way that no manifest describes, or a stage is refused.
        ArtifactError: the folder cannot be written.
    """
    inputs, files, constants = source.inputs, dict[str, StageFile](), dict[int, Any]()
    try:
        interface_json.to_data(inputs.interface)  # what no manifest describes is refused before anything is written
    except ArtifactError as error:
        raise refused("the model", error) from error
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for stage in source.exported(several):
        path = folder / f"{stage.name}{suffix}"
        try:
            write_one(stage, path)
        except Exception as error:
            raise refused(path.name, error) from error
        guards = list(stage.guards)
        files[stage.name] = StageFile(path.name, stage.inputs, stage.outputs, stage.row_axes, guards)
        constants |= stage.constants
    Manifest(inputs.interface, inputs.dtype, files, constants, ids_of(source.vocabulary, inputs)).write(folder)
