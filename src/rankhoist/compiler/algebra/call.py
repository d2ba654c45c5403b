"""What a law is, and all that its rule may see: one operator of the captured graph, and verbs on forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.operators import operator_name, overload
from rankhoist.capture.true_places import column_of
from rankhoist.compiler.algebra import (
    along,
    attends,
    bag_tensors,
    chosen,
    fills,
    grid,
    permuted,
    pointwise,
    reads,
    training,
)
from rankhoist.compiler.algebra.bags import Key
from rankhoist.compiler.algebra.einsum import contract
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.orders import Chosen, Permutation, RowNumber
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.values import Promise, Value, as_form, integer, tensors_in
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Op, Rate, aten

Rule = Callable[["Call"], Value]


@dataclass(frozen=True)
class Law:
    """One row of a family's table; several rows may be one law.

    Args:
        name: what the report calls it, and what switches it off.
        level: the lowest level that allows it.
        blocks: the lowest level that allows it for blocks of different rates, None for none: where it does not, every
            operand is one tensor.
        orders: its rule is told of rows in another order; all others are given these as tensors.
        ties: it shares a gradient otherwise among values that are equal: it is none while training.
    """

    name: str
    operators: tuple[torch._ops.OpOverload | str, ...]
    level: Level
    blocks: Level | None
    rule: Rule
    orders: bool = False
    ties: bool = False

    def applied(self, call: Call) -> Value:
        """What its rule makes; one tensor is the first result, where the operator makes others that nobody reads."""
        value = self.rule(call)
        call.has_size_of(value)
        promised = call.promised
        several = isinstance(promised, list) and not isinstance(value, list)
        return [value, *[None] * (len(promised) - 1)] if several else value

    def allowed(self, level: Level, numbers: bool) -> bool:
        """Whether it may be tried; with `numbers`, what computes on ids and masks alone counts as a lookup."""
        return level >= (Level.LOOKUP if numbers and self.level <= Level.REQUEST else self.level)

    def apart(self, level: Level, numbers: bool) -> bool:
        """Whether blocks stay apart."""
        as_lookup = numbers and self.level <= Level.REQUEST
        return self.blocks is not None and level >= (Level.LOOKUP if as_lookup else self.blocks)


class Call:
    """One operator of the captured graph, as a rule sees it."""

    def __init__(
        self, originals: OriginalOperators, node: fx.Node, args: list[Value], kwargs: dict[str, Value],
        kept: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self._originals, self._node, self._args, self._kwargs, self._kept = originals, node, args, kwargs, kept
        self.promised = originals.promised(node)

    # -- what the model's author wrote

    @property
    def name(self) -> str:
        """The operator without namespace and overload: `linear`, `add`."""
        return operator_name(self._node)

    @cached_property
    def _arguments(self) -> dict[str, Value]:
        """All arguments by schema name, defaults filled in."""
        values = {}
        for i, argument in enumerate(overload(self._node)._schema.arguments):
            if i < len(self._args):
                values[argument.name] = self._args[i]
            elif argument.name in self._kwargs:
                values[argument.name] = self._kwargs[argument.name]
            else:
                values[argument.name] = argument.default_value if argument.has_default_value() else None
        return values

    def value(self, *names: str) -> Value:
        """An argument, by the first of these names of the ATen schema that the operator has; None if it has none."""
        return next((self._arguments[name] for name in names if name in self._arguments), None)

    def form(self, *names: str, of: Value = None) -> Form:
        """An operand as a form with its dims in the order of its axes: by name, the first of all, or one in a list."""
        if of is not None:
            return as_form(of)
        return as_form(self.value(*names) if names else next(iter(self._arguments.values())))

    def forms(self, *names: str) -> tuple[Form, ...]:
        """All tensors among the arguments of these names (by default of all), lists taken apart."""
        given = [self._arguments[name] for name in names or self._arguments if name in self._arguments]
        return tuple(as_form(v) for v in tensors_in(given))

    def number(self, *names: str) -> Any:
        """A whole number that is known now, or a list of such."""
        value = self.value(*names)
        return [integer(n) for n in value] if isinstance(value, list | tuple) else integer(value)

    @property
    def out(self) -> Promise:
        """What the exported graph promises of the one result."""
        if not isinstance(self.promised, Promise):
            raise Decline("makes several tensors")
        return self.promised

    @property
    def outs(self) -> list[Promise]:
        """The same of several results."""
        return self.promised if isinstance(self.promised, list) else [self.promised]

    @property
    def rows(self) -> sympy.Symbol:
        """The row count, in sizes among the arguments."""
        return self._originals.program.rows

    def has_size_of(self, value: Value) -> None:
        """What the model's author left to data: a result is as long as the form that it is."""
        if "unbacked_bindings" not in self._node.meta or not isinstance(value, Form):
            return
        for (size, rows), given in zip(value.extents, self._node.meta["val"].shape, strict=True):
            symbol = self._originals.size(given)
            if symbol.is_Symbol:
                self._originals.memo.symbols[symbol] = self.rows * size if rows else sympy.sympify(size)
        self.promised = self._originals.promised(self._node)

    def remark(self, reason: str) -> None:
        """What the report says of the work that is left per candidate."""
        self._originals.remark = reason

    # -- what a rule does with forms

    @property
    def builder(self) -> Builder:
        """Makes nodes: what functions of the algebra are given first."""
        return self._originals.b

    def settled(self, form: Form) -> Form:
        """All blocks evaluated."""
        return self._originals.settled(form)

    def tidy(self, form: Form, like_terms: bool = False) -> Form:
        """At most one block per stage along every dim, as far as blocks can be joined; like terms may be added up."""
        return self._originals.tidy(self._originals.simplified(form) if like_terms else form)

    def constant(self, value: Value) -> torch.Tensor | None:
        """The value, on the CPU, of what no training and no input changes, or None; an update may not change it."""
        return self._originals.constant(value)

    def contract(self, factors: Sequence[Form], axes: Sequence[Sequence[str]], result: Sequence[str]) -> Form:
        """Einsum: multiply, then sum over the names of axes that the result lacks. Unevaluated."""
        return contract(self._originals, self._originals.short(factors), axes, result)

    def cast(self, form: Form, dtype: torch.dtype) -> Form:
        """All blocks in another dtype."""
        return pointwise.cast(self._originals, form, dtype)

    def plus(self, x: Form, y: Form) -> Form:
        """`x + y` of one dtype, unevaluated but where a number decides it."""
        return pointwise.plus(self._originals, x, y)

    # -- operators on forms

    def normed_by_counts(self, x: Form, affine: Sequence[Form]) -> Value:
        """All results of a batch norm of `x` along its axis 1, which alone may be cut; `affine` are weight and bias."""
        made = training.normed_by_counts(self._originals, x, affine, self.value("eps"))
        if len(self.outs) < 5:  # it keeps no running statistics
            return made.rows
        batch = {"running_mean": made.mean, "running_var": made.variance}
        momentum = self.value("momentum")
        running = (training.moved(self._originals, self.value(n), own, momentum) for n, own in batch.items())
        return [made.rows, None, None, *running]

    def dropped(self, x: Form, share: float) -> Form:
        """Dropout, block by block."""
        return training.dropped(self._originals, x, share)

    def hidden(self, scores: Form, dim: int) -> Form:
        """Scores with `-inf` for finite numbers that a mask has filled in along a dim, on a condition: see `fills`."""
        return fills.hidden(self._originals, scores, dim)

    def run(self, op: Op, *operands: Value, **arguments: Value) -> Any:
        """Any operator on whole forms at the lowest rate of all; the rule has proved that rows do not meet."""
        return self._originals.operate(op, operands, arguments)

    def each(self, op: Op | None = None, *operands: Value) -> Form:
        """An elementwise operator on forms and numbers, block by block, each at the rate of its own operands.

        By default this operator on its own.
        """
        if op is None:
            own = overload(self._node), self._args, self._kwargs
            return pointwise.elementwise(self._originals, *own, self.out.dtype)
        return pointwise.elementwise(self._originals, op, operands, {}, self._originals.dtype_of(op, operands))

    def read(self, value: Form, index: Form, dim: int) -> Form:
        """`value.gather(dim, index)`: what a request has, or rows of a weight, at places of one dim that a candidate
        chooses, unevaluated (see `reads`), else block by block (see `along.gathered`).
        """

        def gather(x: Form, axis: int, at: Form) -> Form:
            made: Form = self.read(x, at, dim) if by_candidate(x, at) else self.run(aten.gather.default, x, axis, at)
            return made

        def by_candidate(x: Form, at: Form) -> bool:
            return x.rate is Rate.REQUEST and at.rate.per_candidate

        if value.of_weights and not value.has_rows:
            return reads.of_table(self._originals, value, index)
        if by_candidate(value, index):
            return reads.of_request(self._originals, value, index, dim)
        return along.gathered(self._originals, value, index, dim, gather)

    def attended(
        self, q: Form, k: Form, v: Form, scale: float | None, causal: bool, parts: attends.Parts
    ) -> Form | None:  # fmt: skip
        """Attention of candidates' queries over keys and values of their request, and perhaps their own, as one
        operator: see `attends`. Queries of the request beside them are taken by `parts`.

        None where an operand is of another kind, or the planner asks for a form.
        """
        over = attends.over(q, k, v, causal)
        if over is None or self._kept():
            return None
        return over(self._originals, q, k, v, q.sizes[-1] ** -0.5 if scale is None else float(scale), causal, parts)

    def along(
        self, form: Form, dims: list[int], rule: Callable[[Form, list[int]], Any], of_numbers: bool = False
    ) -> Any:
        """An operator along `dims`, block by block along the others: see `along.by_blocks`."""
        return along.by_blocks(self._originals, form, dims, rule, of_numbers)

    def by_element(self, form: Form, rule: Callable[[Form], Form]) -> Form:
        """Every element by itself, block by block; the result has the axes of the form, then those that `rule` adds."""
        return along.of_elements(self._originals, form, rule)

    def bags(self, lengths: Form) -> list[Key]:
        """Those of every key, of lengths with rows last; declines where these are not."""
        return bag_tensors.keys(self._originals, lengths)

    def order(self, of: Permutation | None = None, back: bool = False) -> Permutation:
        """The order of rows that this operator makes: `of` or what undoes it, else a new one. See `permuted`."""
        return permuted.order(self._originals, self._node, self._args, self._kwargs, of, back)

    def chosen(self, value: Form, mask: Form) -> Chosen:
        """`value[mask]`, the result of this operator: see `chosen`."""
        return chosen.of(self._originals, self._node, self._args, self._kwargs, value, mask)

    def added(self, target: Form, index: int, given: Chosen) -> Form:
        """`target` and chosen rows at places that argument `index` says, a column of their mask: see `chosen`."""
        places = self._node.args[index]
        column = column_of(places) if isinstance(places, fx.Node) else None
        mask = column and self._originals.values.get(column.mask)
        if column is None or not isinstance(mask, Form):
            raise Elsewhere("adds elements at places that depend on the inputs")
        return chosen.added(self._originals, given, target, mask, column.axis)

    # -- this operator

    def rowwise(self, /, **changed: Value) -> Value:
        """At the lowest rate of its operands, as rows do not meet; `changed` are other arguments, by name."""
        schema = overload(self._node)._schema.arguments
        args = [changed.get(x.name, own) for x, own in zip(schema, self._args, strict=False)]
        kwargs = {name: changed.get(name, own) for name, own in self._kwargs.items()}
        return self._originals.run_rowwise(self._node, args, kwargs)

    def again(self, /, **changed: Value) -> Any:
        """On a part of an operand, with other arguments by name: the same as `run`."""
        if any(isinstance(own, RowNumber) for name, own in self._arguments.items() if name not in changed):
            raise Decline("an operand is the row number")
        schema = overload(self._node)._schema.arguments
        values = self._arguments | changed
        by_name = {x.name: values[x.name] for x in schema if x.kwarg_only}
        return self.run(overload(self._node), *(values[x.name] for x in schema if not x.kwarg_only), **by_name)

    def arithmetic(self, *, scales: Sequence[float] = (), powers: Sequence[int] = ()) -> Form:
        """Block by block, `s x + t y` by scales or `x^p y^q` by powers of 1 and -1; unevaluated where that can save
        work. Numbers are blocks, too.
        """
        build = partial(grid.add_blocks, scales=scales) if scales else partial(pointwise.power, self._originals, powers)
        op, kwargs = overload(self._node), self._kwargs
        return pointwise.arithmetic(self._originals, op, self._args, kwargs, self.out.dtype, build)
