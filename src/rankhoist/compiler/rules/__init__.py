"""Rules: the laws of every ATen operator, one file per family. The order of families is written here and nowhere else.

An operator's laws are tried in this order and in that of its family's table: the best comes first.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rankhoist.compiler.algebra.call import Law
from rankhoist.compiler.rules import (
    attention,
    bags,
    chosen,
    distances,
    gathers,
    joining,
    linear,
    lookup,
    matrices,
    norm,
    parts,
    permuted,
    pointwise,
    recurrent,
    reduce,
    reshape,
    rowwise,
    scans,
    training,
    windows,
)
from rankhoist.compiler.rules.law import table
from rankhoist.errors import CaptureError

FAMILIES = {
    "bags": bags.LAWS,
    "permuted": permuted.LAWS,
    "chosen": chosen.LAWS,
    "lookup": lookup.LAWS,
    "gathers": gathers.LAWS,
    "reshape": reshape.LAWS,
    "parts": parts.LAWS,
    "joining": joining.LAWS,
    "pointwise": pointwise.LAWS,
    "linear": linear.LAWS,
    "matrices": matrices.LAWS,
    "attention": attention.LAWS,
    "norm": norm.LAWS,
    "distances": distances.LAWS,
    "training": training.LAWS,
    "scans": scans.LAWS,
    "windows": windows.LAWS,
    "recurrent": recurrent.LAWS,
    "reduce": reduce.LAWS,
    "rowwise": rowwise.LAWS,
}


CONDITIONAL = frozenset({"finite fills"})  # laws that hold for some requests: these are told in the request stage


@cache
def all_rules() -> dict[Any, tuple[Law, ...]]:
    """Operator -> its laws, the best first."""
    return table(FAMILIES.values())


def law_names() -> list[str]:
    """Of all laws, in order."""
    return list(dict.fromkeys(row.name for family in FAMILIES.values() for row in family))


def check_names(names: frozenset[str]) -> None:
    """That they are names of laws.

    Raises:
        CaptureError: one is not.
    """
    if unknown := sorted(names - {*law_names()}):
        raise CaptureError(f"unknown law {unknown[0]!r}; laws are {', '.join(law_names())}")


def rules_without(names: frozenset[str]) -> dict[Any, tuple[Law, ...]]:
    """The same table with some laws switched off."""
    return {op: tuple(row for row in rows if row.name not in names) for op, rows in all_rules().items()}
