"""A family's rules as a table, built from operator names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from rankhoist.compiler.algebra.interpret import Rule


def overloads(names: str) -> list[Any]:
    """Functional overloads of ATen operators, as far as this version of torch has them: "relu view.default"."""
    found = []
    for name in names.split():
        operator, _, only = name.partition(".")
        packet = getattr(torch.ops.aten, operator, None)
        functional = [o for o in packet.overloads() if "out" not in o.split("_")] if packet is not None else []
        found += [getattr(packet, o) for o in functional if only in ("", o)]
    return found


def table(entries: Iterable[tuple[str, Rule]]) -> dict[Any, Rule]:
    """`("relu sigmoid", rule)` pairs as operator -> rule; naming an operator twice is a mistake."""
    rules: dict[Any, Rule] = {}
    for names, rule in entries:
        for operator in overloads(names):
            if operator in rules:
                raise ValueError(f"two rules for {operator}")
            rules[operator] = rule
    return rules
