"""The original model: what it computes over whole rows, in its own dtype and, as the truth, in float64."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture import Interface, Model, Program, archive, onnx
from rankhoist.capture.checks import in_training_mode
from rankhoist.capture.wrappers import unwrapped
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.errors import CaptureError, VerificationError
from rankhoist.mistakes import in_one_line
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.planned import OnePlan
from rankhoist.runtime.retarget import SHORTER, dtypes, retargeted
from rankhoist.verify.batches import Batch, arguments, split_rows, whole_rows
from rankhoist.verify.measure import FLOAT64_TOLERANCE, Outputs, distance, half_of_the_digits, outputs
from rankhoist.verify.tables import Tables

Original = Model | str | os.PathLike[str]
Run = Callable[[Batch], Outputs]

MODEL = "model in float64"
GRAPH = "captured graph in float64"
NO_GRAPH = "loaded from a file, the hoisted model has no captured graph that could be the truth"


@dataclass(frozen=True)
class Truth:
    """What results are compared with: its name, why it is not the model itself, and how to compute it."""

    name: str
    run: Run
    note: str = ""


def as_module(model: Original) -> nn.Module:
    """The model as something to call.

    Raises:
        VerificationError: a module is in training mode, or the file cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        if Path(model).suffix == onnx.SUFFIX:
            return onnx.Session(Path(model))
        try:
            model = archive.read(Path(model))
        except CaptureError as error:
            raise VerificationError(str(error)) from error
    if isinstance(model, torch.export.ExportedProgram):
        module: nn.Module = model.module()
        return module
    model = unwrapped(model)
    training = in_training_mode(model)
    if training:
        raise VerificationError(f"call model.eval() first: in training mode are {', '.join(training[:5])}")
    return model


def run_original(module: nn.Module, interface: Interface, batch: Batch, dtype: torch.dtype | None = None) -> Outputs:
    """The original over N rows, its float inputs cast to `dtype`."""
    rows = whole_rows(interface, batch)
    if dtype is not None:
        rows = {name: x.to(dtype) if x.is_floating_point() else x for name, x in rows.items()}

    def call(rows: Mapping[str, Tensor]) -> Outputs:
        args, kwargs = arguments(interface, rows)
        return outputs(module(*args, **kwargs))

    return _one_row(call, rows) if batch.candidates == 1 else call(rows)


def _one_row(call: Callable[[Mapping[str, Tensor]], Outputs], rows: Mapping[str, Tensor]) -> Outputs:
    """A batch of one; where the model fails on that or loses axes (a squeeze), the first of two equal rows."""
    twice = call({name: x.repeat_interleave(2, 0) for name, x in rows.items()})
    try:
        alone = call(rows)
    except Exception:  # whatever it is, it is the model's own failure, and two rows have passed
        alone = None
    if alone is not None and _axes(alone) == _axes(twice):
        return alone
    return Outputs(twice.names, tuple(pytree.tree_map(_first_row, list(twice.leaves))))


def _axes(result: Outputs) -> list[int | None]:
    return [x.dim() if isinstance(x, Tensor) else None for x in result.leaves]


