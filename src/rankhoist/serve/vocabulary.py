"""How large the ids of each input may be: read from the emitted graphs, where inputs meet the tables they index.

Positions of an input's values, numbered in row-major order, are moved through the graph as the values would be, by the
same operators; where positions arrive at a table as ids, the table's rows bound them. Ids that are computed on the way
are not followed: PyTorch refuses them in the call where they are out of range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.algebra import kernels
from rankhoist.algebra.ir import aten
from rankhoist.emit import Stage
from rankhoist.runtime import HoistedModel

MOVES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.clone.default,
    aten.expand.default, aten.stack.default, aten.cat.default, aten.index_select.default, aten.alias.default,
    aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.flatten.using_ints,
}  # fmt: skip
CASTS = {aten._to_copy.default, aten.to.dtype, aten.floor.default, aten.trunc.default}


def vocabulary(hoisted: HoistedModel) -> dict[str, Tensor]:
    """Input name as in the stages (`NAME.context` and `NAME.candidate` of a packed one) -> int64, one bound per value
    of a row: ids are 0 or more and less than it. Inputs that index nothing are not listed.
    """
    shapes = {spec.name: spec.shape for spec in hoisted.interface.inputs.values()}
    packed = {spec.name: spec for spec in hoisted.interface.inputs.values() if spec.role == "packed"}
    found: dict[str, Tensor] = {}
    for variant, arguments in zip(hoisted.stages.variants, hoisted.weights.arguments, strict=True):
        for side, stage, given in zip(("context", "candidate"), (variant.request, variant.candidate), arguments):  # noqa: B905
            widths = {
                name: (len(spec.columns) if side == "context" else len(spec.candidate_columns),)
                for name, spec in packed.items()
            }
            for name, positions, size in _lookups(stage, given, shapes | widths):
                wire = f"{name}.{side}" if name in packed else name
                shape = (shapes | widths)[name]
                bounds = found.setdefault(wire, torch.full((math.prod(shape),), torch.iinfo(torch.int64).max))
                bounds[positions] = bounds[positions].clamp(max=size)
    return found


def _lookups(
    stage: Stage, given: list[Tensor | int | str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor, int]]:
    """(input, positions in its row, rows of the table that they index), for one row."""
    first = [1, None, None]  # rows, owner, offsets
    placeholders = iter([*first, *given])
    values: dict[fx.Node, Any] = {}
    inputs = list(shapes)
    starts = torch.tensor([0, *(math.prod(shapes[name]) for name in inputs)]).cumsum(0)
    for node in stage.module.graph.nodes:
        if node.op == "placeholder":
            value: Any = next(placeholders)
            if isinstance(value, str):
                i = inputs.index(value)
                value = _Positions(torch.arange(int(starts[i]), int(starts[i + 1])).reshape(1, *shapes[value]))
            values[node] = value
        elif node.op == "call_function":
            values[node] = _moved(node, values)
            for table, positions in _indexed(node, values):
                for i, name in enumerate(inputs):
                    own = positions[(positions >= starts[i]) & (positions < starts[i + 1])] - starts[i]
                    if len(own):
                        yield name, own, table


class _Positions:
    """Where the values of a tensor come from."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _moved(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The positions after an operator that only moves values; None after any other."""
    arguments = [values.get(n) for n in node.all_input_nodes]
    if node.target in CASTS and isinstance(arguments[0], _Positions):
        return arguments[0]
    if node.target not in MOVES or not any(isinstance(a, _Positions) for a in arguments):
        return None
    if any(a is None or isinstance(a, str) for a in arguments):
        return None
    plain = {n: v.tensor if isinstance(v, _Positions) else v for n, v in values.items()}
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), plain.__getitem__)
    try:
        made = node.target(*args, **kwargs)
    except RuntimeError:  # it does not take these sizes: one row, or integers
        return None
    return _Positions(made) if isinstance(made, Tensor) else None


def _indexed(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[tuple[int, Tensor]]:
    """(rows of a table, positions that index it) of a lookup."""
    if node.target is kernels.read_tables:
        ids, sizes = (values.get(node.args[i]) for i in (1, 3))  # type: ignore[arg-type]
        if isinstance(ids, _Positions) and isinstance(sizes, Tensor):
            yield from zip(sizes.tolist(), ids.tensor.flatten(0, -2).unbind(-1), strict=True)
        return
    places = {aten.embedding.default: (0, 1), aten.index_select.default: (0, 2)}.get(node.target)  # type: ignore
    if places is None or (node.target is aten.index_select.default and node.args[1] != 0):
        return
    table, ids = (values.get(node.args[i]) for i in places)
    if isinstance(table, Tensor) and isinstance(ids, _Positions):
        yield table.shape[0], ids.tensor.flatten()
