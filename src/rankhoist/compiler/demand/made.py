"""What a part of a result is made of: parts of operands, and what computes it of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from rankhoist.capture import Program
from rankhoist.compiler.demand.boxes import Axis, Box, Part, Size


@dataclass(frozen=True)
class Take:
    """A part of an operand."""

    node: fx.Node
    box: Box


@dataclass(frozen=True)
class Made:
    """What computes a part: an operator, and arguments with `Take` or `Made` in place of tensors.

    A size or place that depends on the rows or on a length is an expression. `of` is the captured operator that it is a
    part of, where that is not the one that was asked.
    """

    target: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    of: fx.Node | None = None


Law = Callable[[fx.Node, Box], "Take | Made | None"]


def takes_of(way: Any) -> list[Take]:
    """The parts of operands that something is made of."""
    if isinstance(way, Take):
        return [way]
    if isinstance(way, Made):
        way = [way.args, way.kwargs]
    if isinstance(way, Mapping):
        way = list(way.values())
    return [t for w in way for t in takes_of(w)] if isinstance(way, list | tuple) else []


def sizes_of(node: fx.Node) -> list[Size]:
    """Of a captured tensor: numbers, or expressions in the rows and in lengths that vary."""
    exprs = (s.node.expr if isinstance(s, torch.SymInt) else s for s in node.meta["val"].shape)
    return [int(e) if isinstance(e, int | sympy.Integer) else e for e in exprs]


def rates_of(program: Program, graph: fx.Graph) -> dict[fx.Node, int]:
    """0 of what weights decide, 1 of what context inputs do as well, 2 of what candidates do."""
    rates: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = program.inputs.get(node.name)
            rates[node] = 0 if spec is None else 1 if spec.role == "context" and not spec.bags else 2
        else:
            rates[node] = max((rates[x] for x in node.all_input_nodes), default=0)
    return rates


def arguments(node: fx.Node) -> list[Any]:
    """By position; defaults too, but for a last None."""
    return list(node.args)


def is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def of_one_kind(x: Any, y: fx.Node) -> bool:
    """Whether both are tensors of the same sizes and dtype."""
    return is_tensor(x) and sizes_of(x) == sizes_of(y) and x.meta["val"].dtype == y.meta["val"].dtype


def aligned(operand: fx.Node, axes: Sequence[Axis]) -> Box:
    """The part of an operand that broadcasts to these axes, the last of them."""
    sizes = sizes_of(operand)
    own = list(axes[len(axes) - len(sizes) :])
    return tuple((Part(1),) if s == 1 else axis for s, axis in zip(sizes, own, strict=True))


def valued(made: fx.Node, source: fx.Node) -> fx.Node:
    """An operator of ours with the value that it has without data, and what a report says of a captured one."""
    given = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (made.args, made.kwargs))
    with detect_fake_mode((given, source.meta["val"])) or contextlib.nullcontext(), enable_python_dispatcher():
        value = made.target(*given[0], **given[1])  # type: ignore[operator]
    kept = {k: v for k, v in source.meta.items() if k not in ("val", "tensor_meta")}
    made.meta = kept | {"val": value}
    return made
