"""Where OpenVINO on a CPU computes something else than PyTorch: operators, dtypes, integers of more than 32 bits.

It computes float64 in float32 and int64 in 32 bits, in which larger numbers begin again at the smallest. So every
integer of a stage needs a bound: what moves values has that of the values, a sum has the sum of bounds. Inputs that
integers come from are held to `LIMIT` in each call; sizes, places and counts are as small as memory.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.targets.exported import OWNER, SLOTS, DeclinedError, Exported

DTYPES = (torch.float32, torch.bfloat16)  # of numbers that are not integers
INTEGERS = (torch.int64, torch.int32)  # of which OpenVINO makes int32; it saturates others, where PyTorch begins again
LIMIT, WIDEST = 2**30, 2**31
UNLIKE = {
    aten.log1p: "log(1 + x), which is 0 for small x",
    aten.expm1: "exp(x) - 1, which is 0 for small x",
    aten.log_sigmoid: "log of the sigmoid, which is infinite for x < -88",
    aten.log_sigmoid_forward: "log of the sigmoid, which is infinite for x < -88",
    aten.cdist: "the distance of power 2, whichever it is",
}
SPREADS = {aten.std, aten.std_mean, aten.var, aten.var_mean}  # of all elements without Bessel's correction
# By what an operator makes integers of: values as they are, the values that it is given, places and sizes.
MOVES = {
    aten._to_copy, aten._unsafe_view, aten.abs, aten.alias, aten.amax, aten.amin, aten.broadcast_to, aten.cat,
    aten.chunk, aten.clamp, aten.clamp_max, aten.clamp_min, aten.clone, aten.concat, aten.constant_pad_nd,
    aten.contiguous, aten.detach, aten.detach_, aten.diagonal, aten.embedding, aten.expand, aten.expand_as,
    aten.flatten, aten.flip, aten.gather, aten.index, aten.index_select, aten.lift_fresh_copy, aten.masked_fill,
    aten.max, aten.maximum, aten.min, aten.minimum, aten.movedim, aten.narrow, aten.neg, aten.pad, aten.permute,
    aten.repeat, aten.reshape, aten.select, aten.slice, aten.sort, aten.split, aten.split_with_sizes, aten.squeeze,
    aten.stack, aten.t, aten.to, aten.topk, aten.transpose, aten.type_as, aten.unbind, aten.unflatten, aten.unsqueeze,
    aten.view, aten.view_as, aten.where,
}  # fmt: skip
CASTS = {aten._to_copy, aten.to, aten.type_as}
FILLS = {
    aten.full, aten.full_like, aten.new_full, aten.new_ones, aten.new_zeros, aten.ones, aten.ones_like, aten.zeros,
    aten.zeros_like, aten.scalar_tensor,
}  # fmt: skip
PLACES = {
    aten.arange, aten.argmax, aten.argmin, aten.argsort, aten.bucketize, aten.one_hot, aten.searchsorted, aten.sign,
}  # fmt: skip
WITH_PLACES = {  # as their second result
    aten.cummax, aten.cummin, aten.kthvalue, aten.max, aten.median, aten.min, aten.mode, aten.sort, aten.topk,
}  # fmt: skip
SUMS, COUNTS = {aten.add, aten.sub, aten.rsub}, {aten.sum, aten.cumsum, aten.index_add}
WITH_INTEGERS = {  # what takes some and makes none
    aten.div, aten.embedding_bag, aten.index_copy, aten.index_put, aten.mul, aten.scatter, aten.scatter_add,
    aten.scatter_reduce, aten.take_along_dim,
}  # fmt: skip
Bound = tuple[float, frozenset[int]]  # no value is larger, if these inputs are held
SMALL: Bound = (0.0, frozenset())


def held(stage: Exported) -> list[int]:
    """Which inputs OpenVINO must not be given beyond `LIMIT`, or a stage's integers would be others.

    Raises:
        DeclinedError: it computes something else whatever it is given.
    """
    program = stage.program
    needed: set[int] = set()
    inputs = {name: i for i, name in enumerate(program.graph_signature.user_inputs)}
    bounds: dict[fx.Node, Bound] = {}
    for node in program.graph.nodes:
        made = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
        if node.op == "output" or not made:
            continue
        _check(node, made)
        if node.op != "placeholder":
            bounds[node] = _bound(node, made[0], bounds)
        elif node.name in inputs:
            at = inputs[node.name]
            bounds[node] = SMALL if stage.inputs[at] in (OWNER, SLOTS) else (LIMIT, frozenset({at}))
        else:
            bounds[node] = _largest(program, node.name), frozenset()
        if _integers(made[0]):
            largest, of = bounds[node]
            if largest >= WIDEST:
                raise DeclinedError(f"integers of {node.target} may need more than the 32 bits that OpenVINO has")
            needed |= of
    return sorted(needed)


def within(t: Tensor) -> bool:
    """Whether an input may be given."""
    low, high = t.aminmax() if t.numel() else (0, 0)
    return bool(low > -LIMIT) and bool(high < LIMIT)


def _check(node: fx.Node, made: Sequence[Tensor]) -> None:
    packet, target = _packet(node), node.target
    if packet in UNLIKE:
        raise DeclinedError(f"OpenVINO computes {target} as {UNLIKE[packet]}")
    if packet in SPREADS and not any(isinstance(a, (list, tuple)) and a for a in node.args[1:]):
        raise DeclinedError(f"OpenVINO computes {target} of all elements without Bessel's correction")
    moved = node.op == "placeholder" or packet in MOVES - CASTS
    for t in made:
        if t.dtype not in (*DTYPES, *INTEGERS, torch.bool) and not (moved and _integers(t)):
            raise DeclinedError(f"OpenVINO does not compute in {str(t.dtype).removeprefix('torch.')}, as {node} is")
    takes = {*MOVES, *FILLS, *SUMS, *COUNTS, *WITH_INTEGERS}
    given = [n.meta.get("val") for n in node.all_input_nodes]
    if (
        node.op == "call_function"
        and made[0].is_floating_point()
        and packet not in takes
        and any(map(_integers, given))
    ):
        raise DeclinedError(f"OpenVINO may compute {target} of integers in integers")


def _bound(node: fx.Node, made: Tensor, bounds: Mapping[fx.Node, Bound]) -> Bound:
    """Of what an operator makes, by those of what it reads; no bound where it is not known."""
    packet, leaves = _packet(node), pytree.tree_leaves((node.args, node.kwargs))
    read = [bounds[a] for a in leaves if isinstance(a, fx.Node) and a in bounds]  # twice what is read twice
    numbers = [float(abs(a)) for a in leaves if type(a) in (int, float)]
    values, of = [*(value for value, _ in read), *numbers], frozenset[int]().union(*(of for _, of in read))
    if made.dtype is torch.bool:
        return 1.0, frozenset()
    if node.target is operator.getitem and node.args[1] == 1 and _packet(node.all_input_nodes[0]) in WITH_PLACES:
        return SMALL
    if packet in MOVES or node.target is operator.getitem:
        return max(values), of
    if packet in FILLS:
        return max(numbers, default=1.0), frozenset()
    if packet in PLACES or (packet in COUNTS and max(values) <= 1):
        return SMALL
    if packet in SUMS:
        return sum(values) * max(1.0, abs(float(str(node.kwargs.get("alpha", 1))))), of
    if packet is aten.mul:
        return math.prod(values), of
    return max(values) if packet is aten.remainder else math.inf, of


def _largest(program: torch.export.ExportedProgram, name: str) -> float:
    """Of integers that are weights or constants."""
    signature = program.graph_signature
    target = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}.get(name, "")
    weight = {**program.state_dict, **program.constants}.get(target)
    if not isinstance(weight, Tensor) or not _integers(weight):
        return math.inf
    return float(weight.abs().max()) if weight.numel() else 0.0


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _integers(t: Any) -> bool:
    return isinstance(t, Tensor) and not t.is_floating_point() and not t.is_complex() and t.dtype is not torch.bool
