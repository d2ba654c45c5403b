"""The memo: what interpretations of one program share, and what happened to each operator."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from rankhoist.compiler.algebra.values import TensorValue, Value
from rankhoist.compiler.graph.build import Builder, told_apart
from rankhoist.compiler.graph.node import Node, Rate


@dataclass
class Outcome:
    """What happened to one operator: for the report.

    `reason` says why no law applied, `declined` why those before the one that applied did not, by name.
    `conditions` are booleans of a request, `[R]`, or of a row, `[N]`, all of which have to be true for the law to hold.
    """

    rates: set[Rate] = field(default_factory=set)
    reason: str | None = None
    law: str = ""
    rule: str = ""
    declined: dict[str, str] = field(default_factory=dict)
    conditions: list[Node] = field(default_factory=list)

    def after(self, before: Outcome | None) -> Outcome:
        """What happened in all, where a result is computed in parts: the last of them tells, at the rates of all."""
        return self if before is None else replace(self, rates=self.rates | before.rates)

    def supposing(self, law: str, holds: Node) -> Outcome:
        """The same, moved by a law on one condition more."""
        return replace(self, law=law, conditions=[*self.conditions, holds])


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
    chosen: dict[int, set[sympy.Symbol]] = field(default_factory=dict)  # by node of a mask: how many are true
    totals: dict[int, sympy.Expr] = field(default_factory=dict)  # by node of lengths of bags: what they add up to
    pinned: set[str] = field(default_factory=set)
    known: dict[int, Any] = field(default_factory=dict)  # by node: what is known of its elements before any input is
    ranges: dict[Any, Any] = field(default_factory=dict)  # by node and part of it: the lowest and the highest there
    placeholders: dict[str, Value] = field(default_factory=dict)
    seconds: dict[Any, float] = field(default_factory=dict)  # predicted for nodes, at the search's workload
    cuts: dict[Any, frozenset[int]] = field(default_factory=dict)  # by what pairs read of items: what each computes
    lowered: dict[Any, Any] = field(default_factory=dict)  # by level and results: what is run for them, and its cost


def identity(value: Any) -> Any:
    """Equal for arguments that give equal results: tensors by identity, all else by type and value."""
    if isinstance(value, TensorValue):
        return id(value)
    if isinstance(value, list | tuple):
        return tuple(identity(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, identity(v)) for k, v in value.items())
    return type(value), told_apart(value)
