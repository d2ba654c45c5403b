"""Values: what an argument or a result of a captured operator may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from rankhoist.compiler.algebra.bags import OfBags, lengths_of
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Extent, Form, shape_text
from rankhoist.compiler.algebra.moves import ordered
from rankhoist.compiler.algebra.orders import Chosen, InOrder, Permutation, Permuted, RowNumber
from rankhoist.compiler.graph.node import Node, Rate


@dataclass(frozen=True, eq=False)
class Opaque:
    """A tensor over all N rows whose axes do not follow the rows (`[N, N]`, or a mean over rows).

    `by_data`: how long it is depends on data, as that of rows which a mask chose.
    """

    node: Node
    dtype: torch.dtype
    by_data: bool = False
    rate = Rate.PAIR


@dataclass(frozen=True)
class Promise:
    """What a result has to be: the sizes of its original axes and its dtype.

    Args:
        shape: None where a size is neither a number nor a multiple of the row count, as `problem` says.
        by_data: a size depends on data.
    """

    shape: tuple[Extent, ...] | None
    dtype: torch.dtype
    problem: str = ""
    by_data: bool = False

    @property
    def extents(self) -> list[Extent]:
        """The sizes; declines where they do not follow the rows."""
        if self.shape is None:
            raise Decline(self.problem)
        return list(self.shape)

    @property
    def axes(self) -> str:
        """The sizes to read: `[rows, 2 * rows, 3]`."""
        return shape_text(self.shape or ())


TensorValue = Form | Opaque | RowNumber | OfBags | InOrder | Chosen
Value = Any  # TensorValue | list[Value] | sympy.Expr | int | float | bool | None | dtype | device


def flat(value: Any) -> list[Any]:
    """Everything in lists within lists (and the values of dicts), in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [x for v in value for x in flat(v)]
    return [value]


def mapped(value: Any, kind: Any, by: Callable[[Any], Any]) -> Any:
    """Arguments with something else in place of those of a kind, also in lists within lists and in dicts."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, list | tuple):
        return [mapped(v, kind, by) for v in value]
    return {k: mapped(v, kind, by) for k, v in value.items()} if isinstance(value, dict) else value


def tensors_in(value: Any) -> list[TensorValue]:
    """The tensors among arguments, in order."""
    return [v for v in flat(value) if isinstance(v, TensorValue)]


def told_by_calls(arguments: Any) -> bool:
    """Whether an argument is a number that only a call knows, as that of its rows."""
    return any(isinstance(v, sympy.Expr) and not v.is_Integer for v in flat(arguments))


def sizes_have_rows(meta: Any) -> bool:
    """Whether a captured result has a size that only a call knows."""
    return any(isinstance(s, torch.SymInt) for m in flat(meta) if isinstance(m, torch.Tensor) for s in m.shape)


def forms_in(value: Any) -> list[Form]:
    """The forms among arguments; of bags of values their lengths, which are at the same rate."""
    found = []
    for v in flat(value):
        if isinstance(v, Form):
            found.append(v)
        elif isinstance(v, OfBags):
            found += lengths_of(v)
        elif isinstance(v, InOrder):
            found.append(v.form)
        elif isinstance(v, Chosen):
            found += [v.value, v.mask.form]
    return found


def rates_in(value: Any) -> set[Rate]:
    """How often what is in a value is computed; of rows in another order, or chosen, that of all of them."""
    found = set[Rate]()
    for v in (v.value if isinstance(v, Permuted | Chosen) else v for v in flat(value)):
        if isinstance(v, Form):
            found |= {block.rate for block in v.blocks.values()}
        else:
            found |= {v.rate} if isinstance(v, Opaque | Permutation) else {f.rate for f in forms_in(v)}
    return found


def without_rows(arguments: Any, promised: Any) -> bool:
    """Whether no tensor has rows: neither arguments nor what is promised, of which no size depends on data."""
    made = [p for p in flat(promised) if p is not None]
    free = all(isinstance(v, Form) and not v.has_rows for v in tensors_in(arguments))
    return free and all(p.shape is not None and not any(rows for _, rows in p.shape) for p in made)


def as_form(value: Value) -> Form:
    """A tensor as a form with its dims in the order of its axes."""
    if isinstance(value, Form | InOrder):
        return ordered(value if isinstance(value, Form) else value.form)
    raise (Elsewhere if isinstance(value, OfBags) else Decline)(told(value))


def told(value: Value) -> str:
    """What an operand is that is no form, in words."""
    if isinstance(value, Chosen) or (isinstance(value, Opaque) and value.by_data):
        return "a mask chose the rows of the operand, or other data says how many there are"
    if isinstance(value, Opaque):
        return "the operand is a tensor whose axes do not follow the rows"
    if isinstance(value, RowNumber):
        return "the operand is the row number"
    if isinstance(value, InOrder):
        return "the operand has rows in another order"
    return "the operand is of bags of values" if isinstance(value, OfBags) else "the operand is no tensor"


def integer(value: Value) -> int:
    """A number that is known now."""
    try:
        return int(value)
    except TypeError as error:
        raise Decline(f"the size {value} depends on the row count") from error
