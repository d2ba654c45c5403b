"""A hoisted model as a model repository of Triton Inference Server: an ensemble of its two stages, as ONNX models.

    NAME/config.pbtxt                       the ensemble: context [1, ...] and candidates [N, ...] -> outputs [N, ...];
                                            -1 is N, or an axis that varies
    NAME/VERSION/manifest.json              how the model was called in Python
    NAME_request/config.pbtxt               context [1, ...] -> state
    NAME_request/VERSION/request.onnx
    NAME_request/warmup/0                   a made-up row of the first input: Triton runs it before it is ready
    NAME_candidate/...                      state and candidates [N, ...] -> outputs [N, ...]

A request of a client is one request with its candidates: rows are no batch of Triton's, so `max_batch_size` is 0.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankhoist.arguments import path_of, writing
from rankhoist.capture import Interface
from rankhoist.errors import BackendError
from rankhoist.runtime.datatypes import DATATYPES
from rankhoist.runtime.hoisted import HoistedModel
from rankhoist.runtime.manifest import NAME, Manifest
from rankhoist.runtime.outputs import made_up_outputs, sizes_of
from rankhoist.runtime.runner import Runner, load_onnx

MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ROWS = 8  # candidates of the warm-up


class Word(str):
    """A name of the schema, which stands without quotes."""


def to_triton(hoisted: HoistedModel, folder: str | os.PathLike[str], name: str, version: int = 1) -> None:
    """Write a model repository, or a later version of a model into one.

    Args:
        folder: that Triton is given as its model repository; other models in it stay.
        name: of the ensemble; its stages are `NAME_request` and `NAME_candidate`.
        version: a number from 1 on; Triton serves the highest. Every version of a model has the same inputs.

    Raises:
        BackendError: the extra `onnx` is not installed, an operator has no ONNX counterpart, a stage reads no input, an
            input is jagged, or there is this version already.
        ArtifactError: the folder cannot be written.
    """
    if not MODEL.fullmatch(name):
        raise BackendError(f"{name!r} is no name for a model of Triton's: letters, digits and _ -")
    if version < 1:
        raise BackendError(f"version {version} is none: Triton's versions are numbers from 1 on")
    hoisted._inputs.refuse("a model repository of Triton's", varying=False)
    root = path_of(folder, "folder")
    if (root / name / str(version)).exists():
        raise BackendError(f"{root / name} has a version {version} already: give a later one")
    with writing(root), tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary)
        hoisted.export_onnx(exported)
        stages = _stages(hoisted, exported, name)
        for stage in stages:
            _write_stage(root / stage.model, stage, exported, version)
        _write_config(root / name, _ensemble(name, *stages))
        (root / name / str(version)).mkdir(parents=True)
        shutil.move(exported / NAME, root / name / str(version) / NAME)


@dataclass(frozen=True)
class _Stage:
    """A stage as a model: made-up tensors that it takes, and returns for them, by its own names.

    `names` are those of the ensemble; `dims` are sizes, of which -1 is the number of candidates or an axis that varies.
    """

    model: str
    file: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    names: Mapping[str, str]
    dims: Mapping[str, list[int]]


def _stages(hoisted: HoistedModel, exported: Path, name: str) -> tuple[_Stage, _Stage]:
    """Request and candidate stage, run on made-up rows to see what they return."""
    manifest, runner = Manifest.read(exported), load_onnx(exported)
    request, candidate = manifest.stages["request"], manifest.stages["candidate"]
    context, state, items = _given(hoisted, runner, request.outputs, None)
    others = _given(hoisted, runner, request.outputs, hoisted.other_lengths)
    results = [made for made in made_up_outputs(hoisted, ROWS) if isinstance(made.value, Tensor)]
    outputs = {own: made.value for own, made in zip(candidate.outputs, results, strict=True)}
    public = {own: made.name for own, made in zip(candidate.outputs, results, strict=True)}
    of_context, of_state, of_items = map(_dims, (context, state, items), others)
    of_items = {own: [-1, *sizes[1:]] for own, sizes in of_items.items()}
    of_outputs = {
        own: [-1 if i == axis else n for i, n in enumerate(made.shape)]
        for own, axis, made in zip(candidate.outputs, candidate.row_axes, results, strict=True)
    }
    given = state | items
    return (
        _Stage(
            f"{name}_request", request.file, {i: context[i] for i in request.inputs}, state,
            {i: _public(hoisted.interface, i, "context") for i in context} | {i: i for i in state},
            of_context | of_state,
        ),
        _Stage(
            f"{name}_candidate", candidate.file, {i: given[i] for i in candidate.inputs}, outputs,
            {i: i for i in state} | {i: _public(hoisted.interface, i, "candidate") for i in items} | public,
            of_state | of_items | of_outputs,
        ),
    )  # fmt: skip


def _given(
    hoisted: HoistedModel, runner: Runner, names: Sequence[str], lengths: Mapping[str, int] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Made-up context, its state, and candidates."""
    context = hoisted.made_up("context", 1, lengths)
    state = dict(zip(names, runner.prepare(context).tensors.values(), strict=True))
    return context, state, hoisted.made_up("candidate", ROWS, lengths)


