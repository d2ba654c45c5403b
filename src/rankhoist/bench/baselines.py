"""What a hoisted model is compared with: the original on repeated rows, compiled, in ONNX Runtime, and mapped over
candidates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from rankhoist.bench.scenarios import Scenario, Tensors
from rankhoist.capture.export import export
from rankhoist.compiler.targets import onnx
from rankhoist.compiler.targets.cuda_graphs import recorder_of
from rankhoist.compiler.targets.exported import Exported

Call = Callable[[], Any]


@dataclass(frozen=True)
class Given:
    """What a scenario's model is called with: context `[R, ...]`, candidates `[N, ...]`, and R + 1 offsets of these."""

    case: Scenario
    context: Tensors
    candidate: Tensors
    offsets: list[int]

    @property
    def request_offsets(self) -> list[int] | None:
        """What a hoisted model is told of them; one request needs none."""
        return self.offsets if len(self.offsets) > 2 else None

    def repeated(self) -> Tensors:
        """Context rows for every candidate of their request: a view where there is one request."""
        rows = self.offsets[-1]
        if self.request_offsets is None:
            return {name: x.expand(rows, *x.shape[1:]) for name, x in self.context.items()}
        counts = torch.tensor(self.offsets).diff().to(next(iter(self.context.values())).device)
        return {name: x.repeat_interleave(counts, 0) for name, x in self.context.items()}

    def hoisted(self, model: Callable[..., Any]) -> Call:
        """A call of a hoisted model."""
        given = self.case.arguments(self.context, self.candidate)
        return partial(model, *given, request_offsets=self.request_offsets)


def eager(model: Callable[..., Any], given: Given, copied: bool = False) -> Call:
    """The model as trained, on rows that are repeated before the clock starts; `copied` where a view would not do."""
    whole = given.repeated()
    if copied:
        whole = {name: x.contiguous() for name, x in whole.items()}
    return partial(model, *given.case.arguments(whole, given.candidate))


def vmapped(model: nn.Module, given: Given) -> Call:
    """`vmap` over candidates with the context unbatched: what depends on context alone is computed once."""

    def one(context: Tensors, candidate: Tensors) -> Any:
        row = {name: x.unsqueeze(0) for name, x in candidate.items()}
        return pytree.tree_map(lambda y: y.squeeze(0), model(*given.case.arguments(context, row)))

    return partial(torch.func.vmap(one, in_dims=(None, 0)), given.context, given.candidate)


def in_onnx_runtime(model: nn.Module, case: Scenario) -> Callable[..., Any]:
    """The original with rows of any number, as a function of whole rows; as many threads as torch has.

    Raises:
        BackendError: the extra `onnx` is not installed.
        ExportError: `torch.export` refuses the model.
    """
    write, load = onnx.writer(), onnx.loader((), torch.get_num_threads())
    with torch.inference_mode(False), torch.no_grad():
        program = export(model, inspect.signature(model.forward).bind(*case.inputs(4, 4)))
    signature = program.graph_signature
    inputs = [f"input.{i}" for i, _ in enumerate(signature.user_inputs)]
    outputs = [f"output.{i}" for i, _ in enumerate(signature.user_outputs)]
    with TemporaryDirectory(prefix="rankhoist-") as folder:
        path = Path(folder) / f"model{onnx.SUFFIX}"
        write(Exported("model", program, inputs, outputs, [True] * len(outputs), {}), path)
        call = load(path)

    def run(*arguments: Any) -> Any:
        made = list(call(pytree.tree_leaves(arguments)))
        return made[0] if len(made) == 1 else made

    return run


def graphed(call: Call) -> Call:
    """The call's kernels as one CUDA graph over the same tensors: no launch costs; its result is overwritten."""
    recorder = recorder_of(torch.device("cuda"))
    made: list[Any] = []

    def function() -> list[Any]:
        made[:] = [call()]
        return pytree.tree_leaves(made)

    with recorder.turn():
        recording = recorder.record(function)

    def replayed() -> Any:
        recording.replay()
        return made[0]

    return replayed
