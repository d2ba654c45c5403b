"""Rules: one law per ATen operator, one file per family. The order of families is written here and nowhere else."""

from __future__ import annotations

from functools import cache
from typing import Any

from rankhoist.compiler.algebra.interpret import Rule
from rankhoist.compiler.rules import (
    attention,
    joining,
    linear,
    lookup,
    norm,
    parts,
    pointwise,
    reduce,
    reshape,
    rowwise,
    scans,
    windows,
)

FAMILIES = {
    "lookup": lookup.RULES,
    "reshape": reshape.RULES,
    "parts": parts.RULES,
    "joining": joining.RULES,
    "pointwise": pointwise.RULES,
    "linear": linear.RULES,
    "reduce": reduce.RULES,
    "attention": attention.RULES,
    "norm": norm.RULES,
    "scans": scans.RULES,
    "windows": windows.RULES,
    "rowwise": rowwise.RULES,
}


@cache
def all_rules() -> dict[Any, Rule]:
    """Operator -> rule; no operator belongs to two families."""
    rules: dict[Any, Rule] = {}
    for family, own in FAMILIES.items():
        twice = rules.keys() & own.keys()
        if twice:
            raise ValueError(f"family {family} repeats {sorted(map(str, twice))}")
        rules.update(own)
    return rules


def lookups() -> frozenset[Any]:
    """Operators hoisted at level `lookup`: table reads, and what only moves or casts elements before and after them."""
    moves = reshape.RULES | parts.RULES | joining.RULES
    return frozenset(lookup.LOOKUPS) | frozenset(moves) | frozenset(pointwise.CASTS)
