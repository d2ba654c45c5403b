"""The original operator over forms: what runs where no rule holds, and row by row where a rule says so.

    forms -> `present`: tensors as the author's operator expects them -> the operator -> `received`: a form again

Soundness: over all N rows this is what the original model does, so it is equal by definition. At a lower rate it is
equal where rows do not meet, which is for the caller to prove.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.operators import draws, overload
from rankhoist.compiler.algebra import bag_tensors
from rankhoist.compiler.algebra.bags import Bounds, Ragged, Totals
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import ROW, Decline, Extent, Form, plain, row_layout, shape_text
from rankhoist.compiler.algebra.infer import inferred, operand
from rankhoist.compiler.algebra.orders import Chosen, InOrder, RowNumber, as_tensor
from rankhoist.compiler.algebra.values import Opaque, Promise, TensorValue, Value, forms_in, without_rows
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.lengths import Sized, quotient, sized, varies
from rankhoist.compiler.graph.node import ROWS, Node, Op, Rate, Size, Work, aten, join
from rankhoist.compiler.graph.operators import row
from rankhoist.compiler.graph.work import original_work

READS_MEMORY = {  # neighbouring elements become one; memory as it lies; wrong where rows share theirs, in torch 2.13
    aten.view_as_complex.default, aten.view.dtype, aten.view_copy.dtype, aten.as_strided.default,
    aten.as_strided_copy.default, aten.median.default, aten.median.dim, aten.nanmedian.default, aten.nanmedian.dim,
}  # fmt: skip


class OriginalOperators(Evaluator):
    """Runs the operators of `program` as their author wrote them, over forms."""

    def fallback(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """The operator over all N rows; once for all of them where no row is read."""
        free = self.program.lengths and not draws(node) and without_rows((args, kwargs), self.promised(node))
        return self.run_at(_lowest(forms_in((args, kwargs)), True) if free else Rate.PAIR, node, args, kwargs)

    def run_rowwise(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """The operator at the lowest rate of its operands; the caller has proved that rows do not meet."""
        operands = forms_in((args, kwargs))
        return self.run_at(_lowest(operands), node, args, kwargs, _outside(operands))

    def run_at(self, rate: Rate, node: fx.Node, args: list[Value], kwargs: dict[str, Value], outside: int = 1) -> Value:
        """The operator over as many rows as `rate` has; `outside` as in `received`."""
        promised = self.promised(node)
        if row(overload(node)).reshapes and node.target not in READS_MEMORY and rate is not Rate.WEIGHT:
            return self._reshape(args[0], rate, node.meta["val"], promised)
        shown = [self.present(a, rate) for a in args]
        if node.target in READS_MEMORY:
            shown[0] = self._contiguous(shown[0])
        named = {k: self.present(v, rate) for k, v in kwargs.items()}
        of, candidates = self.program, self.workload.candidates
        work = original_work(node, of.rows, candidates, of.lengths, of.places)
        made = self._made(rate, overload(node), shown, named, promised, work)
        self._measure(node, made)
        return self._results(made, promised, outside)

    def operate(self, op: Op, args: Sequence[Value], kwargs: dict[str, Value], rate: Rate | None = None) -> Value:
        """Any operator at a rate: by default the lowest of its operands, where the caller has proved that rows do not
        meet.
        """
        promised, work = inferred(op, [operand(a) for a in args], {k: operand(v) for k, v in kwargs.items()})
        operands = forms_in((args, kwargs))
        rate = _lowest(operands) if rate is None else rate
        shown, named = [self.present(a, rate) for a in args], {k: self.present(v, rate) for k, v in kwargs.items()}
        if op in READS_MEMORY:
            shown[0] = self._contiguous(shown[0])
        first = promised if isinstance(promised, Promise) else promised[0]
        return self._results(self._made(rate, op, shown, named, first, work), promised, _outside(operands))

    def dtype_of(self, op: Op, args: Sequence[Value]) -> torch.dtype:
        """Of the one result of any operator."""
        promised, _ = inferred(op, [operand(a) for a in args], {})
        assert isinstance(promised, Promise)
        return promised.dtype

    def _made(
        self, rate: Rate, op: Op, args: list[Any], kwargs: dict[str, Any], promised: Any, work: Work
    ) -> Node:  # fmt: skip
        """The call of the operator; one that makes several tensors stands for all their elements."""
        single = isinstance(promised, Promise)
        shape, dtype = (_own_shape(promised, rate), promised.dtype) if single else ((work.elements,), torch.float32)
        first = _rows_first(promised if single else promised[0], rate)
        madds = work.multiply_adds
        return self.b.call(op, args, rate, shape, dtype, kwargs=kwargs, multiply_adds=madds, rows_first=first)

    def _results(self, made: Node, promised: Any, outside: int) -> Value:
        """The form of one result, or a list of those of several, without what nobody reads."""
        if isinstance(promised, Promise):
            return self.received(made, promised, outside)
        parts = [None if p is None else self._part(made, i, p) for i, p in enumerate(promised)]
        return [None if x is None else self.received(x, p, outside) for x, p in zip(parts, promised, strict=True)]

    def _part(self, made: Node, index: int, promised: Promise) -> Node:
        """One result of an operator that makes several tensors."""
        shape, first = _own_shape(promised, made.rate), _rows_first(promised, made.rate)
        args = (made, index)
        return self.b.call(operator.getitem, args, made.rate, shape, promised.dtype, free=True, rows_first=first)

    def _reshape(self, value: Value, rate: Rate, fake: torch.Tensor, promised: Promise) -> Value:
        """Sizes from the exported graph: a size of 1 (or 0) in a call must not change the number of axes."""
        shape = [self.present(self.size(s), rate) for s in fake.shape]
        given = (self.present(value, rate), shape)
        own, first = _own_shape(promised, rate), _rows_first(promised, rate)
        made = self.b.call(aten.reshape.default, given, rate, own, promised.dtype, free=True, rows_first=first)
        return self.received(made, promised)

    def _contiguous(self, x: Node) -> Node:
        """A copy in which no two elements share memory."""
        dense = {"memory_format": torch.contiguous_format}
        return self.b.call(aten.clone.default, (x,), x.rate, x.shape, x.dtype, kwargs=dense, rows_first=x.rows_first)

    # -- what the operator is given

    def present(self, value: Value, rate: Rate) -> Any:
        """A tensor with the original axes, for the original operator, with as many rows as `rate` has."""
        if isinstance(value, Opaque):
            return value.node
        if isinstance(value, InOrder | Chosen):
            return self.present(as_tensor(value), rate)
        if isinstance(value, RowNumber):
            return value.made(self.b, self.program.rows, self.program.device, rate)
        if isinstance(value, Form):
            node = self.node(value)
            if value.has_rows:
                node = self.b.rowwise(node, rate)
            return self._original_axes(node, value, rate)
        if isinstance(value, Ragged):
            return bag_tensors.values(self, value, rate)
        if isinstance(value, Bounds | Totals):  # a sum over all rows has all of them
            lengths = self.present(value.lengths, rate if isinstance(value, Bounds) else Rate.PAIR)
            return bag_tensors.sums(self.b, lengths, value)
        if isinstance(value, list | tuple):
            return [self.present(v, rate) for v in value]
        if isinstance(value, sympy.Expr):
            return int(value) if value.is_Integer else self._size_argument(value, rate)
        return value

    def _original_axes(self, node: Node, form: Form, rate: Rate) -> Node:
        """From `[rows, *dims]` to the original layout."""
        flat_layout = [d for entry in form.layout for d in entry]
        if not form.has_rows:
            node = self.b.permute(node, flat_layout) if flat_layout else node
            node = self.b.reshape(node, [size for size, _ in form.extents])
            return node if node.rate is Rate.WEIGHT else self._of_one_row(node, rate)
        axes = [0 if d == ROW else d + 1 for d in flat_layout]
        if axes != sorted(axes):
            inside = axes[0] == 0 and node.rows_first and node.rate is not Rate.WEIGHT
            inner = [axis - 1 for axis in axes[1:]]
            node = self.b.permute(node, inner) if inside else self._view(aten.permute.default, node, axes)
        if all(len(entry) == 1 for entry in form.layout):
            return node
        rows = self.program.rows
        shape = [self._size_argument(rows * size, node.rate) if own else size for size, own in form.extents]
        return self._view(aten.reshape.default, node, shape)

    def _of_one_row(self, node: Node, rate: Rate) -> Node:
        """What is the same for all rows, without an axis of rows: what a stage hands to the next one has it."""
        if node.op is aten.expand.default and not node.args[0].rows_first and not rate.per_candidate:
            source: Node = node.args[0]
            return source
        return self.b.call(aten.select.int, (node, 0, 0), rate, (), node.dtype, free=True, rows_first=False)

    def _size_argument(self, expr: sympy.Expr, rate: Rate) -> Size:
        """An expression of the rows and of sizes that an operator's result had (`nonzero`, `masked_select`)."""
        measured = self.memo.measured
        if not rate.per_candidate and any(s in measured for s in expr.free_symbols):
            raise Decline(f"a size of {expr} is known over all candidates only")
        found = {s: self.b.length(s, rate) if s in self.program.lengths else measured.get(s) for s in expr.free_symbols}
        return Size(expr, tuple((s, n) for s, n in sorted(found.items(), key=str) if n is not None))

    # -- what the operator returns

    def received(self, node: Node, promised: Promise, outside: int = 1) -> Value:
        """The result of an original operator as a form over its rows, or opaque where its axes do not follow them.

        Of an axis of `n * rows`, `outside` are outside of the rows, as in its operands, and the others inside.
        """
        if promised.shape is None:
            return Opaque(node, promised.dtype, promised.by_data)
        sizes = [size for size, _ in promised.shape]
        with_rows = [axis for axis, (_, rows) in enumerate(promised.shape) if rows]
        if node.rate is Rate.WEIGHT and not with_rows:
            return plain(node, promised.dtype, row_layout(len(sizes), rows=False))
        if not with_rows and not node.rate.per_candidate:  # the same for all rows: it has none, and its node has
            rows = self.b.call(aten.expand.default, (node, [ROWS, *sizes]), node.rate, sizes, node.dtype, free=True)
            return plain(rows, promised.dtype, row_layout(len(sizes), rows=False))
        if len(with_rows) != 1:
            return Opaque(node, promised.dtype)
        if promised.shape[0] == (1, True):
            return plain(node, promised.dtype, row_layout(len(sizes) - 1))
        return self._rows_to_front(node, sizes, with_rows[0], outside)

    def _rows_to_front(self, node: Node, sizes: list[Sized], axis: int, outside: int) -> Form:
        """From the original layout, where `axis` holds rows (times its size), to `[rows, *dims]`."""
        others = [i for i in range(len(sizes)) if i != axis]
        order, dims = [axis, *others], [sizes[i] for i in others]
        if sizes[axis] == 1:
            node = self.b.call(aten.permute.default, (node, order), node.rate, dims, node.dtype, free=True)
            return plain(node, node.dtype, tuple((ROW,) if i == axis else (i - (i > axis),) for i in range(len(sizes))))
        if axis:
            node = self._view(aten.permute.default, node, order)
        inside = sizes[axis] // outside
        if sizes[axis] % outside:
            raise Decline(f"makes {sizes[axis]} tensors of rows out of {outside}")
        first: tuple[int, ...] = (ROW, 0)
        dims = [inside, *dims]
        if outside == 1:
            rows = ROWS if varies(dims) else -1
            node = self.b.call(aten.reshape.default, (node, [rows, *dims]), node.rate, dims, node.dtype, free=True)
        else:
            rows = ROWS if varies(dims) else -1
            node = self._view(aten.reshape.default, node, [outside, rows, *dims])
            dims, first = [outside, *dims], (0, ROW, 1)
            order = [1, 0, *range(2, len(dims) + 1)]
            node = self.b.call(aten.permute.default, (node, order), node.rate, dims, node.dtype, free=True)
        rest = iter(range(len(first) - 1, len(dims)))
        return plain(node, node.dtype, tuple(first if i == axis else (next(rest),) for i in range(len(sizes))))

    def _measure(self, node: fx.Node, made: Node) -> None:
        """Remember sizes that depend on data, as they come out of an operator over all rows."""
        for symbol, path in (node.meta.get("unbacked_bindings") or {}).items():
            if len(path) > 1 and getattr(path[-2], "name", None) == "size":
                promised, result = self.promised(node), made
                for place in path[:-2]:
                    result = self._part(made, place.idx, promised[place.idx])
                size = (result, path[-1].idx)
                self.memo.measured[symbol] = self.b.call(aten.sym_size.int, size, made.rate, (), torch.int64, free=True)

    def number(self, symbol: sympy.Symbol, value: Value) -> None:
        """Remember a number that is read out of a tensor: what lengths add up to is known, another is measured."""
        if isinstance(value, Totals) and len(value.sums) == 1:
            self.memo.symbols[symbol] = value.sums[0]
            return
        args = (self.present(value, Rate.PAIR),)
        self.memo.symbols.pop(symbol, None)
        self.memo.measured[symbol] = self.b.call(
            kernels.number, args, Rate.PAIR, (), value.dtype, free=True, rows_first=False
        )

    # -- sizes and layouts

    def size(self, value: Any) -> sympy.Expr:
        """An integer of the captured graph as an expression in the row symbol."""
        expr = value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat) else sympy.Integer(value)
        return expr.xreplace(self.memo.symbols)

    def size_value(self, value: Any) -> Value:
        """The same as a value: a length, where it is one in all calls."""
        expr = self.size(value)
        known = expr.free_symbols <= {*self.program.lengths} and expr.is_integer
        return sized(expr, self.program.lengths) if known else expr

    def promised(self, node: fx.Node) -> Any:
        """What the exported graph says of the operator's result; a list where it makes several (None: not read)."""
        fake = node.meta["val"]
        if isinstance(fake, torch.Tensor):
            return self._promise(fake)
        return [None if f is None else self._promise(f) for f in fake]

    def _promise(self, fake: torch.Tensor) -> Promise:
        try:
            return Promise(tuple(self.shape(fake)), fake.dtype)
        except Decline as decline:
            known = {self.program.rows, *self.program.lengths}
            by_data = any(not self.size(s).free_symbols <= known for s in fake.shape)
            return Promise(None, fake.dtype, str(decline), by_data)

    def shape(self, fake: torch.Tensor) -> list[Extent]:
        """Original sizes as (number, times the row count?): `20 * rows` is (20, True). Declines for anything else."""
        return [self._extent(self.size(s)) for s in fake.shape]

    def _extent(self, expr: sympy.Expr) -> Extent:
        rows, lengths = self.program.rows, self.program.lengths
        if expr.free_symbols <= {*lengths}:
            return sized(expr, lengths), False
        found = quotient(expr, rows)
        if found is not None and found.free_symbols <= {*lengths}:
            return sized(found, lengths), True
        raise Decline(f"a size of {expr} is no multiple of the row count")

    def _view(self, op: Op, x: Node, *how: Any) -> Node:
        """A view in an original layout."""
        return self.b.call(op, (x, *how), x.rate, (), x.dtype, free=True, rows_first=False)


