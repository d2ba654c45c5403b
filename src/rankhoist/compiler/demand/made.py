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


def sizes_of(node: fx.Node) -> list[Size]:
    """Of a captured tensor: numbers, or expressions in the rows and in lengths that vary."""
    exprs = (s.node.expr if isinstance(s, torch.SymInt) else s for s in node.meta["val"].shape)
    return [int(e) if isinstance(e, int | sympy.Integer) else e for e in exprs]


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
