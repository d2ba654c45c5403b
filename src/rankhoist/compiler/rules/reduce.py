"""Reductions and other operators along axes that hold no rows. Sums keep the form; the rest works block by block."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from rankhoist.capture.program import overload
from rankhoist.compiler.algebra import grid, joins, moves
from rankhoist.compiler.algebra.contract import arrange, settle
from rankhoist.compiler.algebra.forms import ROW, Block, Decline, Extent, Factor, Form, Label, cells, one_block, whole
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Node
from rankhoist.compiler.algebra.original import READS_MEMORY
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, form, named, positional, tidy
from rankhoist.compiler.rules.pointwise import ARITHMETIC, elementwise
from rankhoist.compiler.rules.table import table


def dims_of(value: Form, axes: Any) -> list[int]:
    """Dims of the given original axes (all axes for `None` or an empty list)."""
    chosen = range(len(value.layout)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    own = [axis_of(value, a) for a in chosen]
    for axis in own:
        if ROW in value.layout[axis]:
            raise Decline(f"reduces over the rows: axis {axis} of {value.axes}")
    return [d for axis in own for d in value.layout[axis]]


def sum_(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`sum`: linear, so terms keep their coefficients."""
    return _linear_reduction(interpreter, node, args, kwargs, mean=False)


def mean(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`mean`: a sum with a scale."""
    return _linear_reduction(interpreter, node, args, kwargs, mean=True)


def _linear_reduction(
    interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value], mean: bool
) -> Value:
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    dims = dims_of(value, arguments.get("dim"))
    dtype = node.meta["val"].dtype
    if dtype not in ARITHMETIC or value.dtype != dtype:
        return along(interpreter, node, args, kwargs)
    scale = 1.0 / math.prod(value.sizes[d] for d in dims) if mean else 1.0
    axes = sorted(value.axis(d) for d in dims)
    result = grid.sum_dims(interpreter.b, tidy(interpreter, value), dims, scale)
    return moves.with_axes(result, axes) if arguments.get("keepdim") else result


def along(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`softmax`, `max`, `sort`, ...: one tensor along the named axes, block by block along the others."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    dims = dims_of(value, arguments.get("dim"))
    single = isinstance(node.meta["val"], torch.Tensor)
    fakes = [node.meta["val"]] if single else node.meta["val"]

    def call(x: Node, axes: list[int], shapes: Sequence[tuple[int, ...]]) -> list[Node]:
        dim = axes[0] if isinstance(arguments.get("dim"), int) else axes
        whole = interpreter.contiguous(x) if node.target in READS_MEMORY else x
        given, by_name = positional(node, arguments | {"self": whole, "dim": dim})
        made = interpreter.b.call(overload(node), given, x.rate, shapes[0], fakes[0].dtype, kwargs=by_name)
        if single:
            return [made]
        return [
            interpreter.b.call(operator.getitem, (made, i), x.rate, s, f.dtype, free=True)
            for i, (s, f) in enumerate(zip(shapes, fakes, strict=True))
        ]

    results = by_blocks(interpreter, value, dims, [interpreter.shape(f) for f in fakes], [f.dtype for f in fakes], call)
    return results[0] if single else results


def by_blocks(
    interpreter: Interpreter, value: Form, dims: list[int], shapes: Sequence[Sequence[Extent]],
    dtypes: Sequence[torch.dtype], call: Callable[[Node, list[int], Sequence[tuple[int, ...]]], list[Node]],
    of_numbers: bool = False,
) -> list[Form]:  # fmt: skip
    """Apply an operator that works along `dims` only. `shapes` are the original results' sizes.

    With `of_numbers`, the operator gives back the number that a block is full of, as `amax` does.
    """
    value = interpreter.settled(tidy(interpreter, value))
    for d in dims:
        if len(value.dims[d]) > 1:
            value = joins.in_position_order(interpreter.b, joins.join_segments(interpreter.b, value, d), d)
        elif (value.dims[d][0] != range(len(value.dims[d][0]))).any():
            value = joins.in_position_order(interpreter.b, value, d)
    kept = all(len(shape) == len(value.layout) for shape in shapes)
    sizes = [_new_sizes(value, dims, shape, kept) for shape in shapes]
    results: list[dict[Any, Block]] = [{} for _ in shapes]
    for cell in cells(value.dims):
        block = settle(interpreter.b, value.blocks[cell], interpreter.workload)
        flat = [Label(math.prod(x.size for x in own)) for own in block.labels]
        present = [any(x in block.factor.labels for x in own) or d in dims for d, own in enumerate(block.labels)]
        if of_numbers and block.factor.number is not None:
            present, made = [False] * len(flat), [block.factor.node] * len(shapes)
        else:
            node = joins.expand(
                interpreter.b, arrange(interpreter.b, block.factor, block.visible), _extents(block, present)
            )
            node = interpreter.b.reshape(node, [x.size if here else 1 for x, here in zip(flat, present, strict=True)])
            first = 0 if node.rate == 0 else 1
            given = [tuple(node.shape[d] if n is None else n for d, n in enumerate(s) if n != -1) for s in sizes]
            made = call(node, [d + first for d in dims], given)
        for result, s, m in zip(results, sizes, made, strict=True):
            axes = {d: flat[d] if n is None else Label(n) for d, n in enumerate(s) if n != -1}
            shown = tuple(x for d, x in axes.items() if present[d])
            factor = Factor(interpreter.b.reshape(m, [x.size for x in shown]), shown)
            result[tuple(cell[d] for d in axes)] = one_block(factor, tuple((x,) for x in axes.values()))
    return [_form(value, s, r, dtype, dims) for s, r, dtype in zip(sizes, results, dtypes, strict=True)]


def _extents(block: Block, present: list[bool]) -> list[int]:
    """Sizes per label: of its own where the operator needs the axis, else 1."""
    return [x.size if here else 1 for own, here in zip(block.labels, present, strict=True) for x in own]


def _new_sizes(value: Form, dims: list[int], shape: Sequence[Extent], kept: bool) -> list[int | None]:
    """Per dim: its new size, `None` for unchanged, -1 for gone."""
    sizes: list[int | None] = [None] * len(value.dims)
    for d in dims:
        sizes[d] = shape[value.axis(d)][0] if kept else -1
    return sizes


def _form(value: Form, sizes: list[int | None], blocks: dict[Any, Block], dtype: torch.dtype, dims: list[int]) -> Form:
    left = [d for d, n in enumerate(sizes) if n is None or n >= 0]
    number = {d: i for i, d in enumerate(left)}
    new_dims = tuple(value.dims[d] if sizes[d] is None else whole(sizes[d] or 0) for d in left)
    layout = tuple(tuple(d if d == ROW else number[d] for d in e if d == ROW or d in number) for e in value.layout)
    layout = tuple(new for new, old in zip(layout, value.layout, strict=True) if new or not old)
    return Form(new_dims, blocks, layout, dtype)


RULES = table([
    ("sum", sum_),
    ("mean", mean),
    ("log_softmax _log_softmax sort argsort topk kthvalue", along),
    ("max.default max.dim min.default min.dim amax amin argmax argmin logsumexp any all prod", along),
    ("var std var_mean std_mean linalg_vector_norm norm", along),
    ("median nanmedian mode nansum count_nonzero", along),
    ("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft", along),
    ("max.other min.other", elementwise),
])  # fmt: skip
