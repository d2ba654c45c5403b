"""Both stages of a hoisted model as exported programs with a manifest, and a runner of what was made from them.

What is exported is the plan for the workload that the model was hoisted for, with its weights inside; another plan
would hold them again:

    request      context inputs [R, ...]                                       -> state.0, state.1, ... [R, ...]
    candidate    state [1, ...], candidate inputs [N, ...]                     -> output.0, ... [N, ...]
    several      request.owner [N], request.slots [R, M], state, candidates    -> the same, for several requests

`rankhoist.compiler.emit.traceable` says what owner and slots are. The manifest lists each stage's file, inputs and
outputs in order; a stage takes only the inputs that it reads. Of a packed input each stage takes its own columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export import Dim
from torch.utils import _pytree as pytree

from rankhoist.compiler.algebra.ir import aten
from rankhoist.compiler.emit import Stage
from rankhoist.compiler.emit.traceable import slots_of, traceable
from rankhoist.errors import ArtifactError, BackendError, InputError
from rankhoist.runtime.model_json import as_structure, structure
from rankhoist.runtime.offsets import Offsets, bounds_and_counts
from rankhoist.runtime.plain import entry

if TYPE_CHECKING:
    from rankhoist.runtime.hoisted import HoistedModel

MANIFEST = "manifest.json"
BOUNDS = torch.tensor([0, 5, 8, 11])  # of the rows to export with: no two sizes are equal by chance
REQUESTS, ROWS, LONGEST = Dim("requests", min=1, max=2**20), Dim("rows", min=1, max=2**24), Dim("longest", max=2**24)
OWNER, SLOTS = "request.owner", "request.slots"

Write = Callable[["Exported", Path], None]  # a stage, and the path to write it to
Call = Callable[[list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Argument:
    """An input of a stage: its name, rows to export with, and its symbolic axes (all sizes are fixed if `None`)."""

    name: str
    example: Tensor
    axes: dict[int, Any] | None


@dataclass(frozen=True)
class Exported:
    """A stage as a program of tensors alone; `constants` are the results that are no tensors, by position."""

    name: str
    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]
    constants: dict[int, Any]


def write(hoisted: HoistedModel, folder: Path, suffix: str, several: bool, write_one: Write) -> None:
    """Every stage and the manifest."""
    try:
        about: dict[str, Any] = {"format": 2, "result": structure(hoisted.interface.out_spec, "returns"), "stages": {}}
    except ArtifactError as error:
        raise _refused("the model", error) from error
    folder.mkdir(parents=True, exist_ok=True)
    for stage in exported(hoisted, several):
        path = folder / f"{stage.name}{suffix}"
        try:
            write_one(stage, path)
        except Exception as error:
            raise _refused(path.name, error) from error
        about["stages"][stage.name] = {"file": path.name, "inputs": stage.inputs, "outputs": stage.outputs}
        about["constants"] = stage.constants
    (folder / MANIFEST).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def exported(hoisted: HoistedModel, several: bool) -> Iterator[Exported]:
    """The stages of the first plan, with `several` also the candidate stage of several requests."""
    variant, requests = hoisted.stages.variants[0], len(BOUNDS) - 1
    of_request, of_candidate = hoisted._weights.arguments[0]

    def arguments(
        given: Sequence[Tensor | int | str], side: str, axis: Any, state: dict[int, Argument], rows: int
    ) -> list[Argument | Tensor]:
        made_up = hoisted.made_up(side, rows)

        def argument(a: Tensor | int | str) -> Argument | Tensor:
            if isinstance(a, int):
                return state[a]
            return Argument(a, made_up[a], {0: axis}) if isinstance(a, str) else a

        return list(map(argument, given))

    with torch.no_grad():
        context = arguments(of_request, "context", REQUESTS, {}, requests)
        given = [a.example if isinstance(a, Argument) else a for a in context]
        made = variant.request.module(requests, None, None, *given)
        state = [t.contiguous() for t in made]  # as a compiled stage takes it
        names = {i: f"state.{n}" for n, i in enumerate(variant.state)}
        yield _export("request", variant.request, False, context, "state")
        one = {i: Argument(names[i], t[:1], None) for i, t in zip(variant.state, state, strict=True)}
        candidate = arguments(of_candidate, "candidate", ROWS, one, int(BOUNDS[-1]))
        yield _export("candidate", variant.candidate, False, candidate, "output")
        if several:
            many = {i: Argument(names[i], t, {0: REQUESTS}) for i, t in zip(variant.state, state, strict=True)}
            candidate = arguments(of_candidate, "candidate", ROWS, many, int(BOUNDS[-1]))
            yield _export("several", variant.candidate, True, candidate, "output")


def _export(name: str, stage: Stage, several: bool, given: Sequence[Argument | Tensor], result: str) -> Exported:
    if not stage.leaves:
        raise BackendError(f"the {name} stage reads no input, so there is nothing to export")
    spelled = traceable(stage, several)
    owner = torch.repeat_interleave(torch.arange(len(BOUNDS) - 1), BOUNDS.diff())
    blocks = {
        "owner": Argument(OWNER, owner, {0: ROWS}),
        "slots": Argument(SLOTS, slots_of(BOUNDS), {0: REQUESTS, 1: LONGEST}),
    }
    everything = [*(blocks[a] for a in spelled.arguments), *given]
    constants = _bind(spelled.module, everything)
    moving = [a for a in everything if isinstance(a, Argument)]
    names = [a.name for a in moving]
    if len(set(names)) < len(names):
        raise BackendError(f"two inputs of the {name} stage have the same name: {', '.join(sorted(names))}")
    try:
        program = torch.export.export(
            spelled.module, tuple(a.example for a in moving), dynamic_shapes=tuple(a.axes for a in moving), strict=False
        )
    except Exception as error:
        raise _refused(name, error) from error
    count = len(program.graph_signature.user_outputs)
    return Exported(name, program, names, [f"{result}.{i}" for i in range(count)], constants)


def _bind(module: fx.GraphModule, given: Sequence[Argument | Tensor]) -> dict[int, Any]:
    """Turn the placeholders of weights into buffers; returns the results that are no tensors, which are left out."""
    graph = module.graph
    *placeholders, first = (n for n, _ in zip(graph.nodes, range(len(given) + 1), strict=False))
    for i, (node, value) in enumerate(zip(placeholders, given, strict=True)):
        if isinstance(value, Tensor):
            module.register_buffer(f"weight_{i}", value)
            with graph.inserting_before(first):
                node.replace_all_uses_with(graph.get_attr(f"weight_{i}"))
            graph.erase_node(node)
    last = next(reversed(graph.nodes))
    results, constants = [], {}
    for i, value in enumerate(last.args[0]):
        if not isinstance(value, fx.Node):
            constants[i] = value
        elif value.op != "call_function" or value in results:  # an input, a weight, a result again
            with graph.inserting_before(last):
                results.append(graph.call_function(aten.clone.default, (value,)))
        else:
            results.append(value)
    last.args = (tuple(results),)
    module.recompile()
    return constants


def _refused(stage: str, error: Exception) -> BackendError:
    return BackendError(f"cannot export {stage}: {type(error).__name__}: {str(error).strip()[:1500]}")


@dataclass(frozen=True)
class State:
    """The context work of `requests` requests."""

    requests: int
    tensors: dict[str, Tensor]


class Runner:
    """Scores with exported stages: `prepare` once per request, `score` as often as you like.

    Tensors in and out, on the CPU. It checks names and row counts; shapes and dtypes are for the stages to refuse.
    """

    def __init__(self, folder: Path, load: Callable[[Path], Call]) -> None:
        try:
            about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            self.stages: dict[str, dict[str, Any]] = entry(about, "stages", dict)
            self._result = as_structure(about.get("result"))
            self._constants = {int(i): value for i, value in entry(about, "constants", dict).items()}
        except (OSError, ValueError, ArtifactError) as error:
            raise BackendError(f"{folder} holds no readable {MANIFEST}, export it again: {error}") from error
        self._calls = {name: load(folder / stage["file"]) for name, stage in self.stages.items()}

    def prepare(self, context: Mapping[str, Tensor]) -> State:
        """`{name: [R, ...]}` -> state; of a packed input, its context columns."""
        made = self._run("request", context)
        return State(_rows(context, "context"), {name: t.contiguous() for name, t in made.items()})

    def score(self, state: State, candidates: Mapping[str, Tensor], request_offsets: Offsets | None = None) -> Any:
        """Scores of N candidates `{name: [N, ...]}`; for several requests, `request_offsets` are their boundaries."""
        rows = _rows(candidates, "candidate")
        blocks = {} if request_offsets is None else _blocks(state.requests, rows, request_offsets)
        if state.requests != 1 and (not blocks or "several" not in self.stages):
            raise InputError(f"{state.requests} requests need request_offsets, and an export with several=True")
        name = "candidate" if state.requests == 1 else "several"
        made = list(self._run(name, {**blocks, **state.tensors, **candidates}).values())
        for i in sorted(self._constants):
            made.insert(i, self._constants[i])
        return pytree.tree_unflatten(made, self._result)

    def _run(self, name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stage = self.stages[name]
        missing = [i for i in stage["inputs"] if i not in given]
        if missing:
            raise InputError(f"missing {name} inputs: {', '.join(missing)}; got {', '.join(given) or 'none'}")
        return dict(zip(stage["outputs"], self._calls[name]([given[i] for i in stage["inputs"]]), strict=True))


def _rows(inputs: Mapping[str, Tensor], what: str) -> int:
    rows = {name: t.shape[0] for name, t in inputs.items()}
    if len(set(rows.values())) != 1 or not min(rows.values()):
        listing = ", ".join(f"{name}: {count}" for name, count in rows.items()) or "none"
        raise InputError(f"the {what} inputs need one common row count of 1 or more ({listing})")
    return next(iter(rows.values()))


def _blocks(requests: int, rows: int, offsets: Offsets) -> dict[str, Tensor]:
    bounds, counts = bounds_and_counts(offsets, requests, rows)
    return {OWNER: torch.repeat_interleave(torch.arange(requests), counts), SLOTS: slots_of(bounds)}
