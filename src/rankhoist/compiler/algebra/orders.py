"""Orders of rows: tensors that say which row, rows that are in another order, and those that a mask chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch

from rankhoist.compiler.algebra.forms import ROW, Form
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import ROWS, Node, Rate, Size, aten


@dataclass(frozen=True, eq=False)
class RowNumber:
    """`arange(0, step * count * rows, step)`: row i holds the `count` numbers from `step * count * i` on.

    One per row, and by ones, marks "my own row" in an index. Axes `behind` the rows repeat it,
    `arange(rows)[:, None]`, and so does an axis of size `each` that is folded with the rows,
    `arange(rows).repeat_interleave(each)`.
    """

    dtype: torch.dtype
    step: int = 1
    behind: tuple[int, ...] = ()
    count: int = 1
    each: int = 1

    @property
    def own_row(self) -> bool:
        """Whether row i holds i."""
        return (self.step, self.count) == (1, 1)

    def beside(self, given: Form, behind: int) -> bool:
        """Whether a form has its rows, if any, where this has them in what has so many axes behind them."""
        if not given.has_rows:
            return len(given.layout) <= behind + 1
        mine = given.layout[0][:1] == (ROW,) and given.extents[0] == (self.each, True)
        return mine and len(given.layout) == behind + 1

    def made(self, b: Builder, rows: sympy.Symbol, device: torch.device, rate: Rate) -> Node:
        """As a tensor over as many rows as `rate` has."""
        sizes, kwargs = (self.each, *self.behind), {"dtype": self.dtype, "device": device}
        every = (0, Size(rows * self.step * self.count), self.step)
        made = b.call(aten.arange.start_step, every, rate, (), self.dtype, kwargs=kwargs)
        if {*sizes} == {1}:
            return b.reshape(made, [1] * len(self.behind))
        made = b.reshape(made, [1] * len(sizes))
        made = b.call(aten.expand.default, (made, [ROWS, *sizes]), rate, sizes, self.dtype, free=True)
        shape = [Size(rows * self.each), *self.behind]
        return b.call(aten.reshape.default, (made, shape), rate, (), self.dtype, free=True, rows_first=False)


@dataclass(frozen=True, eq=False)
class Permutation:
    """An order of all N rows that data decides, whole numbers [N]: row i of `x[p]` is row p_i of x.

    Of two with the same `order`, one undoes the other if exactly one goes `back`. `made` is it as a tensor, and `take`
    reads rows of a form at places.
    """

    dtype: torch.dtype
    order: object
    back: bool
    made: Callable[[], Form]
    take: Callable[[Form, Form], Form]
    rate = Rate.PAIR

    def of(self, value: Form) -> Permuted:
        """The rows of a form in this order."""
        return Permuted(value, self)

    def undoes(self, other: Permutation) -> bool:
        """Whether `x[other][self]` is x."""
        return self.order is other.order and self.back is not other.back

    @cached_property
    def form(self) -> Form:
        """As a tensor over all rows, which is computed if anybody reads it."""
        return self.made()


@dataclass(frozen=True, eq=False)
class Permuted:
    """The rows of `value`, which are on one of its axes, in the order `by`."""

    value: Form
    by: Permutation
    rate = Rate.PAIR

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @cached_property
    def form(self) -> Form:
        """As a tensor over all rows, which is computed if anybody reads it."""
        return self.by.take(self.value, self.by.form)


InOrder = Permutation | Permuted


@dataclass(frozen=True, eq=False)
class Mask:
    """Which of `count` places of every row are chosen: booleans, folded with the rows, `[(rows count)]`.

    In the order of its author's, `outside` of these are outside of the rows: `[outside, rows, count / outside]`.
    """

    form: Form
    node: Node
    count: int
    outside: int = 1

    def same(self, other: Mask) -> bool:
        """Whether it chooses the same places in the same order."""
        return self.node is other.node and self.outside == other.outside


@dataclass(frozen=True, eq=False)
class Chosen:
    """Of `value`, whose `axis` is that of a mask, what the mask chooses.

    `made` is it as a tensor, and `put_back` puts it into a form where a mask is true.
    """

    value: Form
    axis: int
    mask: Mask
    made: Callable[[], Any]
    put_back: Callable[[Chosen, Form, Form], Form]
    rate = Rate.PAIR

    def put(self, target: Form, mask: Form) -> Form:
        """`target` with these rows where the mask is true; declines where another one has chosen them."""
        return self.put_back(self, target, mask)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @cached_property
    def tensor(self) -> Any:
        """Over all rows, which is computed if anybody reads it: as long as the mask has true places."""
        return self.made()


def as_tensor(value: InOrder | Chosen) -> Any:
    """The same as whoever knows of no order is given it."""
    return value.tensor if isinstance(value, Chosen) else value.form
