"""One stage as an exported program of tensors alone, for what compiles it ahead of time or runs it elsewhere.

Its weights are inside; what moves are the inputs it reads, the state, and for several requests the blocks of
`rankhoist.compiler.emit.traceable`: `request.owner` and `request.slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import Dim

from rankhoist.compiler.emit import Stage
from rankhoist.compiler.emit.lookups import OUTSIDE
from rankhoist.compiler.emit.traceable import slots_of, traceable
from rankhoist.compiler.emit.writer import NUMBERS
from rankhoist.compiler.graph.node import aten
from rankhoist.errors import BackendError

BOUNDS = torch.tensor([0, 5, 8, 11])  # of the rows to export with: no two sizes are equal by chance
REQUESTS, ROWS, LONGEST = Dim("requests", min=1, max=2**20), Dim("rows", min=1, max=2**24), Dim("longest", max=2**24)
OWNER, SLOTS = "request.owner", "request.slots"


@dataclass(frozen=True)
class Moving:
    """An input of a stage: its name, rows to export with, and its symbolic axes (all sizes are fixed if `None`)."""

    name: str
    example: Tensor
    axes: dict[int, Any] | None


@dataclass(frozen=True)
class Exported:
    """A stage as a program of tensors alone.

    Attributes:
        inputs, outputs: their names, in order.
        row_axes: for each output which axis are the rows of the call; -1 where none is.
        guards: what is wrong where `ids.outside`, one more output, is not zero.
        constants: the results that are no tensors, by position among all results.
        axes: for each tensor of a state its symbolic axes after axis 0, in those of the inputs.
        names: for each input what its symbolic axes are called.
    """

    name: str
    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]
    row_axes: list[int]
    constants: dict[int, Any]
    guards: tuple[str, ...] = ()
    axes: tuple[dict[int, Any], ...] = ()
    names: tuple[dict[int, str], ...] = ()


Write = Callable[[Exported, Path], None]  # a stage, and the path to write it to
Call = Callable[[list[Tensor]], Sequence[Tensor]]  # what runs a stage: its inputs in order -> its outputs
Load = Callable[[Path], Call]
Runtime = Callable[[Exported, int], Call]  # a stage, and the threads inside one operator -> what runs it


class DeclinedError(BackendError):
    """Why a stage, or a call of one, is left to PyTorch's own operators."""


