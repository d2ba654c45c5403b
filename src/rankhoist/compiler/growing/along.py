"""Operators that act along some axes: others they leave as they are, along one that grows they have a law or run anew.

sum x'[..T'] = sum x[..T] + sum of the last ones, kept in double precision; max and any likewise
cumsum(x')[t] = sum x[..T] + cumsum(last)[t]
softmax(x')[q] = softmax(x)[q] where x'[q, k] = -inf for all new keys k
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import name_of
from rankhoist.compiler.growing.known import Known, Says
from rankhoist.compiler.growing.law import Law, argument, axes_of, operand, steady
from rankhoist.compiler.growing.step import Step

REDUCED = "sum mean amax amin any all prod logsumexp"
JOINED = {"amax": torch.ops.aten.maximum.default, "amin": aten.minimum.default, "any": aten.logical_or.default,
          "all": aten.logical_and.default}  # fmt: skip


def _operand(node: fx.Node) -> fx.Node:
    """The value whose axes it acts along: of an embedding the indices."""
    return operand(node, _place(node))


def _place(node: fx.Node) -> int:
    return 1 if name_of(node.target) == "embedding" else 0


def _acts_on(known: Known, node: fx.Node) -> list[int]:
    """The axes of its operand that it acts along."""
    name, dim = name_of(node.target), known.dim(_operand(node))
    if name in ("layer_norm", "rms_norm"):
        return list(range(dim - len(node.args[1]), dim))  # type: ignore[arg-type]
    if name == "linalg_vector_norm":
        return axes_of(argument(node, 2, "dim"), dim)
    if name == "embedding":
        return []
    if name == "glu":
        return axes_of(argument(node, 1, "dim", -1), dim)
    return axes_of(argument(node, 1, "dim"), dim)


def _keeps(node: fx.Node) -> bool:
    """Whether a reduction keeps its axes, or it is none."""
    name = name_of(node.target)
    if name == "linalg_vector_norm":
        return bool(argument(node, 3, "keepdim", False))
    return bool(argument(node, 2, "keepdim", False)) if name in REDUCED.split() else True


def _back(known: Known, node: fx.Node, axis: int) -> int:
    """The axis of the operand that an axis of the result comes from."""
    if _keeps(node):
        return axis
    gone = _acts_on(known, node)
    return [i for i in range(known.dim(_operand(node))) if i not in gone][axis]


def says(known: Known, node: fx.Node) -> Says:
    along = {*_acts_on(known, node)} & {*known.grows(_operand(node))}
    return Says(steady(known, node) and not along)


def part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    x, own = _operand(node), _back(step.known, node, axis)
    if own in _acts_on(step.known, node) or own not in step.known.grows(x):
        return None
    args = [step.part(x, own) if i == _place(node) else fx.map_arg(a, step.whole) for i, a in enumerate(node.args)]
    return step.placed(node, args)


# -- what is reduced


def _reduced(known: Known, node: fx.Node) -> tuple[fx.Node, list[int], int] | None:
    """Operand, axes, and the one of them that grows; None where not just that grows, or the operand is not stable."""
    x, axes = _operand(node), _acts_on(known, node)
    grows = known.grows(x)
    if not known[x].stable or len(grows) != 1 or not {*grows} <= {*axes} or len(node.args) > 3:
        return None
    return x, axes, next(iter(grows))


def sum_whole(step: Step, node: fx.Node) -> fx.Node | None:
    """A running sum, and for a mean what it is divided by."""
    found = _reduced(step.known, node)
    if found is None:
        return None
    x, axes, axis = found
    made = step.known[node].at[0].dtype
    dtype = torch.float64 if made.is_floating_point else made
    if made.is_complex:
        return None
    keep, total_of = _keeps(node), aten.sum.dim_IntList
    before = step.of_stage(total_of, (x, axes, keep), {"dtype": dtype})
    last = step.part(x, axis)
    total = step.call(aten.add.Tensor, step.keep(before), step.call(total_of, last, axes, keep, dtype=dtype))
    step.renewed[before] = total
    if name_of(node.target) == "mean":
        count: Any = step.length(x, axis)
        for other in axes:
            if other != axis:
                count = step.call(operator.mul, count, step.call(aten.sym_size.int, last, other))
        total = step.call(aten.div.Tensor, total, count)
    return total if dtype == made else step.call(aten.to.dtype, total, made)


def joined_whole(step: Step, node: fx.Node) -> fx.Node | None:
    """The highest of what was the highest and of the last ones."""
    found = _reduced(step.known, node)
    if found is None or name_of(node.target) not in JOINED:
        return None
    x, _, axis = found
    args = [step.part(x, axis), *node.args[1:]]
    return step.call(JOINED[name_of(node.target)], step.keep(node), step.placed(node, args))


# -- what runs along


def cumsum_says(known: Known, node: fx.Node) -> Says:
    return Says(steady(known, node) and not node.kwargs.get("dtype"))


def cumsum_part(step: Step, node: fx.Node, axis: int) -> fx.Node | None:
    (along,), x = _acts_on(step.known, node), _operand(node)
    if axis != along:
        return part(step, node, axis)
    if not step.known[node].stable or len(step.known.grows(x)) != 1:
        return None
    made = step.known[node].at[0].dtype
    dtype = torch.float64 if made.is_floating_point else made
    before = step.of_stage(aten.sum.dim_IntList, (x, [axis], True), {"dtype": dtype})
    last, own = step.part(x, axis), step.keep(before)
    new = step.call(aten.sum.dim_IntList, last, [axis], True, dtype=dtype)
    step.renewed[before] = step.call(aten.add.Tensor, own, new)
    ran = step.call(aten.add.Tensor, step.call(aten.cumsum.default, last, axis, dtype=dtype), own)
    return ran if dtype == made else step.call(aten.to.dtype, ran, made)


def softmax_says(known: Known, node: fx.Node) -> Says:
    x, (along,) = _operand(node), _acts_on(known, node)
    if along not in known.grows(x):
        return Says(steady(known, node))
    queries = _hidden(known, x, along)
    nothing = torch.tensor(0.0, dtype=known[node].at[0].dtype)
    return Says(steady(known, node) and bool(queries), later={(q, along): nothing for q in queries})


def _hidden(known: Known, x: fx.Node, keys: int) -> list[int]:
    """Axes of queries for which keys behind them are minus infinity; all others do not grow."""
    found = [q for q, k in known.pairs(x) if k == keys and hides(known, x, q, k, -torch.inf)]
    return found if {*known.grows(x)} == {keys, *found} else []


def hides(known: Known, x: fx.Node, query: int, key: int, number: float) -> bool:
    """Whether keys behind a query are this number."""
    value = known.behind(x, (query, key)) if (query, key) in known.pairs(x) else None
    return value is not None and value.item() == number


SUMS = Law(says, part, sum_whole)
LAWS = {
    "layer_norm rms_norm linalg_vector_norm embedding glu flip log_softmax prod logsumexp": Law(says, part),
    "sum mean": SUMS,
    "amax amin any all": Law(says, part, joined_whole),
    "cumsum": Law(cumsum_says, cumsum_part),
    "softmax _softmax": Law(softmax_says, part),
}
