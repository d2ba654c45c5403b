"""Operators that take elements along an axis. Law: positions move, blocks stay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Extent, Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules import stacked
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, integer, named
from rankhoist.compiler.rules.stacked import END
from rankhoist.compiler.rules.table import table


def select(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """One position of an axis."""
    value = form(args[0])
    dim = dim_of(value, integer(args[1]))
    index = integer(args[2]) % value.sizes[dim]
    return moves.drop_dim(interpreter.b, moves.take_dim(interpreter.b, value, dim, np.asarray([index])), dim)


def slice_axis(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x[:, start:end:step]`; of rows, all of them or some of the parts that stand under each other."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    axis = axis_of(value, arguments["dim"])
    if ROW in value.layout[axis]:
        return _slice_rows(interpreter, value, axis, arguments)
    dim = dim_of(value, axis)
    start, end, step = (None if arguments[k] is None else integer(arguments[k]) for k in ("start", "end", "step"))
    return moves.take_dim(interpreter.b, value, dim, np.arange(value.sizes[dim])[slice(start, end, step)])


def _slice_rows(interpreter: Interpreter, value: Form, axis: int, arguments: dict[str, Any]) -> Form:
    if arguments["step"] != 1:
        raise Decline(f"takes every so many rows of {value.axes}")
    given = [default if arguments[k] is None else arguments[k] for k, default in (("start", 0), ("end", END))]
    return stacked.parts(interpreter, value, axis, *(stacked.part_number(interpreter, value, axis, x) for x in given))


def narrow(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`length` positions of an axis from `start` on."""
    value = form(args[0])
    axis = axis_of(value, integer(args[1]))
    if ROW in value.layout[axis]:
        first, count = (stacked.part_number(interpreter, value, axis, x) for x in args[2:4])
        return stacked.parts(interpreter, value, axis, first, first + count)
    dim = dim_of(value, axis)
    start = integer(args[2]) % value.sizes[dim]
    return moves.take_dim(interpreter.b, value, dim, np.arange(start, start + integer(args[3])))


def split(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`split`, `chunk`, `tensor_split`: consecutive parts, of the sizes that the exported graph shows."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    axis = axis_of(value, arguments["dim"])
    extents = [interpreter.shape(fake)[axis] for fake in node.meta["val"]]
    if ROW in value.layout[axis]:
        return _split_rows(interpreter, value, axis, extents)
    dim = dim_of(value, axis)
    sizes = [size for size, _ in extents]
    ends = np.cumsum(sizes)
    return [moves.take_dim(interpreter.b, value, dim, np.arange(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def _split_rows(interpreter: Interpreter, value: Form, axis: int, extents: Sequence[Extent]) -> list[Form]:
    sizes = (interpreter.program.rows * size if rows else size for size, rows in extents)
    bounds = [stacked.part_number(interpreter, value, axis, x) for x in itertools.accumulate(sizes, initial=0)]
    return [stacked.parts(interpreter, value, axis, first, last) for first, last in itertools.pairwise(bounds)]


def unbind(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Every position of an axis by itself."""
    value = form(args[0])
    dim = dim_of(value, args[1])
    return [
        moves.drop_dim(interpreter.b, moves.take_dim(interpreter.b, value, dim, np.asarray([i])), dim)
        for i in range(value.sizes[dim])
    ]


def flip(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Axes back to front."""
    value = form(args[0])
    for axis in args[1]:
        dim = dim_of(value, axis)
        value = moves.take_dim(interpreter.b, value, dim, np.arange(value.sizes[dim])[::-1])
    return value


def roll(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Positions shifted around."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    if not arguments["dims"]:
        raise Decline(f"rolls over all axes of {value.axes} at once")
    for axis, shift in zip(arguments["dims"], arguments["shifts"], strict=True):
        dim = dim_of(value, axis)
        value = moves.take_dim(interpreter.b, value, dim, np.roll(np.arange(value.sizes[dim]), integer(shift)))
    return value


RULES = table([
    ("select", select),
    ("slice", slice_axis),
    ("narrow", narrow),
    ("split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split", split),
    ("unbind", unbind),
    ("flip", flip),
    ("roll", roll),
])  # fmt: skip
