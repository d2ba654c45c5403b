"""Operators that no captured graph has: what a rule makes of one that a graph does have.

An operator is run without data to learn the sizes of its results. `ROWS` rows stand for any number of them: it is a
prime, and so large that a size which is a multiple of it is one of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.capture import Program
from rankhoist.compiler.algebra.forms import Form
from rankhoist.compiler.algebra.ir import Op

ROWS = 1_000_003


def node_of(program: Program, op: Op, args: list[Any], kwargs: dict[str, Any]) -> fx.Node:
    """The operator over forms as a node of a graph of its own, sizes in the row symbol of `program`."""
    graph = fx.Graph()
    likeness = _likeness(program)

    def operand(form: Form) -> fx.Node:
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = likeness(_without_data(form))
        return node

    node = graph.call_function(op, tuple(_mapped(args, operand)), _mapped(kwargs, operand))
    made = op(*_mapped(args, _without_data), **_mapped(kwargs, _without_data))
    node.meta["val"] = likeness(made) if isinstance(made, Tensor) else [likeness(m) for m in made]
    return node


def _without_data(form: Form) -> Tensor:
    """`[ROWS, ...]`, on no device."""
    sizes = [size * ROWS if rows else size for size, rows in form.extents]
    return torch.empty(sizes, dtype=form.dtype, device="meta")


def _likeness(program: Program) -> Callable[[Tensor], Tensor]:
    """From sizes that are multiples of `ROWS` to multiples of the row symbol."""
    known = next(n.meta["val"] for n in program.graph.nodes if n.name in program.inputs)

    def like(made: Tensor) -> Tensor:
        sizes = [n // ROWS * known.shape[0] if n and n % ROWS == 0 else n for n in made.shape]
        with known.fake_mode:
            return torch.empty(sizes, dtype=made.dtype)

    return like


def _mapped(value: Any, new: Callable[[Form], Any]) -> Any:
    if isinstance(value, Form):
        return new(value)
    if isinstance(value, list | tuple):
        return [_mapped(v, new) for v in value]
    return {k: _mapped(v, new) for k, v in value.items()} if isinstance(value, dict) else value
