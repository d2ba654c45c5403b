"""Operators that take elements along an axis. Law: positions move, blocks stay."""

from __future__ import annotations

import numpy as np
from torch import fx

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.forms import ROW, Decline
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.rules.arguments import axis_of, dim_of, form, integer, named
from rankhoist.compiler.rules.table import table


def select(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """One position of an axis."""
    value = form(args[0])
    dim = dim_of(value, integer(args[1]))
    index = integer(args[2]) % value.sizes[dim]
    return moves.drop_dim(interpreter.b, moves.take_dim(interpreter.b, value, dim, np.asarray([index])), dim)


def slice_axis(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x[:, start:end:step]`; a slice that keeps every row is nothing."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    axis = axis_of(value, arguments["dim"])
    if ROW in value.layout[axis] and interpreter.shape(node.meta["val"]) == interpreter.shape(
        _operand(node).meta["val"]
    ):
        return value
    dim = dim_of(value, axis)
    start, end, step = (None if arguments[k] is None else integer(arguments[k]) for k in ("start", "end", "step"))
    return moves.take_dim(interpreter.b, value, dim, np.arange(value.sizes[dim])[slice(start, end, step)])


def narrow(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`length` positions of an axis from `start` on."""
    value = form(args[0])
    dim = dim_of(value, integer(args[1]))
    start = integer(args[2]) % value.sizes[dim]
    return moves.take_dim(interpreter.b, value, dim, np.arange(start, start + integer(args[3])))


def _operand(node: fx.Node) -> fx.Node:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def split(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`split`, `chunk`, `tensor_split`: consecutive parts, of the sizes that the exported graph shows."""
    arguments = named(node, args, kwargs)
    value = form(arguments["self"])
    axis = axis_of(value, arguments["dim"])
    dim = dim_of(value, axis)
    sizes = [interpreter.shape(fake)[axis][0] for fake in node.meta["val"]]
    ends = np.cumsum(sizes)
    return [moves.take_dim(interpreter.b, value, dim, np.arange(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


def unbind(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Every position of an axis by itself."""
    value = form(args[0])
    dim = dim_of(value, args[1] if len(args) > 1 else 0)
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
