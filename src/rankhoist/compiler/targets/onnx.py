"""A stage as an ONNX model, and ONNX Runtime to run it (`pip install 'rankhoist[onnx]'`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.targets.exported import Call, Exported, Load, Write
from rankhoist.compiler.targets.extras import need, present
from rankhoist.compiler.targets.onnx_words import written_out
from rankhoist.errors import BackendError

SUFFIX = ".onnx"
INSIDE = 2**30  # bytes of weights that stay inside the model; ONNX files end at 2 GiB


def installed() -> bool:
    """Whether the extra is."""
    return present("onnx", "onnxscript", "onnxruntime")


def writer() -> Write:
    """What writes a stage.

    Raises:
        BackendError: the extra is not installed.
    """
    need("onnx", "onnx", "onnxscript")
    return _write


def loader(providers: Sequence[str], threads: int) -> Load:
    """What loads a stage into ONNX Runtime, which releases the interpreter lock, or raises a BackendError.

    Raises:
        BackendError: the extra is not installed.
    """
    need("onnx", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def load(path: Path) -> Call:
        names = [*providers] or ["CPUExecutionProvider"]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=names)
        except Exception as error:  # its own kinds have no common base
            raise BackendError(
                f"ONNX Runtime does not run {path.name} on {', '.join(names)}: {error}. Kernels that it lacks for a "
                "dtype it has for float32: hoist model.float(), and export that"
            ) from error
        names = [i.name for i in session.get_inputs()]

        def call(inputs: list[Tensor]) -> Sequence[Tensor]:
            given = {n: t.detach().numpy() for n, t in zip(names, inputs, strict=True)}
            return [torch.from_numpy(a) for a in session.run(None, given)]

        return call

    return load


def session(stage: Exported, threads: int) -> Call:
    """What runs a stage, which is written and loaded: see `loader`."""
    with TemporaryDirectory(prefix="rankhoist-") as folder:
        path = Path(folder) / f"{stage.name}{SUFFIX}"
        writer()(stage, path)
        return loader((), threads)(path)


def _write(stage: Exported, path: Path) -> None:
    weights = sum(t.numel() * t.element_size() for t in stage.program.state_dict.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and the exporter about themselves
        program = torch.onnx.export(
            written_out(stage.program), dynamo=True, verbose=False, dynamic_shapes=stage.names,
            optimize=False,  # it takes 1e-9 for 0, see findings/onnx_drops_small_numbers.sh; runtimes optimise again
        )  # fmt: skip
        assert program is not None
        _name(program.model.graph, stage.inputs, stage.outputs)
        program.save(str(path), external_data=weights > INSIDE)


def _name(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Inputs and results have our names; what the exporter has called the same, as a `cat`, gets another."""
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in [*graph.initializers.values(), *made]:
        if value.name in {*inputs, *outputs}:
            value.name += "/inside"
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
