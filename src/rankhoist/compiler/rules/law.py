"""Tables of laws: rows of a name, a level, the operators and the rule, and all rows of an operator in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from rankhoist.compiler.algebra.call import Law, Rule
from rankhoist.compiler.algebra.workload import Level


def law(
    name: str,
    level: Level,
    rules: Mapping[str, Rule],
    *,
    blocks: Level | None = None,
    whole: bool = False,
    orders: bool = False,
    ties: bool = False,
) -> list[Law]:
    """The rows of one law, from operator names: `{"relu view.default": rule}`.

    Args:
        level: the lowest level that allows it.
        blocks: the lowest level that allows it for blocks of different rates (default: `level`); below, every operand
            is one tensor.
        whole: it always is.
        orders, ties: see `Law`.
    """
    lowest = None if whole else blocks or level
    return [Law(name, tuple(overloads(names)), level, lowest, rule, orders, ties) for names, rule in rules.items()]


def overloads(names: str) -> list[Any]:
    """Functional overloads of ATen operators, as far as this version of torch has them: "relu view.default"; or of
    ours: "rankhoist::opaque". Those of others stand for themselves, by name: "fbgemm::dense_to_jagged".
    """
    found: list[Any] = []
    for name in names.split():
        library, _, own = name.rpartition("::")
        if library and library != "rankhoist":  # of a library that need not be here
            found.append(name)
            continue
        operator, _, only = own.partition(".")
        packet = getattr(getattr(torch.ops, library or "aten"), operator, None)
        functional = [o for o in packet.overloads() if "out" not in o.split("_")] if packet is not None else []
        found += [getattr(packet, o) for o in functional if only in ("", o)]
    return found


def table(families: Iterable[Sequence[Law]]) -> dict[Any, tuple[Law, ...]]:
    """Operator -> its laws in order; an operator that is in two rows of one law is a mistake."""
    laws: dict[Any, tuple[Law, ...]] = {}
    for row in (row for family in families for row in family):
        for operator in row.operators:
            before = laws.get(operator, ())
            if any(other.name == row.name for other in before):
                raise ValueError(f"law {row.name!r} has two rules for {operator}")
            laws[operator] = (*before, row)
    return laws