def _dims(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: [*sizes_of(t, others[name])] for name, t in tensors.items()}


def _public(interface: Interface, name: str, side: str) -> str:
    """As the server names it: a packed input is two."""
    packed = {spec.name for spec in interface.inputs.values() if spec.role == "packed"}
    return f"{name}.{side}" if name in packed else name


# -- files


def _write_stage(folder: Path, stage: _Stage, exported: Path, version: int) -> None:
    (folder / str(version)).mkdir(parents=True)
    for file in exported.glob(f"{stage.file}*"):  # weights of more than 1 GiB lie beside their model
        shutil.move(file, folder / str(version) / file.name)
    (folder / "warmup").mkdir(exist_ok=True)
    for i, tensor in enumerate(stage.inputs.values()):  # a feature's name may be no file's
        (folder / "warmup" / str(i)).write_bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    warm_up = {
        "name": "made-up rows", "batch_size": 1,
        "inputs": [
            {"key": name, "value": {"data_type": _type(t), "dims": [*t.shape], "input_data_file": str(i)}}
            for i, (name, t) in enumerate(stage.inputs.items())
        ],
    }  # fmt: skip
    config = {
        "name": stage.model, "backend": "onnxruntime", "default_model_filename": stage.file, "max_batch_size": 0,
        "input": [_tensor(n, n, t, stage) for n, t in stage.inputs.items()],
        "output": [_tensor(n, n, t, stage) for n, t in stage.outputs.items()],
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        "model_warmup": [warm_up],
    }  # fmt: skip
    _write_config(folder, config)


def _ensemble(name: str, request: _Stage, candidate: _Stage) -> dict[str, Any]:
    """Inputs of both stages but the state, which stays inside."""
    inputs = [_tensor(n, request.names[n], t, request) for n, t in request.inputs.items()]
    own = {n: t for n, t in candidate.inputs.items() if n not in request.outputs}
    inputs += [_tensor(n, candidate.names[n], t, candidate) for n, t in own.items()]
    used = [n for n in request.outputs if n in candidate.inputs]
    steps = [
        {
            "model_name": stage.model, "model_version": -1,
            "input_map": [{"key": n, "value": stage.names[n]} for n in stage.inputs],
            "output_map": [{"key": n, "value": stage.names[n]} for n in returned],
        }
        for stage, returned in ((request, used), (candidate, [*candidate.outputs]))
    ]  # fmt: skip
    outputs = [_tensor(n, candidate.names[n], t, candidate) for n, t in candidate.outputs.items()]
    return {
        "name": name, "platform": "ensemble", "max_batch_size": 0, "input": inputs, "output": outputs,
        "ensemble_scheduling": {"step": steps},
    }  # fmt: skip


def _tensor(own: str, name: str, tensor: Tensor, stage: _Stage) -> dict[str, Any]:
    return {"name": name, "data_type": _type(tensor), "dims": stage.dims[own]}


def _type(tensor: Tensor) -> Word:
    return Word(f"TYPE_{DATATYPES[tensor.dtype]}")


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text("\n".join(_lines(config)) + "\n", encoding="utf-8")


def _lines(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A message in protobuf's text format; a list of messages is the field again and again."""
    for field, value in message.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if isinstance(one, dict):
                yield f"{indent}{field} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{field}: {one if isinstance(one, Word) else json.dumps(one)}"
