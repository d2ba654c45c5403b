"""How large the ids of each input may be: read from the emitted graphs, where inputs meet the tables they index.

Positions of an input's values, numbered in row-major order, are moved through the graph as the values would be, by the
same operators; where positions arrive at a table as ids, the table's rows bound them. Ids that are computed on the way
are not followed: PyTorch refuses them in the call where they are out of range.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.capture import Interface
from rankhoist.compiler.emit import Stage
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import aten
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.weights import Weights

MOVES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.clone.default,
    aten.expand.default, aten.stack.default, aten.cat.default, aten.index_select.default, aten.alias.default,
    aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.flatten.using_ints,
}  # fmt: skip
# What leaves every value where it is; of one request, its rows repeated are that row.
KEEPS = {
    aten._to_copy.default, aten.to.dtype, aten.floor.default, aten.trunc.default, kernels.spread, kernels.repeat_rows,
}  # fmt: skip
# Lookups by ids, and the places of the table and of the ids among their arguments.
LOOKUPS = {
    aten.embedding.default: (0, 1), aten.index_select.default: (0, 2), aten.embedding_bag.default: (0, 1),
    aten.embedding_bag.padding_idx: (0, 1), aten._embedding_bag.default: (0, 1),
    aten._embedding_bag_forward_only.default: (0, 1),
}  # fmt: skip

FREE = torch.iinfo(torch.int64).max  # of a value that indexes nothing


def vocabulary(blueprint: Blueprint, weights: Weights) -> dict[str, Tensor]:
    """Input name as in the stages (`NAME.context` and `NAME.candidate` of a packed one) -> int64, one bound per value
    of a row: ids are 0 or more and less than it. Inputs that index nothing are not listed.
    """
    given = _positions(blueprint.interface)
    bounds = torch.full((sum(p.tensor.numel() for p in given.values()),), FREE)
    for variant, (request, candidate) in zip(blueprint.stages.variants, weights.arguments, strict=True):
        state: dict[int, Any] = {}
        for side, stage, arguments in (
            ("context", variant.request, request),
            ("candidate", variant.candidate, candidate),
        ):
            named = [given.get(x, given.get(f"{x}.{side}")) if isinstance(x, str) else x for x in arguments]
            values = [state.get(x) if isinstance(x, int) else x for x in named]
            made, lookups = _followed(stage, values)
            state = dict(zip(variant.state, made, strict=False))
            for positions, size in lookups:
                known = positions[(positions >= 0) & (positions < len(bounds))]
                bounds[known] = bounds[known].clamp(max=size)
    own = {name: bounds[p.tensor.flatten()] for name, p in given.items()}
    return {name: bound for name, bound in own.items() if bool((bound != FREE).any())}


def _positions(interface: Interface) -> dict[str, _Positions]:
    """One row of every input, its values numbered on from those of the input before."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in interface.inputs.values():
        if spec.role == "packed":
            shapes[f"{spec.name}.context"] = (len(spec.columns),)
            shapes[f"{spec.name}.candidate"] = (len(spec.candidate_columns),)
        else:
            shapes[spec.name] = spec.shape
    made, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        made[name], start = _Positions(torch.arange(start, end).reshape(1, *shape)), end
    return made


def _followed(stage: Stage, given: list[Any]) -> tuple[list[Any], list[tuple[Tensor, int]]]:
    """A stage's results, and (positions, rows of the table that they index) of its lookups, for one row."""
    placeholders = iter([1, None, None, *given])  # rows, owner, offsets
    values: dict[fx.Node, Any] = {}
    lookups = []
    results: list[Any] = []
    for node in stage.module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(placeholders)
        elif node.op == "call_function":
            values[node] = _moved(node, values)
            lookups += [(positions, size) for size, positions in _indexed(node, values)]
        elif node.op == "output":
            results = [values.get(result) for result in node.args[0]]
    return results, lookups


class _Positions:
    """Where the values of a tensor come from."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _moved(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The positions after an operator that only moves values, or a size that is computed; None after any other."""
    arguments = [values.get(n) for n in node.all_input_nodes]
    if node.target in KEEPS and isinstance(arguments[0], _Positions):
        return arguments[0]
    moves = node.target in MOVES and any(isinstance(a, _Positions) for a in arguments)
    sizes = node.target is operator.mul and all(isinstance(a, int) for a in arguments)
    if not (moves or sizes) or any(a is None or isinstance(a, str) for a in arguments):
        return None
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _plain(values[n]))
    try:
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:  # it does not take these sizes: one row, or integers
        return None
    return _Positions(made) if isinstance(made, Tensor) else made if sizes else None


def _plain(value: Any) -> Any:
    return value.tensor if isinstance(value, _Positions) else value


def _indexed(node: fx.Node, values: dict[fx.Node, Any]) -> Iterator[tuple[int, Tensor]]:
    """(rows of a table, positions that index it) of a lookup."""
    args = [values.get(a) if isinstance(a, fx.Node) else a for a in node.args]
    for size, ids in _lookups(node.target, args, values):
        if isinstance(ids, _Positions):
            yield size, ids.tensor.flatten()


def _lookups(target: Any, args: list[Any], values: dict[fx.Node, Any]) -> Iterator[tuple[int, Any]]:
    """(rows of a table, what indexes it)."""
    if target is kernels.read_tables:
        ids, sizes = args[1], args[3]
        if isinstance(ids, _Positions) and isinstance(sizes, Tensor):
            columns = map(_Positions, ids.tensor.flatten(0, -2).unbind(-1))
            yield from zip(sizes.tolist(), columns, strict=True)
    elif target is aten.one_hot.default:
        yield args[1], args[0]
    elif target is aten.index.Tensor and isinstance(args[0], Tensor):
        yield from zip(args[0].shape, (values.get(place) for place in args[1]), strict=False)
    elif target in LOOKUPS and not (target is aten.index_select.default and args[1] != 0):
        table, ids = (args[place] for place in LOOKUPS[target])
        if isinstance(table, Tensor):
            yield table.shape[0], ids
