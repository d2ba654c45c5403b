"""Operators that are made of others are taken apart where nothing is known of them as they are.

`hstack` is a `cat`, `cosine_similarity` a few products and a division: PyTorch itself computes them so, and what is
known of the parts holds. Assignment to a slice, `y[:, 1] = x`, is a concatenation around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from rankhoist.capture.recurrent import of_any_length

aten = torch.ops.aten
DEPTH = 4  # of operators made of operators made of ...
SIMPLE = {  # these have a kernel of their own, and parts that take about as long
    aten.glu.default, aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.tril.default,
    aten.triu.default, aten.diag_embed.default,
}  # fmt: skip
KEPT = (  # the parts of one are a batch norm in training mode, which is refused; those of the other take longer
    "aten::instance_norm",
    "aten::upsample",
)


def taken_apart(program: ExportedProgram, known: Container[Any]) -> ExportedProgram:
    """The program with every operator in its parts that has any and is not `known`."""
    for _ in range(DEPTH):
        unknown = {n.target for n in program.graph.nodes if n.op == "call_function" and n.target not in known}
        table = {op: parts for op in unknown if (parts := _parts(op)) is not None}
        taken = _taken(program, table)
        if taken is None:
            break
        program = taken
    return program


def _taken(program: ExportedProgram, table: dict[Any, Callable[..., Any]]) -> ExportedProgram | None:
    """With the operators of `table` in their parts, as far as the parts fit in; None where none does."""
    if not table:
        return None
    try:
        with of_any_length():
            taken: ExportedProgram = program.run_decompositions(table)
        if _tokens(taken) == _tokens(program):  # parts that check the result belong together: such operators stay whole
            return taken
        if len(table) == 1:
            return None
    except Exception:  # what follows may rely on how the result lies in memory: such an operator stays whole
        if len(table) == 1:
            return None
    for op, parts in table.items():
        program = _taken(program, {op: parts}) or program
    return program


def _tokens(program: ExportedProgram) -> int:
    return len(program.graph_signature.input_tokens)


def _parts(op: Any) -> Callable[..., Any] | None:
    """What computes the operator by others."""
    if op in ASSIGNMENTS:
        return ASSIGNMENTS[op]
    composite = isinstance(op, torch._ops.OpOverload) and op._can_decompose() and not op.name().startswith(KEPT)
    if not composite and op not in SIMPLE:
        return None
    return _torchs().get(op)


@functools.cache
def _torchs() -> dict[Any, Callable[..., Any]]:
    return dict(torch.export.default_decompositions().materialize())


def _slice_scatter(
    x: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """`x` with `src` in place of the slice: what is before it, `src`, what is after it."""
    dim = dim % x.dim()
    if step != 1 or dim == 0:  # a slice of rows is no law of one row
        return NotImplemented
    size = x.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    last = max(first, last)
    parts = [x.narrow(dim, 0, first), src, x.narrow(dim, last, size - last)]
    return torch.cat([p for p in parts if p.shape[dim]] or [src], dim)


def _select_scatter(x: Tensor, src: Tensor, dim: int, index: int) -> Any:
    """`x` with `src` in place of one entry of an axis."""
    return _slice_scatter(x, src.unsqueeze(dim), dim, index, index + 1 or None)  # the slice of -1 has no end


def _copy(x: Tensor, src: Tensor, non_blocking: bool = False) -> Any:
    """`src` in the shape and dtype of `x`."""
    return src.to(x.dtype).expand(x.shape).clone()


ASSIGNMENTS: dict[Any, Callable[..., Any]] = {
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.copy.default: _copy,
}
