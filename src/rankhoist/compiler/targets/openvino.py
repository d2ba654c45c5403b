"""A stage in OpenVINO, on CPUs (`pip install 'rankhoist[openvino]'`): converted as it was exported, without a file.

Rows are symbolic, so no size compiles anything anew. What is computed in bfloat16 is so by models of that dtype alone:
on some processors OpenVINO would take it for float32 as well.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.targets.differs import held, within
from rankhoist.compiler.targets.exported import Call, DeclinedError, Exported
from rankhoist.compiler.targets.extras import need, present

MODULES = ("openvino",)
TELEMETRY = "openvino_telemetry"


def installed() -> bool:
    """Whether the extra is."""
    return present(*MODULES)


def session(stage: Exported, threads: int) -> Call:
    """What runs a stage. It releases the interpreter lock, and runs one call after another.

    Raises:
        BackendError: the extra is not installed.
        DeclinedError: OpenVINO does not take an operator of it, or computes it otherwise.
    """
    need("openvino", *MODULES)
    kept = held(stage)
    try:
        model, weights = _converted(stage.program)
    except Exception as error:
        raise DeclinedError(f"OpenVINO does not convert it: {_told(error)}") from error
    compiled = _core().compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": _precision(stage.program), "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    })  # fmt: skip
    return _Compiled(compiled, stage.program, weights, kept)


class _Compiled:
    """A compiled stage, with requests to run it by: as many as there are calls at once."""

    def __init__(self, compiled: Any, program: torch.export.ExportedProgram, weights: Any, held: list[int]) -> None:
        self._compiled, self._weights, self._held = compiled, weights, held
        read = {name: port for port in compiled.inputs for name in port.names}
        self._inputs = [(i, read[name]) for i, name in enumerate(program.graph_signature.user_inputs) if name in read]
        self._outputs = [(t.dtype, port) for t, port in zip(_results(program), compiled.outputs, strict=True)]
        self._idle: deque[Any] = deque()

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        given = [t.detach().contiguous() for t in inputs]  # here as long as they are read
        if not all(within(given[i]) for i in self._held):
            raise DeclinedError("an integer of the call needs more than 32 bits")
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        for i, port in self._inputs:
            request.set_tensor(port, _shared(given[i]))
        request.infer()
        made = [_copied(request.get_tensor(port), dtype) for dtype, port in self._outputs]
        self._idle.append(request)
        return made


def _converted(program: torch.export.ExportedProgram) -> tuple[Any, Any]:
    """The program in OpenVINO, and what holds the weights, which it reads where they are."""
    openvino = imported()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    known = {*ops_to_not_decompose()}
    table = {op: made for op, made in torch.export.default_decompositions().items() if op not in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        module = program.run_decompositions(table).module()
    module._apply(Tensor.contiguous)  # of another it would read a copy, which nobody holds
    frontend, decoder = openvino.frontend.FrontEndManager().load_by_framework("pytorch"), TorchFXPythonDecoder(module)
    return frontend.convert(frontend.load(decoder)), (module, decoder)


def _told(error: Exception) -> str:
    """The operators that it does not know, or the end of what it says."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if "No conversion rule" in line), lines[-1] if lines else type(error).__name__)


def _precision(program: torch.export.ExportedProgram) -> str:
    """In what to compute: in bfloat16 where nothing else is."""
    made = [value for node in program.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)]
    return "bf16" if {t.dtype for t in made if t.is_floating_point()} == {torch.bfloat16} else "f32"


def _results(program: torch.export.ExportedProgram) -> list[Tensor]:
    """What tracing knows of each result."""
    *_, last = program.graph.nodes
    return [node.meta["val"] for node in last.args[0]]


def _shared(t: Tensor) -> Any:
    """A tensor of OpenVINO's over the same memory."""
    openvino = imported()
    if t.dtype is torch.bfloat16:
        return openvino.Tensor(t.view(torch.int16).numpy(), list(t.shape), openvino.Type.bf16)
    return openvino.Tensor(t.numpy(), shared_memory=True)


def _copied(made: Any, dtype: torch.dtype) -> Tensor:
    """A result, which the request's next call writes over."""
    t = torch.from_numpy(made.data.copy())
    return t.view(dtype) if dtype is torch.bfloat16 else t.to(dtype)


@functools.cache
def _core() -> Any:
    return imported().Core()


@functools.cache
def imported() -> Any:
    """The package. At its import it would tell a service on the web that it is used, if another one of its makers' is
    there, and does without it.
    """
    silent = TELEMETRY not in sys.modules
    if silent:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import openvino
    finally:
        if silent:
            del sys.modules[TELEMETRY]
    return openvino
