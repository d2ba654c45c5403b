"""Results in memory of their own: a caller may write to one, and no later call and no other result sees it.

A result that is an input, a weight, what was made before this stage, or one row shown as many is copied, for
`clone(x) = x`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rankhoist.capture import OPAQUE
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.graph.operators import name_of

SHOWN = {kernels.spread, kernels.repeat_rows, kernels.asserted, OPAQUE}
# By PyTorch's schemas these make something new, and yet they may return what they are given.
SILENT = {"getitem", "einsum", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "meshgrid",
          "broadcast_tensors"}  # fmt: skip


def owned(builder: Builder, outputs: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
    """`outputs`, each in memory that no other has; those that the model returns twice (`captured`) stay one."""
    made: dict[Any, Any] = {}
    taken: set[int] = set()
    for output, name in zip(outputs, captured, strict=True):
        if isinstance(output, Node) and name not in made:
            memory = list(_memory(output))
            made[name] = output if _new(memory, taken) else _copied(builder, output)
            taken.update(x.index for x in memory)
    return [made[name] if isinstance(output, Node) else output for output, name in zip(outputs, captured, strict=True)]


def _new(memory: Sequence[Node], taken: set[int]) -> bool:
    return not any(_given(x) or x.index in taken for x in memory)


def _copied(builder: Builder, x: Node) -> Node:
    return builder.call(aten.clone.default, (x,), Rate.PAIR, x.shape, x.dtype, rows_first=x.rows_first)


def _memory(node: Node) -> Iterator[Node]:
    """What made the memory in which a tensor lies, or may have made it."""
    if _given(node) or not _shows(node):
        yield node
    else:
        for x in _shown(node):
            yield from _memory(x)


def _given(node: Node) -> bool:
    """Whether it is there before the candidate stage makes anything."""
    return isinstance(node.op, str) or node.rate.stage != "candidate"


def _shows(node: Node) -> bool:
    """Whether an operator may return memory that it is given."""
    op, name = node.op, name_of(node.op)
    if isinstance(op, torch._ops.OpOverload) and any(r.alias_info is not None for r in op._schema.returns):
        return True
    return op in SHOWN or (name in SILENT and not (name == "einsum" and len(node.inputs) > 1))


def _shown(node: Node) -> list[Node]:
    """The tensors among its arguments: the first, or the first list of some."""
    for argument in node.args:
        if isinstance(argument, Node):
            return [argument]
        if isinstance(argument, list | tuple) and any(isinstance(x, Node) for x in argument):
            return [x for x in argument if isinstance(x, Node)]
    return []
