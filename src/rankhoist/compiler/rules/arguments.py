"""Reading an operator's arguments: by schema name, as forms, as dims."""

from __future__ import annotations

from typing import Any

from torch import fx

from rankhoist.capture.program import overload
from rankhoist.compiler.algebra import joins, moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Opaque, RowNumber


def named(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by schema name, defaults filled in."""
    values = {}
    for i, argument in enumerate(overload(node)._schema.arguments):
        if i < len(args):
            values[argument.name] = args[i]
        elif argument.name in kwargs:
            values[argument.name] = kwargs[argument.name]
        else:
            values[argument.name] = argument.default_value if argument.has_default_value() else None
    return values


def positional(node: fx.Node, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The inverse of `named`: arguments by position, and those that an operator takes by name alone, where given."""
    schema = overload(node)._schema.arguments
    by_name = {x.name: values[x.name] for x in schema if x.kwarg_only and values[x.name] is not None}
    return [values[x.name] for x in schema if not x.kwarg_only], by_name


def form(value: Any, what: str = "operand") -> Form:
    """The value as a form with its dims in the order of its axes."""
    if isinstance(value, Form):
        return moves.ordered(value)
    if isinstance(value, Opaque):
        raise Decline(f"the {what} is a tensor whose axes do not follow the rows")
    if isinstance(value, RowNumber):
        raise Decline(f"the {what} is the row number")
    raise Decline(f"the {what} is no tensor")


def tidy(interpreter: Interpreter, value: Form) -> Form:
    """At most one block per stage along every dim, as far as blocks can be joined."""
    for dim in range(len(value.dims)):
        value = joins.coalesce(interpreter.b, value, dim, interpreter.workload)
    return value


def axis_of(value: Form, axis: int) -> int:
    """A non-negative original axis."""
    return axis + len(value.layout) if axis < 0 else axis


def dim_of(value: Form, axis: int) -> int:
    """The dim that is original axis `axis`; declines for the row axis and for rows folded with others."""
    own = axis_of(value, axis)
    entry = value.layout[own]
    if ROW in entry:
        raise Decline(f"works along the row axis: axis {own} of {value.axes}")
    if len(entry) != 1:
        raise Decline(f"works along several folded axes: axis {own} of {value.axes}")
    return entry[0]


def integer(value: Any) -> int:
    """A number that is known now."""
    try:
        return int(value)
    except TypeError as error:
        raise Decline(f"the size {value} depends on the row count") from error