def blocks_of_rows(offsets: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """The inputs that cut the rows of several requests, `offsets [R + 1]` and `owner [N]`, into blocks."""
    return {OWNER: owner, SLOTS: slots_of(offsets)}


def export(name: str, stage: Stage, several: bool, given: Sequence[Moving | Tensor], result: str) -> Exported:
    """A stage with its weights (`given` tensors) inside, its outputs called `{result}.0`, ...

    Raises:
        BackendError: `torch.export` refuses it, there is nothing that moves, or it returns a number of rows.
    """
    if not stage.leaves:
        raise BackendError(f"the {name} stage reads no input, so there is nothing to export")
    rows, *_, last = stage.module.graph.nodes
    if any(x is rows or x.target in NUMBERS.values() for x in last.all_input_nodes):
        raise BackendError("a result is a number that changes with the number of rows, and only tensors are exported")
    spelled = traceable(stage, several)
    owner = torch.repeat_interleave(torch.arange(len(BOUNDS) - 1), BOUNDS.diff())
    cut = blocks_of_rows(BOUNDS, owner)
    arguments = {
        "owner": Moving(OWNER, cut[OWNER], {0: ROWS}),
        "slots": Moving(SLOTS, cut[SLOTS], {0: REQUESTS, 1: LONGEST}),
    }
    everything = [*(arguments[a] for a in spelled.arguments), *given]
    constants = _bind(spelled.module, everything)
    moving = [a for a in everything if isinstance(a, Moving)]
    inputs = [a.name for a in moving]
    if len(set(inputs)) < len(inputs):
        raise BackendError(f"two inputs of the {name} stage have the same name: {', '.join(sorted(inputs))}")
    try:
        program = torch.export.export(
            spelled.module, tuple(a.example for a in moving), dynamic_shapes=tuple(a.axes for a in moving), strict=False
        )
    except Exception as error:
        raise refused(name, error) from error
    row_axes = _row_axes(program, moving)
    if spelled.guards:
        row_axes.pop()  # of their count
    outputs = [f"{result}.{i}" for i in range(len(row_axes))] + [OUTSIDE] * bool(spelled.guards)
    varies = any(len(a.axes or ()) > 1 for a in given if isinstance(a, Moving))
    axes = _axes(program, moving) if varies and result == "state" else ()
    names = tuple({i: dim.__name__ for i, dim in (a.axes or {}).items()} for a in moving)
    return Exported(name, program, inputs, outputs, row_axes, constants, spelled.guards, axes, names)


def _bind(module: fx.GraphModule, given: Sequence[Moving | Tensor]) -> dict[int, Any]:
    """Turn the placeholders of weights into buffers; returns the results that are no tensors, which are left out."""
    graph = module.graph
    *placeholders, first = (n for n, _ in zip(graph.nodes, range(len(given) + 1), strict=False))
    for i, (node, value) in enumerate(zip(placeholders, given, strict=True)):
        if isinstance(value, Tensor):
            module.register_buffer(f"weight_{i}", value)
            with graph.inserting_before(first):
                node.replace_all_uses_with(graph.get_attr(f"weight_{i}"))
            graph.erase_node(node)
    last: Any = graph.output_node()
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


def _results(program: torch.export.ExportedProgram) -> list[Any]:
    """What tracing knows of each result."""
    *_, last = program.graph.nodes
    (results,) = last.args
    return [node.meta["val"] for node in results]


def _axes(program: torch.export.ExportedProgram, moving: Sequence[Moving]) -> tuple[dict[int, Any], ...]:
    """Of every result, the axes after axis 0 that depend on sizes of inputs.

    Raises:
        BackendError: one is more than a multiple of a size and a constant.
    """
    dims = dict(_symbols(program, moving))
    return tuple(
        {i: _of_dims(size.node.expr, dims) for i, size in enumerate(r.shape) if i and isinstance(size, torch.SymInt)}
        for r in _results(program)
    )


def _of_dims(expr: sympy.Expr, dims: Mapping[Any, Any]) -> Any:
    """A size as torch.export wants it said: `2 * dim + 1`."""
    (symbol, *others) = expr.free_symbols
    poly = expr.as_poly(symbol)
    if others or poly is None or poly.degree() != 1 or not all(c.is_Integer for c in poly.all_coeffs()):
        raise BackendError(f"cannot export a tensor with an axis of {expr}")
    times, more = map(int, poly.all_coeffs())
    made = dims[symbol] if times == 1 else times * dims[symbol]
    return made + more if more > 0 else made - -more if more else made


def _symbols(program: torch.export.ExportedProgram, moving: Sequence[Moving]) -> Iterator[tuple[sympy.Expr, Any]]:
    """Sizes of inputs that are symbols, and what they are called."""
    own = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, a in zip(program.graph_signature.user_inputs, moving, strict=True):
        for axis, dim in (a.axes or {}).items():
            yield own[name].shape[axis].node.expr, dim


def _row_axes(program: torch.export.ExportedProgram, moving: Sequence[Moving]) -> list[int]:
    """Of every result, the axis that the rows of the call make: of candidates where there are some."""
    dims = dict(_symbols(program, moving))
    kind = ROWS if ROWS in dims.values() else REQUESTS
    rows = {expr for expr, dim in dims.items() if dim is kind}

    def axis(result: Tensor) -> int:
        made = (
            i for i, n in enumerate(result.shape) if isinstance(n, torch.SymInt) and n.node.expr.free_symbols & rows
        )
        return next(made, -1)

    return list(map(axis, _results(program)))


def refused(what: str, error: Exception) -> BackendError:
    """Why something is not exported: what was raised first, for exporters wrap it in how to report it to them."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    return BackendError(f"cannot export {what}: {type(first).__name__}: {str(first).strip()[:1500]}")
