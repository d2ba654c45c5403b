"""The interpreter: walks the captured graph, applies one rule per operator, and falls back to the operator itself.

Soundness: a rule may compute something at request rate only where it proves that rows do not meet. Everything else runs
the original operator over all N rows (see `original`), which is equal by definition, and is named in the report.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

from rankhoist.capture import InputSpec, Program
from rankhoist.capture.effects import ASSERTIONS, LEFT_OUT
from rankhoist.compiler.algebra import grid, joins, kernels
from rankhoist.compiler.algebra.contract import settle, simplify
from rankhoist.compiler.algebra.forms import Block, Cell, Decline, Factor, Form, Label, one_block, plain, row_layout
from rankhoist.compiler.algebra.ir import Builder, Node, Rate, live_nodes
from rankhoist.compiler.algebra.memo import Memo, Outcome, identity
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.values import Opaque, TensorValue, Value, flat
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.mistakes import is_mistake, told

TERMS = 1000  # a form with more is evaluated
PRODUCT = 64  # terms of a product of sums; where there would be more, sums are evaluated first


class OverBudget(Exception):  # noqa: N818 - it is an answer, not a mistake
    """An interpretation that takes longer than it may ends."""


Rule = Callable[["Interpreter", fx.Node, list[Value], dict[str, Value]], Value]


class Interpreter(OriginalOperators):
    """Runs `program` over forms. A rule is given the interpreter, and finds here what it may ask and do.

    Args:
        rules: operator -> rule. Order and membership are decided in `rankhoist.compiler.rules`.
        lookups: operators that are hoisted at level `lookup`.
        keep: at level `full`, whether the forms made by a captured operator stay unevaluated.
    """

    def __init__(
        self, program: Program, level: Level, workload: Workload, rules: Mapping[Any, Rule], lookups: frozenset[Any],
        keep: Callable[[fx.Node], bool] = lambda _: True, memo: Memo | None = None,
    ) -> None:  # fmt: skip
        super().__init__(program, workload, memo or Memo(Builder(program.device)))
        self.level, self.rules, self.lookups, self.keep = level, rules, lookups, keep
        self.values: dict[fx.Node, Value] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.assertions: list[tuple[Node, str]] = []
        self.chose = False  # whether the current operator's result depends on `keep`
        self.grew = ""  # what the report says where a form of the current operator had too many terms

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
            self.b.source = node.name
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node.name)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        self.b.source = "output"
        return self._asserted([self._output(o) for o in self.program.outputs])

    def _placeholder(self, name: str) -> Value:
        known = self.memo.placeholders
        if name not in known:
            known[name] = self._weight(name) if name in self.program.weights else self._input(name)
        return known[name]

    def _weight(self, name: str) -> Form:
        tensor = self.program.weights[name].tensor
        leaf = self.b.leaf("weight", name, Rate.WEIGHT, tensor.shape, tensor.dtype)
        return plain(leaf, tensor.dtype, row_layout(tensor.dim(), rows=False))

    def _input(self, name: str) -> Form:
        spec = self.program.inputs[name]
        if spec.role == "packed":
            return self._packed_input(name, spec)
        rate = Rate.REQUEST if spec.role == "context" else Rate.ITEM
        leaf = self.b.leaf("input", name, rate, spec.shape, spec.dtype)
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
        if node.target is operator.getitem:  # of a result with several tensors
            container, index = self._map(node.args)
            return container[index]
        meta = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload) or _scalar(meta):
            return self._assert(node) if meta is None else self._size_value(meta)
        args, kwargs = self._map(node.args), self._map(node.kwargs)
        # Sizes that depend on data have names of their own in every operator.
        what = node if "unbacked_bindings" in node.meta else node.target
        key = (self.level, what, identity(args), identity(kwargs))
        choice = (*key, self.keep(node))
        self.chose = choice in self.memo.results
        known = self.memo.results.get(choice) or self.memo.results.get(key)
        if known is None:
            self.grew = ""
            operands = [v for v in flat((args, kwargs)) if isinstance(v, TensorValue)]
            # The operands are kept alive with the result: their ids stay theirs.
            known = *self._apply(node, args, kwargs, operands), operands
            self.memo.results[choice if self.chose else key] = known
        if self.chose:
            self.memo.kept_forms.add(node.name)
        value, self.outcomes[node.name], _ = known
        return value

    def _assert(self, node: fx.Node) -> None:
        """An assertion of a tensor is one of the outputs; one of sizes has been shown to hold, unless data decides."""
        operand, *words = self._map(node.args) or [None]
        if node.target in ASSERTIONS:
            rate = Rate.PAIR if isinstance(operand, Opaque) else operand.rate
            self.assertions.append((self.present(operand, rate), *(words or ["an assertion of the model failed"])))
        elif node.target in LEFT_OUT:
            self.outcomes[node.name] = Outcome(reason=LEFT_OUT[node.target])
        elif isinstance(operand, sympy.Basic) and operand.free_symbols - {self.program.rows}:
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
        """Sizes are expressions in the row symbol."""
        if isinstance(meta, torch.SymInt | torch.SymFloat):
            return self.size(meta)
        return meta.node.expr if isinstance(meta, torch.SymBool) else meta

    def _output(self, output: Any) -> Value:
        if not isinstance(output, fx.Node):
            return output
        value = self.values[output]
        return self.present(value, Rate.PAIR) if isinstance(value, TensorValue) else value

    def _map(self, value: Any) -> Any:
        """Captured arguments with values in place of nodes."""
        if isinstance(value, fx.Node):
            return self.values[value]
        if isinstance(value, list | tuple):
            return [self._map(v) for v in value]
        if isinstance(value, dict):
            return {k: self._map(v) for k, v in value.items()}
        return value

    # -- one operator

    def _apply(
        self, node: fx.Node, args: list[Value], kwargs: dict[str, Value], operands: list[TensorValue]
    ) -> tuple[Value, Outcome]:
        outcome = Outcome()
        weights = all(isinstance(v, Form) and v.rate is Rate.WEIGHT and not v.has_rows for v in operands)
        if weights and not _sizes_have_rows(node.meta["val"]):
            value = self.run_at(Rate.WEIGHT, node, args, kwargs)  # part of the weights stage
        else:
            value = self._rule_or_fallback(node, args, kwargs, operands, outcome)
        for v in flat(value):
            if isinstance(v, Form):
                outcome.rates |= {block.rate for block in v.blocks.values()}
            elif isinstance(v, Opaque):
                outcome.rates.add(Rate.PAIR)
        return value, outcome

    def _rule_or_fallback(
        self, node: fx.Node, args: list[Value], kwargs: dict[str, Value], operands: list[TensorValue], outcome: Outcome
    ) -> Value:
        rule = self.rules.get(node.target)
        lookup = self._is_lookup(node, operands)
        if self.level is Level.EXPAND or (self.level is Level.LOOKUP and not lookup):
            return self.fallback(node, args, kwargs)
        if rule is None:
            outcome.reason = f"no rule for {node.target}"
            return self.fallback(node, args, kwargs)
        try:
            value = rule(self, node, args if lookup else self._unmixed(args), kwargs)
            self.check(value, node.meta["val"])
        except Decline as decline:
            outcome.reason = str(decline)
            return self.fallback(node, args, kwargs)
        except Exception as error:
            if not is_mistake(error):
                raise
            outcome.reason = told(f"rule {rule.__name__}", error)  # the original operator is right all the same
            return self.fallback(node, args, kwargs)
        outcome.rule = rule.__name__
        result = self._finish(node, value, lookup)
        outcome.reason = self.grew or None
        return result

    def _is_lookup(self, node: fx.Node, operands: list[TensorValue]) -> bool:
        """Embeddings, what happens to ids before, and what only moves elements: blocks stay apart at every level."""
        if node.target in self.lookups:
            return True
        return all(isinstance(v, Form) and not v.dtype.is_floating_point for v in operands)

    def _unmixed(self, value: Any) -> Any:
        """Below level `linear`, operands of anything that computes are one tensor each."""
        if self.level >= Level.LINEAR:
            return value
        if isinstance(value, list | tuple):
            return [self._unmixed(v) for v in value]
        return self.solid(value) if isinstance(value, Form) and value.mixed else value

    def _finish(self, node: fx.Node, value: Value, lookup: bool) -> Value:
        """Bring a rule's result to what the level allows."""
        if isinstance(value, list | tuple):
            return [self._finish(node, v, lookup) for v in value]
        if not isinstance(value, Form):
            return value
        blocks = {cell: self._finish_block(node, block) for cell, block in value.blocks.items()}
        form = Form(value.dims, blocks, value.layout, value.dtype)
        return self.solid(form) if self.level < Level.LINEAR and form.mixed and not lookup else form

    def _finish_block(self, node: fx.Node, block: Block) -> Block:
        if block.settled:
            return block
        if self.level < Level.FULL or not grid.worth_keeping(block):
            return settle(self.b, block, self.workload)
        if len(block.terms) > TERMS:
            self.grew = f"its form has more than {TERMS} terms and is evaluated"
            return settle(self.b, block, self.workload)
        self.chose = True
        return simplify(self.b, block, self.workload) if self.keep(node) else settle(self.b, block, self.workload)

    # -- what rules need

    def short(self, forms: Sequence[Form]) -> list[Form]:
        """Operands whose product is no sum of too many terms: until then, the longest are evaluated."""
        result = list(forms)
        while self.too_long([form.terms for form in result]):
            longest = max(range(len(result)), key=lambda i: result[i].terms)
            result[longest] = self.settled(result[longest])
        return result

    def too_long(self, terms: Sequence[int]) -> bool:
        """Whether the product of sums of so many terms has too many: more than `PRODUCT`, and than each sum has."""
        found = math.prod(terms) > max(PRODUCT, *terms)
        if found:
            self.grew = f"a product of sums would have more than {PRODUCT} terms, so they are evaluated"
        return found

    def constant(self, value: Value) -> torch.Tensor | None:
        """The value, on the CPU, of a form that depends on no trainable weight and no input, or None.

        The weights it was computed from are remembered: an update must not change them.
        """
        if not isinstance(value, Form) or value.rate is not Rate.WEIGHT or value.has_rows:
            return None
        node = joins.materialise(self.b, value, self.workload)
        found = self.fixed_value(node)
        if found is not None:
            self.pin([node])
        return found

    def pin(self, nodes: Sequence[Node]) -> None:
        """What these were computed from decided something: an update must not change it."""
        weights = [str(n.args[0]) for n in live_nodes(nodes) if n.op == "weight"]
        self.memo.pinned.update(name for name in weights if self.program.weights[name].fixed)

    def fixed_value(self, node: Node) -> torch.Tensor | None:
        """The value, on the CPU, of a node that is computed from what no training changes, or None."""
        leaves = [n for n in live_nodes([node]) if isinstance(n.op, str)]
        fixed = all(n.op == "constant" or (n.op == "weight" and self.program.weights[n.args[0]].fixed) for n in leaves)
        return self._computed(node).cpu() if fixed else None

    def _computed(self, node: Node) -> torch.Tensor:
        """A weight-rate node, now."""
        known: dict[int, torch.Tensor] = {}

        def value(x: Any) -> Any:
            if isinstance(x, Node):
                return known[x.index]
            return [value(v) for v in x] if isinstance(x, list | tuple) else x

        for n in live_nodes([node]):
            if n.op == "weight":
                known[n.index] = self.program.weights[n.args[0]].tensor
            elif n.op == "constant":
                known[n.index] = self.b.constants[n.args[0]]
            else:
                assert not isinstance(n.op, str)
                known[n.index] = n.op(*[value(a) for a in n.args], **{k: value(v) for k, v in n.kwargs.items()})
        return known[node.index]

    def settled(self, form: Form) -> Form:
        """All blocks evaluated."""
        return joins.settled(self.b, form, self.workload)

    def solid(self, form: Form) -> Form:
        """One block."""
        return joins.solid(self.b, form, self.workload)

    def simplified(self, form: Form) -> Form:
        """An intermediate result inside a rule: like terms added up, unevaluated."""
        blocks = {cell: simplify(self.b, block, self.workload) for cell, block in form.blocks.items()}
        return Form(form.dims, blocks, form.layout, form.dtype)


def _scalar(meta: Any) -> bool:
    """Whether an operator makes no tensor: a size, or nothing (an assertion)."""
    return meta is None or isinstance(meta, torch.SymInt | torch.SymBool | torch.SymFloat | int | float)


def _sizes_have_rows(meta: Any) -> bool:
    tensors = [m for m in flat(meta) if isinstance(m, torch.Tensor)]
    return any(isinstance(s, torch.SymInt) for t in tensors for s in t.shape)
