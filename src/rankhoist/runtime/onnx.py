"""Both stages as ONNX models, and a runner of them around ONNX Runtime (`pip install 'rankhoist[onnx]'`)."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankhoist.errors import BackendError
from rankhoist.runtime.deploy import Call, Exported, Runner, write

if TYPE_CHECKING:
    from rankhoist.runtime.hoisted import HoistedModel

INSIDE = 2**30  # bytes of weights that stay inside the model; ONNX files end at 2 GiB


def export_onnx(hoisted: HoistedModel, folder: str | os.PathLike[str], several: bool = False) -> None:
    """Write `request.onnx`, `candidate.onnx` and the manifest; with `several`, `several.onnx` too.

    Weights are initializers of the models, in a file beside it (`candidate.onnx.data`) where they exceed 1 GiB.

    Raises:
        BackendError: the extra is not installed, or an operator has no ONNX counterpart.
    """
    _need("onnx", "onnxscript")
    write(hoisted, Path(folder), ".onnx", several, _write)


def load_onnx(folder: str | os.PathLike[str], providers: Sequence[str] = (), threads: int = 0) -> Runner:
    """Run an export with ONNX Runtime, which releases the interpreter lock.

    Args:
        providers: execution providers by name; the CPU's by default.
        threads: inside one operator; 0 leaves it to ONNX Runtime.
    """
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def load(path: Path) -> Call:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*providers] or ["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]

        def call(inputs: list[Tensor]) -> Sequence[Tensor]:
            given = {n: t.detach().numpy() for n, t in zip(names, inputs, strict=True)}
            return [torch.from_numpy(a) for a in session.run(None, given)]

        return call

    return Runner(Path(folder), load)


def _write(stage: Exported, path: Path) -> None:
    weights = sum(t.numel() * t.element_size() for t in stage.program.state_dict.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and the exporter about themselves
        torch.onnx.export(
            stage.program, f=str(path), input_names=stage.inputs, output_names=stage.outputs, dynamo=True,
            external_data=weights > INSIDE, verbose=False,
        )  # fmt: skip


def _need(*modules: str) -> Any:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise BackendError(f"{', '.join(missing)} is not installed: pip install 'rankhoist[onnx]'")
