"""Evaluation: forms become tensors, and what is computed from constants alone is known now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.algebra import joins
from rankhoist.compiler.algebra.contract import settle, simplify
from rankhoist.compiler.algebra.forms import Block, Factor, Form, Label, Positions, Span, cells, one_block, whole
from rankhoist.compiler.algebra.gathers import repeats
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.moves import replaced
from rankhoist.compiler.algebra.products import arrange
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.node import Node, Rate, live_nodes

PRODUCT = 64  # terms of a product of sums; where there would be more, sums are evaluated first


class Evaluator:
    """Evaluates forms of `program`, in the builder of `memo`.

    Args:
        workload: what contractions are ordered for when a form becomes a tensor.
    """

    def __init__(self, program: Program, workload: Workload, memo: Memo) -> None:
        self.program, self.workload, self.memo, self.b = program, workload, memo, memo.b
        self.values: dict[fx.Node, Value] = {}  # what captured operators have made so far
        self.remark = ""  # what the report says of the work of the current operator that is left per candidate
        self.conditions: list[Node] = []  # on which what the current operator was rewritten to is equal

    # -- forms

    def settle(self, block: Block) -> Block:
        """One block as one tensor."""
        return settle(self.b, block, self.workload)

    def settled(self, form: Form) -> Form:
        """All blocks evaluated."""
        return replace(form, blocks={cell: self.settle(block) for cell, block in form.blocks.items()})

    def simplify(self, block: Block) -> Block:
        """One block with like terms added up, unevaluated."""
        return simplify(self.b, block, self.workload)

    def simplified(self, form: Form) -> Form:
        """The same of all blocks."""
        return replace(form, blocks={cell: self.simplify(block) for cell, block in form.blocks.items()})

    def node(self, form: Form) -> Node:
        """The whole value as one tensor `[rows, *dims]`, at the highest rate of its blocks."""
        form = self.settled(form)
        for dim in range(len(form.dims)):
            if len(form.dims[dim]) > 1:
                form = joins.join_segments(self.b, form, dim)
        form = self._in_order(form)
        block = next(iter(form.blocks.values()))
        shape = [x.size for x in block.visible]
        node = joins.expand(self.b, arrange(self.b, block.factor, block.visible), shape)
        return self.b.reshape(node, form.sizes)

    def solid(self, form: Form) -> Form:
        """The same value as one block."""
        if len(form.blocks) == 1 and form.settled:
            return self._in_order(form)
        node = self.node(form)
        labels = tuple(Label(s) for s in form.sizes)
        block = one_block(Factor(node, labels), tuple((x,) for x in labels))
        return Form(tuple(whole(s) for s in form.sizes), {(0,) * len(labels): block}, form.layout, form.dtype)

    def _in_order(self, form: Form) -> Form:
        for dim in range(len(form.dims)):
            form = joins.in_position_order(self.b, form, dim)
        return form

    def tidy(self, form: Form) -> Form:
        """At most one block per stage along every dim, as far as blocks can be joined.

        Position lists of joined segments are kept, so an interleaved layout is sorted out here, once, at compile time.
        """
        for dim in range(len(form.dims)):
            if len(form.dims[dim]) > 1:
                form = self._joined(form, dim)
        return form

    def _joined(self, form: Form, dim: int) -> Form:
        others = list(cells([*form.dims[:dim], *form.dims[dim + 1 :]]))
        columns = [[form.blocks[replaced(cell, dim, k, 0)] for cell in others] for k in range(len(form.dims[dim]))]
        kinds = [self._kind(column, dim) for column in columns]
        alike = _alike(form.dims[dim], [k if kind is None else kind for k, kind in enumerate(kinds)])
        groups = [
            part for own in alike for part in ([own] if _apart([columns[k] for k in own]) else [[k] for k in own])
        ]
        return form if len(groups) == len(form.dims[dim]) else joins.join_groups(self.b, form, dim, groups)

    def _kind(self, column: Sequence[Block], dim: int) -> tuple[object, ...] | None:
        """Equal for segments of a dim that may be joined, by their blocks: they have like terms, whose factors are
        computed equally often. None for one that stays by itself.
        """
        kinds = [self._kind_of(block, dim) for block in column]
        return None if None in kinds else tuple(kinds)

    def _kind_of(self, block: Block, dim: int) -> tuple[object, ...] | None:
        if not block.settled and any(not set(f.labels) <= set(block.visible) for t in block.terms for f in t.factors):
            return None  # a sum
        kinds = [self._kind_of_factor(f, block, dim) for t in block.terms for f in t.factors]
        if None in kinds or (block.settled and not set(block.labels[dim]) <= set(block.factor.labels)):
            return None
        return (*kinds, *((len(t.factors), t.scale) for t in block.terms))

    def _kind_of_factor(self, x: Factor, block: Block, dim: int) -> tuple[object, ...] | None:
        """What is constant along the dim is repeated along it, but a candidate's: that is one of all, or stays. So does
        what is gathered along another dim: what follows may be done before.
        """
        if repeats(self.b, x, block.labels[dim]) or (x.place and not block.settled):
            return None
        moves = set(block.labels[dim]) <= set(x.labels)
        own = self.workload.stage(x.node.rate) if moves or not x.node.rate.per_candidate else x.node.index
        return own, moves, _present(x, block, dim)

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
            self.remark = f"a product of sums would have more than {PRODUCT} terms, so they are evaluated"
        return found

    # -- what is known now

    def constant(self, value: Value) -> torch.Tensor | None:
        """The value, on the CPU, of a form that depends on no trainable weight and no input, or None.

        The weights it was computed from are remembered: an update must not change them.
        """
        if not isinstance(value, Form) or value.rate is not Rate.WEIGHT or value.has_rows:
            return None
        node = self.node(value)
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


def _alike(segments: Sequence[Positions], kinds: Sequence[object]) -> list[list[int]]:
    """Segments of one kind; spans only where they are neighbours."""
    if isinstance(segments[0], Span):
        return [list(g) for _, g in itertools.groupby(range(len(segments)), kinds.__getitem__)]
    found: dict[object, list[int]] = {}
    for k, kind in enumerate(kinds):
        found.setdefault(kind, []).append(k)
    return list(found.values())


def _apart(columns: Sequence[Sequence[Block]]) -> bool:
    """Whether no candidate's factor of an unevaluated block is one of another, too: what meets it may be added up."""
    seen: set[tuple[int, int]] = set()
    for column in columns:
        own = {
            (i, f.node.index)
            for i, block in enumerate(column) if not block.settled
            for t in block.terms for f in t.factors if f.node.rate.per_candidate and f.labels
        }  # fmt: skip
        if own & seen:
            return False
        seen |= own
    return True


def _present(x: Factor, block: Block, dim: int) -> tuple[bool, ...]:
    """Which other dims a factor really extends along (those it is constant along stay free of cost)."""
    labels = set(x.labels)
    return tuple(all(x in labels for x in own) for d, own in enumerate(block.labels) if d != dim)
