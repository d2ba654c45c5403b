"""The interpreter: walks the captured graph, applies one rule per operator, and falls back to the operator itself.

Soundness: a rule may compute something at request rate only where it proves that rows do not meet. Everything else runs
the original operator over all N rows, which is equal by definition, and is named in the report.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

from rankhoist.algebra import grid, joins
from rankhoist.algebra.contract import settle, simplify
from rankhoist.algebra.forms import ROW, Block, Cell, Decline, Factor, Form, Label, one_block, plain, row_layout, whole
from rankhoist.algebra.ir import Builder, Node, Rate, Size, Workload, aten, join, live_nodes
from rankhoist.algebra.work import original_work
from rankhoist.capture import InputSpec, Program
from rankhoist.capture.program import operator_name, overload


class Level(IntEnum):
    """What may be hoisted; every level includes those below it."""

    EXPAND = 0
    LOOKUP = 1
    REQUEST = 2
    LINEAR = 3
    FIRST = 4
    FULL = 5


@dataclass(frozen=True, eq=False)
class Opaque:
    """A tensor over all N rows whose axes do not follow the rows (`[N, N]`, or a mean over rows)."""

    node: Node
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class RowNumber:
    """`arange(0, step * rows, step)`: row i holds `step * i`. It marks "my own row" in an index."""

    dtype: torch.dtype
    step: int = 1


RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "ravel"}
READS_MEMORY = {aten.view_as_complex.default, aten.view.dtype, aten.view_copy.dtype}  # neighbouring elements become one

Value = Any  # Form | Opaque | RowNumber | list[Value] | sympy.Expr | int | float | bool | None | dtype | device
Rule = Callable[["Interpreter", fx.Node, list[Value], dict[str, Value]], Value]


@dataclass
class Outcome:
    """What happened to one operator: for the report."""

    rates: set[Rate] = field(default_factory=set)
    reason: str | None = None
    rule: str = ""


@dataclass
class Memo:
    """What interpretations of one program share: nodes, and results of operators whose operands are the same objects.

    A plan search interprets the program many times; only what a choice changes is computed again. An operator that the
    model's author repeats, such as `x[:, i]` for every pair that field i is in, is computed once.
    """

    b: Builder
    results: dict[Any, tuple[Value, Outcome, Any]] = field(default_factory=dict)
    symbols: dict[sympy.Symbol, sympy.Expr] = field(default_factory=dict)
    measured: dict[sympy.Symbol, Node] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    kept_forms: set[str] = field(default_factory=set)  # operators for which keeping or evaluating is a choice
    placeholders: dict[str, Value] = field(default_factory=dict)
    seconds: dict[Any, float] = field(default_factory=dict)  # predicted for nodes, at the search's workload


class Interpreter:
    """Runs `program` over forms.

    Args:
        rules: operator -> rule. Order and membership are decided in `rankhoist.rules`.
        lookups: operators that are hoisted at level `lookup`.
        keep: at level `full`, whether the forms made by a captured operator stay unevaluated.
    """

    def __init__(
        self, program: Program, level: Level, workload: Workload, rules: Mapping[Any, Rule], lookups: frozenset[Any],
        keep: Callable[[fx.Node], bool] = lambda _: True, memo: Memo | None = None,
    ) -> None:  # fmt: skip
        self.program, self.level, self.workload = program, level, workload
        self.rules, self.lookups, self.keep = rules, lookups, keep
        self.memo = memo or Memo(Builder(program.device))
        self.b = self.memo.b
        self.values: dict[fx.Node, Value] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.current: fx.Node | None = None
        self.chose = False  # whether the current operator's result depends on `keep`

    # -- the walk

    def run(self) -> list[Value]:
        """Interpret the graph; returns the output nodes (or constants), each over N rows."""
        for node in self.program.graph.nodes:
            self.current = node
            self.b.source = node.name
            if node.op == "placeholder":
                if node.name not in self.memo.placeholders:
                    self.memo.placeholders[node.name] = self._placeholder(node)
                self.values[node] = self.memo.placeholders[node.name]
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        self.current, self.b.source = None, "output"
        return [self._output(o) for o in self.program.outputs]

    def _placeholder(self, node: fx.Node) -> Value:
        if node.name in self.program.weights:
            tensor = self.program.weights[node.name].tensor
            leaf = self.b.leaf("weight", node.name, Rate.WEIGHT, tensor.shape, tensor.dtype)
            return plain(leaf, tensor.dtype, row_layout(tensor.dim(), rows=False))
        spec = self.program.inputs[node.name]
        if spec.role == "packed":
            return self._packed_input(node.name, spec)
        rate = Rate.REQUEST if spec.role == "context" else Rate.ITEM
        leaf = self.b.leaf("input", node.name, rate, spec.shape, spec.dtype)
        return plain(leaf, spec.dtype, row_layout(len(spec.shape)))

    def _packed_input(self, name: str, spec: InputSpec) -> Form:
        parts = ((Rate.REQUEST, ".context", spec.columns), (Rate.ITEM, ".candidate", spec.candidate_columns))
        blocks: dict[Cell, Block] = {}
        segments = []
        for k, (rate, suffix, columns) in enumerate(parts):
            leaf = self.b.leaf("input", name + suffix, rate, [len(columns)], spec.dtype)
            label = Label(len(columns))
            blocks[(k,)] = one_block(Factor(leaf, (label,)), ((label,),))
            segments.append(np.asarray(columns))
        return Form((tuple(segments),), blocks, row_layout(1), spec.dtype)

    def _call(self, node: fx.Node) -> Value:
        meta = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._python(node)
        if isinstance(meta, torch.SymInt | torch.SymBool | torch.SymFloat | int | bool | float) or meta is None:
            return self._scalar(node)
        args, kwargs = self._map(node.args), self._map(node.kwargs)
        operands = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Form | Opaque | RowNumber)]
        # Sizes that depend on data have names of their own in every operator.
        what = node if "unbacked_bindings" in node.meta else node.target
        key = (self.level, what, _identity(args), _identity(kwargs))
        choice = (*key, self.keep(node))
        self.chose = choice in self.memo.results
        known = self.memo.results.get(choice if self.chose else key)
        if known is None:
            outcome = Outcome()
            # The operands are kept alive with the result: their ids stay theirs.
            known = self._apply(node, args, kwargs, operands, outcome, meta), outcome, operands
            self.memo.results[choice if self.chose else key] = known
        if self.chose:
            self.memo.kept_forms.add(node.name)
        value, self.outcomes[node.name], _ = known
        return value

    def _apply(
        self,
        node: fx.Node,
        args: list[Value],
        kwargs: dict[str, Value],
        operands: list[Value],
        outcome: Outcome,
        meta: Any,
    ) -> Value:
        if all(
            isinstance(v, Form) and v.rate is Rate.WEIGHT and not v.has_rows for v in operands
        ) and not _sizes_have_rows(meta):
            value = self._emit(node, Rate.WEIGHT, args, kwargs, meta)  # part of the weights stage
        else:
            value = self._rule_or_fallback(node, args, kwargs, operands, outcome)
        outcome.rates |= {block.rate for v in _flat(value) if isinstance(v, Form) for block in v.blocks.values()}
        outcome.rates |= {Rate.PAIR for v in _flat(value) if isinstance(v, Opaque)}
        return value

    def _rule_or_fallback(
        self, node: fx.Node, args: list[Value], kwargs: dict[str, Value], operands: list[Value], outcome: Outcome
    ) -> Value:
        rule = self.rules.get(node.target)
        carries = self._is_lookup(node, operands)
        if self.level is Level.EXPAND or (self.level is Level.LOOKUP and not carries):
            return self.fallback(node, args, kwargs)
        if rule is None:
            outcome.reason = f"no rule for {node.target}"
            return self.fallback(node, args, kwargs)
        try:
            value = rule(self, node, args if carries else self._unmixed(args), kwargs)
        except Decline as decline:
            outcome.reason = str(decline)
            return self.fallback(node, args, kwargs)
        except Exception as error:
            # A rule that breaks is a mistake of ours; the original operator is right all the same.
            outcome.reason = f"rule {rule.__name__} failed ({type(error).__name__}: {error}); please report it"
            return self.fallback(node, args, kwargs)
        outcome.rule = rule.__name__
        return self._finish(value, carries)

    def _unmixed(self, value: Any) -> Any:
        """Below level `linear`, operands of anything that computes are one tensor each."""
        if self.level >= Level.LINEAR:
            return value
        if isinstance(value, list | tuple):
            return [self._unmixed(v) for v in value]
        return self.solid(value) if isinstance(value, Form) and value.mixed else value

    def _is_lookup(self, node: fx.Node, operands: list[Value]) -> bool:
        """Embeddings, what happens to ids before, and what only moves elements: blocks stay apart at every level."""
        if node.target in self.lookups:
            return True
        return all(isinstance(v, Form) and not v.dtype.is_floating_point for v in operands)

    def _python(self, node: fx.Node) -> Value:
        """`getitem` on a result with several tensors, or arithmetic on sizes."""
        name = getattr(node.target, "__name__", str(node.target))
        if name == "getitem":
            container, index = self._map(node.args)
            return container[index]
        return self._scalar(node)

    def _scalar(self, node: fx.Node) -> Value:
        """Sizes are expressions in the row symbol; assertions about metadata have nothing left to say."""
        meta = node.meta.get("val")
        if isinstance(meta, torch.SymInt | torch.SymFloat):
            return self.size(meta)
        if meta is None or isinstance(meta, torch.SymBool):
            return None
        return meta

    # -- sizes

    def size(self, value: Any) -> sympy.Expr:
        """An integer of the captured graph as an expression in the row symbol."""
        expr = value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat) else sympy.Integer(value)
        return expr.subs(self.memo.symbols) if self.memo.symbols else expr

    def shape(self, fake: torch.Tensor) -> list[tuple[int, bool]]:
        """Original sizes as (number, times the row count?). Declines for anything else."""
        return [self.factored(self.size(s)) for s in fake.shape]

    def factored(self, expr: sympy.Expr) -> tuple[int, bool]:
        """`20 * rows` -> (20, True), `20` -> (20, False)."""
        if expr.is_Integer:
            return int(expr), False
        quotient = sympy.simplify(expr / self.program.rows)
        if quotient.is_Integer:
            return int(quotient), True
        raise Decline(f"a size of {expr} is no multiple of the row count")

    # -- what rules need

    def constant(self, value: Value) -> torch.Tensor | None:
        """The value, on the CPU, of a form that depends on no trainable weight and no input, or None.

        The weights it was computed from are remembered: an update must not change them.
        """
        if not isinstance(value, Form) or value.rate is not Rate.WEIGHT or value.has_rows:
            return None
        node = joins.materialise(self.b, value, self.workload)
        leaves = [n for n in _leaves_of(node) if n.op == "weight"]
        weights = [self.program.weights[n.args[0]] for n in leaves]
        if any(w.tensor.is_floating_point() for w in weights):
            return None
        self.memo.pinned |= {str(n.args[0]) for n in leaves}
        return evaluate_node(node, self.program, self.b).cpu()

    def pure(self, form: Form) -> Form:
        """All blocks evaluated."""
        return joins.settle_all(self.b, form, self.workload)

    def solid(self, form: Form) -> Form:
        """One block."""
        return joins.solid(self.b, form, self.workload)

    def simplified(self, form: Form) -> Form:
        """An intermediate result inside a rule: like terms added up, unevaluated."""
        blocks = {cell: b if b.pure else simplify(self.b, b, self.workload) for cell, b in form.blocks.items()}
        return Form(form.dims, blocks, form.layout, form.dtype)

    def _finish(self, value: Value, carries: bool) -> Value:
        """Bring a rule's result to what the level allows."""
        if isinstance(value, list | tuple):
            return [self._finish(v, carries) for v in value]
        if not isinstance(value, Form):
            return value
        lazy = self.level is Level.FULL and self.current is not None and self.keep(self.current)
        blocks = {cell: self._finish_block(block, lazy) for cell, block in value.blocks.items()}
        form = Form(value.dims, blocks, value.layout, value.dtype)
        if self.level < Level.LINEAR and form.mixed and not carries:
            form = self.solid(form)
        return form

    def _finish_block(self, block: Block, lazy: bool) -> Block:
        if block.pure:
            return block
        if self.level < Level.FULL or not grid.worth_keeping(block):
            return settle(self.b, block, self.workload)
        self.chose = True
        return simplify(self.b, block, self.workload) if lazy else settle(self.b, block, self.workload)

    def present(self, value: Value, rate: Rate) -> Any:
        """A tensor with the original axes, for the original operator, with as many rows as `rate` has."""
        if isinstance(value, Opaque):
            return value.node
        if isinstance(value, RowNumber):
            end = Size(self.program.rows * value.step)
            kwargs = {"dtype": value.dtype, "device": self.program.device}
            return self.b.call(aten.arange.start_step, (0, end, value.step), rate, (), value.dtype, kwargs=kwargs)
        if isinstance(value, Form):
            node = joins.materialise(self.b, value, self.workload)
            if value.has_rows:
                node = self.b.rowwise(node, rate)
            return self._original_axes(node, value)
        if isinstance(value, list | tuple):
            return [self.present(v, rate) for v in value]
        if isinstance(value, sympy.Expr):
            return int(value) if value.is_Integer else self._size_argument(value)
        return value

    def _size_argument(self, expr: sympy.Expr) -> Size:
        """An expression of the rows and of sizes that an operator's result had (`nonzero`, `masked_select`)."""
        measured = tuple(
            (s, self.memo.measured[s]) for s in sorted(expr.free_symbols, key=str) if s in self.memo.measured
        )
        return Size(expr, measured)

    def _measure(self, node: fx.Node, made: Node, rate: Rate) -> None:
        """Remember sizes that depend on data, as they come out of an operator over all rows."""
        for symbol, path in (node.meta.get("unbacked_bindings") or {}).items():
            if len(path) == 2 and getattr(path[0], "name", None) == "size":
                self.memo.measured[symbol] = self.b.call(
                    aten.sym_size.int, (made, path[1].idx), rate, (), torch.int64, free=True
                )  # fmt: skip

    def _original_axes(self, node: Node, form: Form) -> Node:
        """From `[rows, *dims]` to the original layout."""
        layout, sizes = form.layout, form.sizes
        flat = [d for entry in layout for d in entry]
        if not form.has_rows:
            node = self.b.permute(node, flat) if flat else node
            return self.b.reshape(node, [size for size, _ in form.extents])
        if all(len(e) == 1 for e in layout) and flat == list(range(ROW, len(sizes))):
            return node
        axes = [0 if d == ROW else d + 1 for d in flat]
        shape = [Size(self.program.rows * size) if rows else size for size, rows in form.extents]
        if axes != sorted(axes):
            node = self.b.call(aten.permute.default, (node, axes), node.rate, (), node.dtype, free=True)
        if all(len(e) == 1 for e in layout):
            return node
        return self.b.call(aten.reshape.default, (node, shape), node.rate, (), node.dtype, free=True)

    def received(self, node: Node, fake: torch.Tensor) -> Value:
        """The result of an original operator as a form over its rows, or opaque where its axes do not follow them."""
        try:
            shape = self.shape(fake)
        except Decline:
            return Opaque(node, fake.dtype)
        at = [axis for axis, (_, rows) in enumerate(shape) if rows]
        if node.rate is Rate.WEIGHT and not at:
            return plain(node, fake.dtype, row_layout(len(shape), rows=False))
        if len(at) != 1:
            return Opaque(node, fake.dtype)
        (axis,) = at
        sizes = [n for n, _ in shape]
        others = [n for i, n in enumerate(sizes) if i != axis]
        if axis == 0 and sizes[0] == 1:
            return plain(node, fake.dtype, row_layout(len(others)))
        order = [axis, *(i for i in range(len(sizes)) if i != axis)]
        if axis:
            node = self.b.call(aten.permute.default, (node, order), node.rate, (), node.dtype, free=True)
        self.b.raw.add(node.index)
        dims = [sizes[axis], *others]
        node = self.b.call(aten.reshape.default, (node, [-1, *dims]), node.rate, dims, node.dtype, free=True)
        rest = iter(range(1, len(dims)))
        layout = tuple((ROW, 0) if i == axis else (next(rest),) for i in range(len(sizes)))
        return plain(node, fake.dtype, layout)

    def fallback(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """The original operator over all N rows."""
        return self._emit(node, Rate.PAIR, args, kwargs, node.meta["val"])

    def run_rowwise(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
        """The original operator at the lowest rate of its operands; the caller has proved that rows do not meet."""
        operands = [v for v in _flat((args, list(kwargs.values()))) if isinstance(v, Form)]
        rate = join(v.rate for v in operands)
        if rate is Rate.WEIGHT and any(v.has_rows for v in operands):
            rate = Rate.REQUEST  # weights repeated for every row: the operator expects an axis of rows
        return self._emit(node, rate, args, kwargs, node.meta["val"])

    def _emit(self, node: fx.Node, rate: Rate, args: list[Value], kwargs: dict[str, Value], meta: Any) -> Value:
        if operator_name(node) in RESHAPES and node.target not in READS_MEMORY and rate is not Rate.WEIGHT:
            return self._emit_reshape(args[0], rate, meta)
        shown = [self.present(a, rate) for a in args]
        if node.target in READS_MEMORY:
            shown[0] = self._contiguous(shown[0])
        named = {k: self.present(v, rate) for k, v in kwargs.items()}
        fakes = [meta] if isinstance(meta, torch.Tensor) else list(meta)
        work = original_work(node, self.program.rows, self.workload.candidates)
        single = isinstance(meta, torch.Tensor)
        shape = self._own_shape(fakes[0], rate) if single else (work.elements,)
        dtype = fakes[0].dtype if single else torch.float32
        made = self.b.call(overload(node), shown, rate, shape, dtype, kwargs=named, multiply_adds=work.multiply_adds)
        if not self._rows_first(fakes[0], rate):
            self.b.raw.add(made.index)
        self._measure(node, made, rate)
        if not single:
            parts = [
                None if f is None else _item(self.b, made, i, f, self._own_shape(f, rate)) for i, f in enumerate(fakes)
            ]
            return [None if p is None else self.received(p, f) for p, f in zip(parts, fakes, strict=True)]
        return self.received(made, fakes[0])

    def _contiguous(self, x: Node) -> Node:
        dense = {"memory_format": torch.contiguous_format}
        made = self.b.call(aten.clone.default, (x,), x.rate, x.shape, x.dtype, kwargs=dense)
        if x.index in self.b.raw:
            self.b.raw.add(made.index)
        return made

    def _emit_reshape(self, value: Value, rate: Rate, fake: torch.Tensor) -> Value:
        """Sizes from the exported graph: a size of 1 (or 0) in a call must not change the number of axes."""
        shape = [self.present(self.size(s), rate) for s in fake.shape]
        shown = self.present(value, rate)
        made = self.b.call(
            aten.reshape.default, (shown, shape), rate, self._own_shape(fake, rate), fake.dtype, free=True
        )
        return self.received(made, fake)

    def _own_shape(self, fake: torch.Tensor, rate: Rate) -> tuple[int, ...]:
        """Axes after the row axis, where axis 0 is the rows; the row's share of elements otherwise."""
        try:
            shape = self.shape(fake)
        except Decline:
            return ()
        if rate is Rate.WEIGHT:
            return tuple(n for n, _ in shape)
        if shape and shape[0] == (1, True):
            return tuple(n for n, _ in shape[1:])
        return (math.prod(n for n, _ in shape),)

    def _rows_first(self, fake: torch.Tensor, rate: Rate) -> bool:
        """Whether axis 0 is the rows, as in every node that is not in an original layout."""
        try:
            shape = self.shape(fake)
        except Decline:
            return False
        return rate is Rate.WEIGHT or shape[:1] == [(1, True)]

    def _output(self, output: Any) -> Value:
        if not isinstance(output, fx.Node):
            return output
        value = self.values[output]
        return self.present(value, Rate.PAIR) if isinstance(value, Form | Opaque | RowNumber) else value

    def _map(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        if isinstance(value, list | tuple):
            return [self._map(v) for v in value]
        if isinstance(value, dict):
            return {k: self._map(v) for k, v in value.items()}
        return value


def _item(b: Builder, node: Node, index: int, fake: torch.Tensor, shape: tuple[int, ...]) -> Node:
    return b.call(operator.getitem, (node, index), node.rate, shape, fake.dtype, free=True)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [x for v in value for x in _flat(v)]
    return [value]


def _identity(value: Any) -> Any:
    """Equal for arguments that give equal results: tensors by identity, all else by type and value."""
    if isinstance(value, Form | Opaque | RowNumber):
        return id(value)
    if isinstance(value, list | tuple):
        return tuple(_identity(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _identity(v)) for k, v in value.items())
    return type(value), value


def _sizes_have_rows(meta: Any) -> bool:
    tensors = [m for m in _flat(meta) if isinstance(m, torch.Tensor)]
    return any(isinstance(s, torch.SymInt) for t in tensors for s in t.shape)


def _leaves_of(node: Node) -> list[Node]:
    return [n for n in live_nodes([node]) if isinstance(n.op, str)]


def evaluate_node(node: Node, program: Program, b: Builder) -> torch.Tensor:
    """Compute a weight-rate node now."""
    known: dict[int, torch.Tensor] = {}

    def value(x: Any) -> Any:
        if isinstance(x, Node):
            return known[x.index]
        return [value(v) for v in x] if isinstance(x, list | tuple) else x

    for n in live_nodes([node]):
        if n.op == "weight":
            known[n.index] = program.weights[n.args[0]].tensor
        elif n.op == "constant":
            known[n.index] = b.constants[n.args[0]]
        else:
            assert not isinstance(n.op, str)
            known[n.index] = n.op(*[value(a) for a in n.args], **{k: value(v) for k, v in n.kwargs.items()})
    return known[node.index]


__all__ = ["Decline", "Interpreter", "Level", "Opaque", "Outcome", "RowNumber", "Rule", "Value", "whole"]
