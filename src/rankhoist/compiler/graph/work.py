"""Cost of the captured operators as their author wrote them: multiply-adds and written elements per row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture import OPAQUE
from rankhoist.compiler.graph.node import Work
from rankhoist.compiler.graph.operators import row


def original_work(
    node: fx.Node, rows: sympy.Symbol, count: int, lengths: Mapping[sympy.Symbol, int] | None = None,
    places: Mapping[sympy.Symbol, sympy.Expr] | None = None,
) -> Work:  # fmt: skip
    """Work of a captured operator per row, when it runs over `count` rows, at these `lengths` of axes that vary.

    `places` are the sizes that masks decide: all places are taken to be chosen.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return Work()
    meta = node.meta.get("val")
    fakes = [m for m in (meta if isinstance(meta, list | tuple) else [meta]) if isinstance(m, torch.Tensor)]

    sizes = tuple({**(places or {}), rows: count, **(lengths or {})}.items())

    def shape(fake: torch.Tensor) -> list[int]:
        return [_value(s.node.expr, sizes, count) if isinstance(s, torch.SymInt) else int(s) for s in fake.shape]

    known = row(node.target)
    elements = 0 if known.view else sum(math.prod(shape(f)) for f in fakes)
    if node.target is OPAQUE:  # counted when it was called on the example
        return Work(int(node.args[1]), -(-elements // count))  # type: ignore[arg-type]
    operands = [shape(a.meta["val"]) for a in _tensor_args(node)]
    madds = known.work(node, operands, math.prod(shape(fakes[0]))) if known.work and fakes else 0
    of_rows = [
        s
        for f in fakes
        for s in f.shape
        if isinstance(s, torch.SymInt) and s.node.expr.free_symbols - {*(lengths or {})}
    ]
    divisor = count if of_rows else 1
    return Work(-(-madds // divisor), -(-elements // divisor))


def _tensor_args(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []

    def visit(value: Any) -> None:
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    visit(node.args)
    return found


@lru_cache
def _value(expr: sympy.Expr, known: tuple[tuple[sympy.Symbol, Any], ...], count: int) -> int:
    """A size; one that other data decides is taken for the row count."""
    for symbol, value in known:  # those of places are of rows and lengths
        expr = expr.subs(symbol, value)
    return int(expr.subs(dict.fromkeys(expr.free_symbols, count)))