def _first_row(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == 2 else leaf


def run_hoisted(hoisted: HoistedModel | OnePlan, batch: Batch) -> Outputs:
    """The hoisted model, or one of its plans, on a batch."""
    batch = batch.cast(hoisted.interface, hoisted.dtype)
    if hoisted.interface.jagged:  # a container of bags has as many of every key
        state = hoisted.prepare(batch.context, candidates=batch.candidates)
        return outputs(hoisted.score(state, batch.candidate, list(batch.offsets)))
    args, kwargs = arguments(hoisted.interface, split_rows(hoisted.interface, batch))
    return outputs(hoisted(*args, request_offsets=list(batch.offsets), **kwargs))


def by_torch(module: nn.Module, hoisted: HoistedModel) -> Run:
    """The original in its own dtype by PyTorch's operators: for a file of another runtime, its captured graph."""
    if not isinstance(module, onnx.Session) or hoisted.program is None:
        return lambda batch: run_original(module, hoisted.interface, batch)
    graph = _graph(hoisted, hoisted.program).to(device=hoisted.device, dtype=hoisted.dtype)
    graph.update_weights(hoisted.state_dict())
    return lambda batch: run_hoisted(graph, batch)


def shortest_dtype(hoisted: HoistedModel) -> torch.dtype:
    """The floating dtype with the fewest digits that it computes in: its own, or what its graphs cast to."""
    return max({hoisted.dtype, *dtypes(hoisted.stages)}, key=lambda dtype: torch.finfo(dtype).eps)


def in_float64(hoisted: HoistedModel, tables: Tables) -> HoistedModel:
    """The same graphs and weights in float64; tensors outside the state dict as captured, not as rounded since then."""
    program, blueprint = hoisted.program, hoisted.blueprint
    if program is None:
        return _lifted(again(hoisted), tables, hoisted.device)
    original = {name: weight.tensor for name, weight in program.weights.items()}
    folded = hoisted.weights.folded  # not read: what the weights stage makes by this default, before it moves, may fail
    constants = blueprint.stages.constants
    captured = HoistedModel.of(blueprint, original, constants, program.dtype, program.device, folded)
    return _with_weights_of(hoisted, captured, tables)


def again(hoisted: HoistedModel) -> HoistedModel:
    """Another one of the same weights, which may move without it."""
    weights = hoisted.weights
    return HoistedModel.of(
        hoisted.blueprint, weights.original, weights.constants, hoisted.dtype, hoisted.device, weights.folded
    )


def _with_weights_of(hoisted: HoistedModel, other: HoistedModel, tables: Tables) -> HoistedModel:
    double = _lifted(other, tables, hoisted.device)
    double.update_weights(hoisted.state_dict())
    return double


def _lifted(hoisted: HoistedModel, tables: Tables, device: torch.device) -> HoistedModel:
    """In float64 throughout; a model that was float64 before is not moved, so its shorter parts are lifted here."""
    blueprint, moved = hoisted.blueprint, hoisted._apply(lambda x: tables.lifted(x.to(device)))
    if blueprint.interface.dtype != torch.float64:
        return moved
    blueprint = replace(blueprint, stages=retargeted(blueprint.stages, dict.fromkeys(SHORTER, torch.float64)))
    weights = moved._weights
    return HoistedModel.of(blueprint, weights.original, weights.constants, torch.float64, moved.device)


def tables_of(module: nn.Module, hoisted: HoistedModel) -> Tables:
    """Those that a model and the hoisted one look rows up in."""
    captured = [] if hoisted.program is None else [w.tensor for w in hoisted.program.weights.values()]
    return Tables([*module.parameters(), *module.buffers(), *hoisted.weights.original.values(), *captured])


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Tensors that a model makes without naming a dtype are float64 too, as they should be in a float64 run.

    The default is torch's own, and so the whole process's, until the run is over.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def choose_truth(module: nn.Module, hoisted: HoistedModel, tables: Tables, probes: Sequence[Batch]) -> Truth:
    """The model in float64, or its captured graph where the model itself does not compute in float64.

    A model that names float32 inside (`x.float()`) fails in float64, or rounds; in its graph every float32 can be
    replaced. A mask may hide of a request what is rounded, so several are asked. Other rows may round a hundred times
    as far as those, so that a hundredth of the 1e-10 that is asked for counts. A larger distance than half of the
    digits is no rounding: then the model is right.
    """
    model, program = _model_in_float64(module, tables, hoisted.interface), hoisted.program
    try:
        expected = [model.run(probe) for probe in probes]
    except Exception as error:  # whatever the model raises when it meets float64
        note = f"the model in float64 raises {in_one_line(error)}"
        if program is None:
            raise VerificationError(f"{note}; {NO_GRAPH}: verify it before it is saved") from error
        return replace(_graph_in_float64(hoisted, tables, program), note=note)
    if program is None:
        return replace(model, note=NO_GRAPH)
    graph = _graph_in_float64(hoisted, tables, program)
    try:
        rounding = max(distance(own, graph.run(probe)) for own, probe in zip(expected, probes, strict=True))
    except Exception:  # the fallback is not needed: the model works
        return model
    if FLOAT64_TOLERANCE / 100 < rounding <= half_of_the_digits(shortest_dtype(hoisted)):
        return replace(graph, note=f"the model in float64 is {rounding:.1e} away: it rounds to a shorter dtype inside")
    return model


def _model_in_float64(module: nn.Module, tables: Tables, interface: Interface) -> Truth:
    weights = itertools.chain(module.parameters(), module.buffers())
    shared = {id(t): t for t in weights if tables.has(t)}
    double = cache(lambda: copy.deepcopy(module, shared)._apply(tables.lifted))
    return Truth(MODEL, lambda batch: run_original(double(), interface, batch, torch.float64))


def _graph_in_float64(hoisted: HoistedModel, tables: Tables, program: Program) -> Truth:
    """The captured operators over all rows, nothing hoisted."""
    double = cache(lambda: _with_weights_of(hoisted, _graph(hoisted, program), tables))
    return Truth(GRAPH, lambda batch: run_hoisted(double(), batch))


def _graph(hoisted: HoistedModel, program: Program) -> HoistedModel:
    return HoistedModel(program, attempt(Task(program, Level.EXPAND, hoisted.plan.workload)))
