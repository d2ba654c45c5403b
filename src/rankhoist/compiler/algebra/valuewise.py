"""Laws of rows over values in bags: what treats rows apart treats them apart, for they are rows of another kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from rankhoist.compiler.algebra.bag_tensors import of_values
from rankhoist.compiler.algebra.bags import Ragged, Values
from rankhoist.compiler.algebra.call import Call, Law
from rankhoist.compiler.algebra.forms import ROW, Decline, Form, plain, row_layout
from rankhoist.compiler.algebra.original import OriginalOperators, check
from rankhoist.compiler.algebra.values import Value, flat, mapped, tensors_in
from rankhoist.compiler.graph.node import Node, Rate, Size, StageArgument


def alike(args: Sequence[Value], kwargs: dict[str, Value]) -> int:
    """How many parts the operands have if all are values of the same bags, or weights; else 0."""
    tensors = tensors_in((args, kwargs))
    ragged = [v for v in tensors if isinstance(v, Ragged)]
    others = [v for v in tensors if not isinstance(v, Ragged)]
    if not ragged or not all(isinstance(v, Form) and v.rate is Rate.WEIGHT and not v.has_rows for v in others):
        return 0
    bags = {tuple(part.lengths.index for part in v.parts) for v in ragged}
    return len(ragged[0].parts) if len(bags) == 1 else 0


def by_part(
    originals: OriginalOperators, law: Law, node: fx.Node, args: Sequence[Value], kwargs: dict[str, Value]
) -> Value:
    """What a law makes of the values of every part, as its rows; declines where that is no value each."""
    made = []
    for i in range(alike(args, kwargs)):
        part = next(v.parts[i] for v in flat((args, kwargs)) if isinstance(v, Ragged))
        own = _of_part(list(args), i), _of_part(kwargs, i)
        as_rows = OriginalOperators(replace(originals.program, rows=part.total), originals.workload, originals.memo)
        with of_values(originals.b):
            made.append(_closed(as_rows, law.applied(Call(as_rows, node, *own)), part, flat(own)))
    value = _together(made)
    check(value, originals.promised(node))
    return value


def _of_part(value: Any, i: int) -> Any:
    """An argument with the form of part `i` in place of values."""
    return mapped(value, Ragged, lambda ragged: ragged.parts[i].form)


def _closed(as_rows: OriginalOperators, value: Value, part: Values, given: Sequence[Any]) -> Value:
    """What became of the values of a part, as values of the same bags; declines where it is something else."""
    if isinstance(value, list):
        return [_closed(as_rows, v, part, given) for v in value]
    if not isinstance(value, Form):
        raise Decline("makes no values of bags")
    form = as_rows.settled(value)
    if not form.layout or form.layout[0] != (ROW,) or any(ROW in e or len(e) != 1 for e in form.layout[1:]):
        raise Decline(f"makes {form.axes} of values of bags, which are no longer first")
    node = as_rows.node(form)
    if node.rate is not part.rate:
        raise Decline("makes something that does not depend on the values of bags")
    if _counts_rows(node, {as_rows.node(f).index for f in given if isinstance(f, Form)}):
        raise Decline("needs the number of rows, where there is one of values")
    return Ragged((replace(part, form=plain(node, form.dtype, row_layout(len(node.shape)))),), form.dtype)


def _counts_rows(node: Node, stop: set[int]) -> bool:
    """Whether anything between the operands and a node reads how many rows its stage has."""
    stack, seen = [node], set(stop)
    while stack:
        n = stack.pop()
        if n.index in seen:
            continue
        seen.add(n.index)
        if any(isinstance(a, StageArgument | Size) for a in flat([list(n.args), list(n.kwargs.values())])):
            return True
        stack += n.inputs
    return False


def _together(values: Sequence[Value]) -> Value:
    """The parts of a result under each other."""
    if isinstance(values[0], list):
        return [_together(list(v)) for v in zip(*values, strict=True)]
    return Ragged(tuple(p for v in values for p in v.parts), values[0].dtype)