def check(value: Value, promised: Any) -> None:
    """That a rule's result has the sizes and the dtype which the exported graph promises (of a list: every one)."""
    if isinstance(promised, list):
        for own, promise in zip(value, promised, strict=True):
            if own is not None and promise is not None:  # statistics that nobody reads
                check(own, promise)
        return
    if not isinstance(value, TensorValue):
        raise TypeError(f"returned {type(value).__name__} for a tensor")
    shape = tuple(value.extents) if isinstance(value, Form) and promised.shape is not None else promised.shape
    if (shape, value.dtype) != (promised.shape, promised.dtype):
        expected = shape_text(promised.shape or ())
        raise ValueError(f"returned {shape_text(shape or ())} of {value.dtype} for {expected} of {promised.dtype}")


def _lowest(operands: Sequence[Form], of_inputs: bool = False) -> Rate:
    """The rate at which something that reads all of them can be computed, if not `of_inputs` before there are any."""
    rate = join(v.rate for v in operands)
    if rate is Rate.WEIGHT and (of_inputs or any(v.has_rows for v in operands)):
        return Rate.REQUEST  # weights repeated for every row: the operator expects an axis of rows
    return rate


def _rows_first(promised: Promise, rate: Rate) -> bool:
    """Whether axis 0 is the rows (at weight rate there is none), as in every node not in an original layout."""
    return promised.shape is not None and (rate is Rate.WEIGHT or promised.shape[:1] == ((1, True),))


def _own_shape(promised: Promise, rate: Rate) -> tuple[Sized, ...]:
    """Axes after the row axis, where axis 0 is the rows; the row's share of elements otherwise."""
    if promised.shape is None:
        return ()
    sizes = tuple(size for size, _ in promised.shape)
    if _rows_first(promised, rate):
        return sizes if rate is Rate.WEIGHT else sizes[1:]
    return (math.prod(sizes),)


def _outside(operands: Sequence[Form]) -> int:
    """How many tensors of rows stand under each other on the rows' axis of the operands."""
    entries = [(f, entry) for f in operands for entry in f.layout if ROW in entry]
    found = {math.prod(f.sizes[d] for d in entry[: entry.index(ROW)]) for f, entry in entries}
    if len(found) > 1:
        raise Decline("operands fold rows differently")
    return next(iter(found), 1)
