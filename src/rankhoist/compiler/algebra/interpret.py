"""The interpreter: walks the captured graph, applies the first law of each operator that holds, or the operator itself.

Soundness: a rule may compute something at request rate only where it proves that rows do not meet. Everything else runs
the original operator over all N rows (see `original`), which is equal by definition, and is named in the report.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

from rankhoist.capture import InputSpec, Program
from rankhoist.capture.effects import ASSERTIONS, LEFT_OUT
from rankhoist.capture.empty import without_elements
from rankhoist.capture.inputs import Part
from rankhoist.capture.operators import captured_name, draws, overload
from rankhoist.compiler.algebra import bag_tensors, chosen, fills, grid, permuted, valuewise
from rankhoist.compiler.algebra.bags import OfBags
from rankhoist.compiler.algebra.call import Call, Law
from rankhoist.compiler.algebra.forms import (
    Block,
    Cell,
    Decline,
    Elsewhere,
    Factor,
    Form,
    Label,
    one_block,
    plain,
    row_layout,
)
from rankhoist.compiler.algebra.memo import Memo, Outcome, identity
from rankhoist.compiler.algebra.original import OriginalOperators, check
from rankhoist.compiler.algebra.values import (
    TensorValue,
    Value,
    mapped,
    rates_in,
    sizes_have_rows,
    tensors_in,
    told_by_calls,
)
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import sizes
from rankhoist.compiler.graph.node import Node, Rate, Size, aten
from rankhoist.mistakes import is_mistake, told

NUMBERS = {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}  # read out of a tensor
TERMS = 1000  # a form with more is evaluated
# Without a store, a candidate's own inputs are what depends on the candidate alone.
RATES_OF = {"context": Rate.REQUEST, "candidate": Rate.ITEM, "item": Rate.ITEM, "pair": Rate.PAIR}


class OverBudget(Exception):  # noqa: N818 - it is an answer, not a mistake
    """An interpretation that takes longer than it may ends."""


class Interpreter:
    """Runs `program` over forms.

    Args:
        laws: operator -> its laws, the best first. Order and membership are decided in `rankhoist.compiler.rules`.
        keep: at level `full`, whether the forms made by a captured operator stay unevaluated.
    """

    def __init__(
        self, program: Program, level: Level, workload: Workload, laws: Mapping[Any, Sequence[Law]],
        keep: Callable[[fx.Node], bool] = lambda _: True, memo: Memo | None = None,
    ) -> None:  # fmt: skip
        self.program, self.level, self.workload, self.laws, self.keep = program, level, workload, laws, keep
        self.memo = memo or Memo(Builder(program.device))
        self.b = self.memo.b
        self.originals = OriginalOperators(program, workload, self.memo)
        self.values = self.originals.values
        self.outcomes: dict[str, Outcome] = {}
        self.assertions: list[tuple[Node, str]] = []
        self.choices: set[str] = set()  # captured operators whose results depend on `keep`

    # -- the walk

    def run(self, seconds: float = math.inf) -> list[Value]:
        """Interpret the graph; returns the output nodes (or constants), each over N rows.

        Raises:
            OverBudget: it takes more than `seconds` of this thread. The memo holds whole operators then, as always.
        """
        deadline = time.thread_time() + seconds
        for node in self.program.graph.nodes:
            if time.thread_time() > deadline:
                raise OverBudget
            self.b.source = captured_name(node)
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        self.b.source = "output"
        self._suppose()
        return self._asserted([self._output(o) for o in self.program.returned])

    def _suppose(self) -> None:
        """What the program was written on the condition of."""
        for (name, fill), peak in self.program.supposed:
            holds = fills.above(self.originals, permuted.as_tensors(self.values[peak]), fill)
            self.outcomes[name] = self.outcomes.get(name, Outcome()).supposing("finite fills", holds)

    def _placeholder(self, node: fx.Node) -> Value:
        known, name = self.memo.placeholders, node.name
        if name not in known:
            if name in self.program.weights:
                known[name] = self._weight(name)
            elif name in self.program.bags:
                spec = self.program.inputs[self.program.bags[name].rpartition(".")[0]]
                known[name] = bag_tensors.of_input(self.originals, node, RATES_OF[self._parts(spec)[0].side])
            else:
                known[name] = self._input(name)
        return known[name]

    def _parts(self, spec: InputSpec) -> Sequence[Part]:
        return spec.parts_with_store if self.workload.stored else spec.parts

    def _weight(self, name: str) -> Form:
        tensor = self.program.weights[name].tensor
        leaf = self.b.leaf("weight", name, Rate.WEIGHT, tensor.shape, tensor.dtype)
        return plain(leaf, tensor.dtype, row_layout(tensor.dim(), rows=False))

    def _input(self, name: str) -> Form:
        spec = self.program.inputs[name]
        parts = self._parts(spec)
        if parts[0].columns is not None:
            return self._by_columns(name, spec, parts)
        leaf = self.b.leaf("input", name, RATES_OF[parts[0].side], sizes(spec, self.program.lengths), spec.dtype)
        return plain(leaf, spec.dtype, row_layout(len(spec.shape)))

    def _by_columns(self, name: str, spec: InputSpec, parts: Sequence[Part]) -> Form:
        blocks: dict[Cell, Block] = {}
        segments = []
        for k, (side, suffix, columns) in enumerate(parts):
            assert columns is not None, "all of its parts are columns"
            leaf = self.b.leaf("input", name + suffix, RATES_OF[side], [len(columns)], spec.dtype)
            label = Label(len(columns))
            blocks[(k,)] = one_block(Factor(leaf, (label,)), ((label,),))
            segments.append(np.asarray(columns))
        return Form((tuple(segments),), blocks, row_layout(1), spec.dtype)

    def _call(self, node: fx.Node) -> Value:
        if node.target is operator.getitem:  # of a result with several tensors
            container, index = self._given(node.args)
            return container[index]
        meta = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload) or _scalar(meta):
            if node.target in NUMBERS:
                self._number(node)
            return self._assert(node) if meta is None else self._size_value(meta)
        args, kwargs = self._given(node.args), self._given(node.kwargs)
        # Sizes that depend on data have names of their own in every operator, and every dropout has a mask of its own.
        what = node if "unbacked_bindings" in node.meta or draws(node) else node.target
        key = (self.level, what, identity(args), identity(kwargs))
        choice = (*key, self.keep(node))
        if choice in self.memo.results:
            self.choices.add(node.name)
        known = self.memo.results.get(choice) or self.memo.results.get(key)
        if known is None:
            self.originals.remark, self.originals.conditions = "", []
            # The operands are kept alive with the result: their ids stay theirs.
            known = *self._apply(node, args, kwargs), tensors_in((args, kwargs))
            self.memo.results[choice if node.name in self.choices else key] = known
        self.outcomes[self.b.source] = known[1].after(self.outcomes.get(self.b.source))
        return known[0]

    def _number(self, node: fx.Node) -> None:
        """A number that is read out of a tensor."""
        (operand,), meta = self._given(node.args), node.meta["val"]
        symbol = meta.node.expr if isinstance(meta, torch.SymInt | torch.SymFloat) else None
        if isinstance(symbol, sympy.Symbol):
            self.originals.number(symbol, operand)

    def _assert(self, node: fx.Node) -> None:
        """An assertion of a tensor is one of the outputs; one of sizes has been shown to hold, unless data decides."""
        operand, *words = self._given(node.args) or [None]
        if node.target in ASSERTIONS:
            said = words or ["an assertion of the model failed"]
            self.assertions.append((self.originals.present(operand, operand.rate), *said))
        elif node.target in LEFT_OUT:
            self.outcomes[node.name] = Outcome(reason=LEFT_OUT[node.target])
        elif isinstance(operand, sympy.Basic) and operand.free_symbols - self._sizes():
            self.outcomes[node.name] = Outcome(reason=f"what a number out of data has to be is not asserted: {operand}")

    def _asserted(self, outputs: list[Value]) -> list[Value]:
        """The first tensor of the results is returned if all assertions hold."""
        for i, value in enumerate(outputs):
            if isinstance(value, Node):
                outputs[i] = self._asserting(value)
                break
        return outputs

    def _asserting(self, value: Node) -> Node:
        for assertion in self.assertions:
            args, first = (value, *assertion), value.rows_first
            value = self.b.call(
                kernels.asserted, args, Rate.PAIR, value.shape, value.dtype, free=True, rows_first=first
            )
        return value

    def _size_value(self, meta: Any) -> Value:
        """Sizes are expressions in the row symbol, or lengths."""
        if isinstance(meta, torch.SymInt | torch.SymFloat):
            return self.originals.size_value(meta)
        return meta.node.expr.xreplace(self.memo.symbols) if isinstance(meta, torch.SymBool) else meta

    def _sizes(self) -> set[sympy.Symbol]:
        """Sizes of inputs, which a call is checked for: rows, lengths that vary, and numbers of values in bags."""
        return {self.program.rows, *self.program.lengths, *self.memo.totals.values()}

    def _output(self, output: Any) -> Value:
        if not isinstance(output, fx.Node):
            return output
        value = self.values[output]
        if isinstance(value, sympy.Expr):
            return Size(value)
        return self.originals.present(value, Rate.PAIR) if isinstance(value, TensorValue) else value

    def _given(self, arguments: Any) -> Any:
        """Captured arguments with values in place of nodes."""
        return mapped(arguments, fx.Node, self.values.__getitem__)

    def condition(self, per_candidate: bool) -> Node | None:
        """Whether all laws that were applied hold for a request, `[R]`, or a row, `[N]`; None where they always do."""
        every = (n for outcome in self.outcomes.values() for n in outcome.conditions)
        found = {n.index: n for n in every if n.rate.per_candidate is per_candidate}.values()
        both = partial(self.b.pointwise, aten.logical_and.default, dtype=torch.bool)
        return reduce(lambda x, y: both((x, y)), found) if found else None

    # -- one operator

    def _apply(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> tuple[Value, Outcome]:
        outcome, operands = Outcome(), tensors_in((args, kwargs))
        weights = all(isinstance(v, Form) and v.rate is Rate.WEIGHT and not v.has_rows for v in operands)
        if weights and not sizes_have_rows(node.meta["val"]) and not told_by_calls((args, kwargs)):
            value = self.originals.run_at(Rate.WEIGHT, node, args, kwargs)  # part of the weights stage
        elif without_elements(node):
            value = grid.constant_form(self.b, 0, node.meta["val"].dtype, self.originals.promised(node).extents)
        else:
            value, outcome = chosen.by_law(self.originals, partial(permuted.by_law, self._by_law), node, args, kwargs)
        outcome.rates |= rates_in(value)
        return value, outcome

    def _by_law(self, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> tuple[Value, Outcome]:
        """What the first law that applies makes of an operator; else the operator itself over all rows."""
        outcome, operands = Outcome(), tensors_in((args, kwargs))
        if self.program.dropout == "rows" and draws(node):
            outcome.reason = "draws for every row"
            return self.originals.fallback(node, args, kwargs), outcome
        numbers = all(isinstance(v, Form | OfBags) and not v.dtype.is_floating_point for v in operands)
        tried: list[Decline] = []
        for law in self._laws(node):
            if not law.allowed(self.level, numbers):
                outcome.declined[law.name] = f"level {law.level.name.lower()} and above"
                continue
            if law.ties and self.program.training:
                outcome.declined[law.name] = "equal values would have another gradient"
                continue
            try:
                value = self._applied(law, node, args, kwargs, law.apart(self.level, numbers))
            except Decline as decline:
                tried.append(decline)
                outcome.declined[law.name] = str(decline)
            except Exception as error:
                if not is_mistake(error):
                    raise
                problem = told(f"rule {law.rule.__name__}", error)  # the original operator is right all the same
                outcome.reason = outcome.declined[law.name] = problem
                return self.originals.fallback(node, args, kwargs), outcome
            else:
                outcome.law, outcome.rule = law.name, law.rule.__name__
                outcome.conditions = self.originals.conditions
                outcome.reason = self.originals.remark or None
                return value, outcome
        outcome.reason = self._reason(node, numbers, tried)
        return self.originals.fallback(node, args, kwargs), outcome

    def _laws(self, node: fx.Node) -> Sequence[Law]:
        """Those of its operator; of one that is not of ATen, by name."""
        return self.laws.get(node.target) or self.laws.get(overload(node).name(), ())

    def _applied(self, law: Law, node: fx.Node, args: list[Value], kwargs: dict[str, Value], apart: bool) -> Value:
        """The result, as the level allows it; operands are one tensor each where blocks may not stay `apart`."""
        if not law.orders:
            args, kwargs = permuted.as_tensors(args), permuted.as_tensors(kwargs)
        call = Call(self.originals, node, args if apart else self._whole(args), kwargs, partial(self._kept, node))
        try:
            value = law.applied(call)
        except Elsewhere:
            if not valuewise.alike(args, kwargs):
                raise
            return valuewise.by_part(self.originals, law, node, args, kwargs)
        check(value, call.promised)
        return self._finished(node, value) if apart else self._whole(self._finished(node, value))

    def _reason(self, node: fx.Node, numbers: bool, tried: Sequence[Decline]) -> str | None:
        """Why no law applied: what the best of them says that speaks of these operands, if any was allowed."""
        if tried:
            return str(next((d for d in tried if not isinstance(d, Elsewhere)), tried[-1]))
        if node.target in self.laws:
            return None if self.laws[node.target] else "its laws are switched off"
        allowed = self.level > Level.LOOKUP or (self.level is Level.LOOKUP and numbers)
        return f"no rule for {node.target}" if allowed else None

    def _whole(self, value: Any) -> Any:
        """One tensor each, where blocks are known at different rates."""
        return mapped(value, Form, lambda form: self.originals.solid(form) if form.mixed else form)

    def _finished(self, node: fx.Node, value: Value) -> Value:
        """A rule's result, unevaluated only at level `full`, where that can save work and is asked for."""

        def finished(form: Form) -> Form:
            return replace(form, blocks={cell: self._finished_block(node, b) for cell, b in form.blocks.items()})

        return mapped(value, Form, finished)

    def _finished_block(self, node: fx.Node, block: Block) -> Block:
        if block.settled:
            return block
        if self.level < Level.FULL or not grid.worth_keeping(block, self.workload):
            return self.originals.settle(block)
        if len(block.terms) > TERMS:
            self.originals.remark = f"its form has more than {TERMS} terms and is evaluated"
            return self.originals.settle(block)
        return self.originals.simplify(block) if self._kept(node) else self.originals.settle(block)

    def _kept(self, node: fx.Node) -> bool:
        """Whether its forms stay unevaluated, which what is made of it depends on from now on."""
        self.choices.add(node.name)
        return self.keep(node)


def _scalar(meta: Any) -> bool:
    """Whether an operator makes no tensor: a size, or nothing (an assertion)."""
    return meta is None or isinstance(meta, torch.SymInt | torch.SymBool | torch.SymFloat | int | float)
