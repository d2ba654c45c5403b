"""Cost of the captured operators as their author wrote them: multiply-adds and written elements per row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.program import operator_name
from rankhoist.compiler.algebra.ir import Work

ORIGINAL_VIEWS = set(
    """
view reshape permute transpose t unsqueeze squeeze expand select slice split split_with_sizes chunk unbind flatten
unflatten alias detach lift_fresh_copy view_as expand_as narrow unsafe_split numpy_T diagonal _unsafe_view unfold
""".split()
)


def original_work(node: fx.Node, rows: sympy.Symbol, count: int) -> Work:
    """Work of a captured operator per row, when it runs over `count` rows."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return Work()
    meta = node.meta.get("val")
    fakes = [m for m in (meta if isinstance(meta, list | tuple) else [meta]) if isinstance(m, torch.Tensor)]

    def shape(fake: torch.Tensor) -> list[int]:
        return [_number(s, rows, count) for s in fake.shape]

    name = operator_name(node)
    elements = 0 if name in ORIGINAL_VIEWS else sum(math.prod(shape(f)) for f in fakes)
    operands = [shape(a.meta["val"]) for a in _tensor_args(node)]
    madds = _multiply_adds(node, name, operands, [shape(f) for f in fakes])
    divisor = count if fakes and any(isinstance(s, torch.SymInt) for f in fakes for s in f.shape) else 1
    return Work(-(-madds // divisor), -(-elements // divisor))


def _multiply_adds(node: fx.Node, name: str, operands: list[list[int]], results: list[list[int]]) -> int:
    if not results:
        return 0
    written = math.prod(results[0])
    if name in ("linear", "matmul", "mm", "bmm", "mv", "dot", "vdot"):
        return written * operands[0][-1]
    if name in ("addmm", "baddbmm", "addmv"):
        return written * operands[1][-1]
    if name == "einsum" and isinstance(node.args[0], str):
        return _einsum(node.args[0], operands)
    if name == "linalg_vecdot":
        return math.prod(torch.broadcast_shapes(*operands))
    if name == "tensordot":
        summed: list[int] = list(node.args[2])  # type: ignore[arg-type]
        return written * math.prod(operands[0][d] for d in summed)
    if name in ("conv1d", "conv2d", "conv3d", "convolution"):
        transposed = name == "convolution" and node.args[6]  # then each element read is multiplied with a filter
        return (math.prod(operands[0]) if transposed else written) * math.prod(operands[1][1:])
    if name == "scaled_dot_product_attention":
        q, k, v = operands[:3]
        return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    if name in ("gru", "lstm", "rnn_tanh", "rnn_relu"):
        return math.prod(operands[0][:-1]) * sum(math.prod(o) for o in operands[1:] if len(o) == 2)
    if name in ("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"):
        first = 3 if name == "lstm_cell" else 2  # of the two weights, behind the input and one state or two
        return math.prod(operands[0][:-1]) * sum(math.prod(o) for o in operands[first : first + 2])
    if name == "bilinear":
        return written * operands[0][-1] * operands[1][-1]
    return 0


def _einsum(equation: str, operands: list[list[int]]) -> int:
    axes, _ = einsum_axes(equation, [len(shape) for shape in operands])
    sizes: dict[str, int] = {}
    for own, shape in zip(axes, operands, strict=True):
        for name, size in zip(own, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values()) if len(operands) > 1 else 0


def einsum_axes(equation: str, depths: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Names of the axes of the operands, which have `depths` of them, and of the result.

    An ellipsis stands for the axes that no letter names, in the order of broadcasting: `a...b` with four axes is
    `["a", "..2", "..1", "b"]`.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    free = [depth - len(term.replace(".", "")) for term, depth in zip(terms, depths, strict=True)]

    def named(term: str, free: int) -> list[str]:
        before, ellipsis, after = term.partition("...")
        return [*before, *(f"..{i}" for i in range(free, 0, -1) if ellipsis), *after]

    return [named(t, n) for t, n in zip(terms, free, strict=True)], named(right, max(free))


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


def _number(size: Any, rows: sympy.Symbol, count: int) -> int:
    return _value(size.node.expr, rows, count) if isinstance(size, torch.SymInt) else int(size)


@lru_cache
def _value(expr: sympy.Expr, rows: sympy.Symbol, count: int) -> int:
    """A size with `count` rows; sizes that depend on data are taken for the row count too."""
    value = expr.subs({rows: count})
    return int(value.subs(dict.fromkeys(value.free_symbols, count)))
