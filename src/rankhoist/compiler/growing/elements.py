"""Elementwise operators, and masks that are made of places.

f(x')[t] = f(x'[t]): stable where all operands are
k - q >= 1 for a key behind its query, so comparisons of places are one number there
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.compiler.graph.operators import name_of
from rankhoist.compiler.growing.known import Known, Pair, Says
from rankhoist.compiler.growing.law import Law, steady
from rankhoist.compiler.growing.step import Step

OTHERS = frozenset("__or__ __and__ __xor__ _to_copy to alias detach contiguous _prelu_kernel masked_fill where".split())
Places = tuple[Mapping[int, Any], Any]


def elementwise(op: Any) -> bool:
    """Whether every element of a result is made of the elements at its place."""
    return torch.Tag.pointwise in getattr(op, "tags", ()) or name_of(op) in OTHERS


def says(known: Known, node: fx.Node) -> Says:
    dim = known.dim(node)
    places = _places(known, node, dim)
    later = {pair: made for pair in known.pairs(node) if (made := _behind(known, node, pair, dim)) is not None}
    uniform = _made(known, node, [known[x].says.uniform for x in node.all_input_nodes])
    return Says(steady(known, node), places, later, uniform)


def part(step: Step, node: fx.Node, axis: int) -> fx.Node:
    dim = step.known.dim(node)

    def own(x: fx.Node) -> fx.Node:
        if step.known[x].number:
            return step.whole(x)
        return step.part_or_whole(x, axis - dim + step.known.dim(x))

    return step.again(node, own)


def _behind(known: Known, node: fx.Node, pair: Pair, dim: int) -> Tensor | None:
    """What it is for keys behind the query."""
    compared = _compared(known, node, pair, dim)
    if compared is not None:
        return torch.tensor(compared)
    given = []
    for x in node.all_input_nodes:
        shift = 0 if known[x].number else dim - known.dim(x)
        given.append(known.behind(x, (pair[0] - shift, pair[1] - shift)))
    return _made(known, node, given)


def _made(known: Known, node: fx.Node, given: list[Tensor | None]) -> Tensor | None:
    """The operator over one number per operand; None is one that is not known, but finite."""
    numbers: dict[fx.Node, Tensor | None] = dict(zip(node.all_input_nodes, given, strict=True))

    def number(i: int) -> Any:
        own = node.args[i] if len(node.args) > i else None
        return numbers[own] if isinstance(own, fx.Node) else own

    if None not in given and given:
        if any(known[x].number for x in numbers):
            return None
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), numbers.__getitem__)
        made: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return made
    name, (a, b, c) = name_of(node.target), (number(i) for i in range(3))
    if name == "masked_fill" and b is not None and bool(b):
        return torch.as_tensor(c, dtype=_dtype(known, node)) if c is not None else None
    if name == "masked_fill" and b is not None:
        return a if a is None or isinstance(a, Tensor) else torch.as_tensor(a, dtype=_dtype(known, node))
    if name == "where" and a is not None:
        chosen = b if bool(a) else c
        return None if chosen is None else torch.as_tensor(chosen, dtype=_dtype(known, node))
    if name in ("logical_or", "bitwise_or", "__or__") and _boolean(known, node) and _is(True, a, b):
        return torch.tensor(True)
    if name in ("logical_and", "bitwise_and", "__and__") and _boolean(known, node) and _is(False, a, b):
        return torch.tensor(False)
    if name == "add" and not node.kwargs and any(_minus_infinite(x) for x in (a, b)):
        return torch.tensor(-torch.inf, dtype=_dtype(known, node))
    return None


def _dtype(known: Known, node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = known[node].at[0].dtype
    return dtype


def _boolean(known: Known, node: fx.Node) -> bool:
    return all(known[x].at[0].dtype == torch.bool for x in node.all_input_nodes)


def _is(value: bool, *numbers: Any) -> bool:
    return any(isinstance(x, Tensor) and bool(x) is value for x in numbers)


def _minus_infinite(x: Any) -> bool:
    return x is not None and bool(torch.as_tensor(x).isneginf())


# -- places


def _places(known: Known, node: fx.Node, dim: int) -> Places | None:
    """A sum of places and a number, of sums of places and numbers."""
    name, args = name_of(node.target), node.args
    if name in ("to", "_to_copy", "clone", "alias", "contiguous", "detach"):
        return _of(known, args[0], dim)
    if name in ("add", "sub", "rsub") and not node.kwargs and len(args) == 2:
        a, b = (_of(known, x, dim) for x in args)
        if name == "rsub":
            a, b = b, a
        return _summed(a, b, 1 if name == "add" else -1)
    if name == "neg":
        return _summed(({}, 0), _of(known, args[0], dim), -1)
    if name == "mul" and len(args) == 2:
        x, by = (args[1], args[0]) if isinstance(args[0], int | float) else (args[0], args[1])
        own = _of(known, x, dim) if isinstance(by, int) else None
        return None if own is None else ({axis: c * by for axis, c in own[0].items()}, own[1] * by)
    return None


def _of(known: Known, x: Any, dim: int) -> Places | None:
    """Of an operand, with the axes of the result."""
    if isinstance(x, int) and not isinstance(x, bool):
        return {}, x
    if not isinstance(x, fx.Node) or known[x].number or known[x].says.places is None:
        return None
    coefficients, constant = known[x].says.places  # type: ignore[misc]
    return {axis + dim - known.dim(x): c for axis, c in coefficients.items()}, constant


def _summed(a: Places | None, b: Places | None, sign: int) -> Places | None:
    if a is None or b is None:
        return None
    axes = {*a[0], *b[0]}
    return {i: a[0].get(i, 0) + sign * b[0].get(i, 0) for i in axes}, a[1] + sign * b[1]


COMPARED = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le, "eq": operator.eq,
            "ne": operator.ne}  # fmt: skip


def _compared(known: Known, node: fx.Node, pair: Pair, dim: int) -> bool | None:
    """A comparison of places that is the same for all keys behind their query: `c (k - q) + d` lies on one side."""
    name = name_of(node.target)
    if name not in COMPARED or len(node.args) != 2:
        return None
    gap = _summed(_of(known, node.args[0], dim), _of(known, node.args[1], dim), -1)
    if gap is None:
        return None
    query, key = pair
    coefficients = {axis: c for axis, c in gap[0].items() if c}
    if {*coefficients} != {query, key} or coefficients[key] != -coefficients[query]:
        return None
    rising = coefficients[key] > 0
    nearest = coefficients[key] + gap[1]  # at k - q = 1, and further away from there on
    found = {bool(COMPARED[name](nearest, 0)), bool(COMPARED[name](torch.inf if rising else -torch.inf, 0))}
    beyond = nearest > 0 if rising else nearest < 0
    if name in ("eq", "ne"):
        return name == "ne" if beyond else None
    return found.pop() if len(found) == 1 else None


ELEMENTS = Law(says, part)
