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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from rankhoist.capture.varying import MOST
from rankhoist.compiler.emit import Stages
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


def to_onnx(
    folder: Path, inputs: Inputs, stages: Stages, weights: Weights, known: Vocabulary, several: bool, plan: int = 0
) -> None:
    """Both stages of a plan as ONNX models.

    Raises:
        BackendError: the extra `onnx` is not installed, or an operator has no ONNX counterpart.
    """
    write_one = onnx.writer()
    write(folder, inputs, known, exported(inputs, stages, weights, known, several, plan), onnx.SUFFIX, write_one)


def to_package(
    folder: Path, inputs: Inputs, stages: Stages, weights: Weights, known: Vocabulary, several: bool, plan: int = 0
) -> None:
    """Both stages of a plan compiled ahead of time.

    Raises:
        BackendError: a stage does not compile.
    """
    write(folder, inputs, known, exported(inputs, stages, weights, known, several, plan), aoti.SUFFIX, aoti.write)


def write(
    folder: Path, inputs: Inputs, known: Vocabulary, stages: Iterable[Exported], suffix: str, write_one: Write
) -> None:
    """Every stage, each to a file of its own, and the manifest.

    Raises:
        BackendError: the model is called in a way that no manifest describes, or a stage is refused.
    """
    files: dict[str, StageFile] = {}
    constants: dict[int, Any] = {}
    try:
        interface_json.to_data(inputs.interface)  # what no manifest describes is refused before anything is written
    except ArtifactError as error:
        raise refused("the model", error) from error
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        path = folder / f"{stage.name}{suffix}"
        try:
            write_one(stage, path)
        except Exception as error:
            raise refused(path.name, error) from error
        guards = list(stage.guards)
        files[stage.name] = StageFile(path.name, stage.inputs, stage.outputs, stage.row_axes, guards)
        constants |= stage.constants
    Manifest(inputs.interface, inputs.dtype, files, constants, ids_of(known, inputs)).write(folder)


def exported(
    inputs: Inputs, stages: Stages, weights: Weights, known: Vocabulary, several: bool, plan: int = 0
) -> Iterator[Exported]:
    """The stages of a plan, with `several` also the candidate stage of several requests."""
    known.guard(stages)
    variant, requests = stages.variants[plan], len(BOUNDS) - 1
    of_request, of_candidate = weights.arguments[plan]
    lengths = _lengths(inputs)

    def arguments(
        given: Sequence[Argument], side: str, axis: Any, state: dict[int, Moving], rows: int
    ) -> list[Moving | torch.Tensor]:
        made_up, known = inputs.several(side, rows), inputs.tensors[side]
        totals: dict[str, Any] = {}  # how many values the bags of an input have

        def argument(a: Argument) -> Moving | torch.Tensor:
            if isinstance(a, int):
                return state[a]
            assert not isinstance(a, Kept), "models with modules that are kept are not exported"
            if not isinstance(a, str):
                return a
            if a not in known or not known[a].lengths:
                free = known[a].row.varying if a in known else ()
                return Moving(a, made_up[a], {0: axis} | {v.axis: lengths[v.length] for v in free})
            total = totals.setdefault(known[a].lengths, torch.export.Dim(f"values_{len(totals)}", min=0))
            return Moving(a, made_up[a], {0: total})

        return list(map(argument, given))

    with torch.no_grad():
        context = arguments(of_request, "context", REQUESTS, {}, requests)
        given = [a.example if isinstance(a, Moving) else a for a in context]
        made = variant.request.module(requests, None, None, *given)
        state = [t.contiguous() for t in made]  # as a compiled stage takes it
        if any(len(t) != requests for t in state):
            raise BackendError("cannot export bags of a request that are computed with once per candidate")
        names = {i: f"state.{n}" for n, i in enumerate(variant.state)}
        request = export("request", variant.request, False, context, "state")
        yield request
        axes: Sequence[dict[int, Any]] = request.axes[: len(state)] or [{}] * len(state)
        one = {i: Moving(names[i], t[:1], a or None) for i, t, a in zip(variant.state, state, axes, strict=True)}
        candidate = arguments(of_candidate, "candidate", ROWS, one, int(BOUNDS[-1]))
        yield export("candidate", variant.candidate, False, candidate, "output")
        if several:
            of_many = zip(variant.state, state, axes, strict=True)
            many = {i: Moving(names[i], t, {0: REQUESTS} | a) for i, t, a in of_many}
            candidate = arguments(of_candidate, "candidate", ROWS, many, int(BOUNDS[-1]))
            yield export("several", variant.candidate, True, candidate, "output")


def _lengths(inputs: Inputs) -> dict[str, Any]:
    """The symbolic size of every axis that varies, by length; in files it is called by its first input."""
    made: dict[str, Any] = {}
    for spec in inputs.interface.inputs.values():
        for v in spec.varying:
            name = f"axis_{v.axis}_of_{re.sub(r'[^0-9A-Za-z]', '_', spec.name)}"
            name += "_" * sum(dim.__name__.rstrip("_") == name for dim in made.values())
            made.setdefault(v.length, Dim(name, min=v.low, max=v.high or MOST))
    return made
