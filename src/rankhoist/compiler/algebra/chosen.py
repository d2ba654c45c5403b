"""Rows that a mask chooses. Law: for f that computes every row by itself, `f(x[m], y[m]) = f(x, y)[m]`.

So `z[m] = f(x[m])` is `where(m, f(x), z)`: what is the request's is computed once for it. Places of a row are rows
here, folded with them. Which f compute every row by itself is known by their laws, which hold whatever rows there are.
What has no law is given the rows that are chosen.

That holds for a candidate's masks, too, and for places of both sides; but where most places are the candidate's, to
compute all of them may be more than to compute the chosen. Of these a layer is

    (W [c; k] + b)[m] = (W_c c + b)[m] + W_k k[m],

the first product once per request, the second of the chosen rows alone, as it was.

What is not chosen must not raise: ids there are 0, and what refuses some numbers is given the chosen ones only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx

from rankhoist.capture.operators import draws, operator_name
from rankhoist.compiler.algebra import folds, moves, pointwise, sequences
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.memo import Outcome
from rankhoist.compiler.algebra.orders import Chosen, Mask
from rankhoist.compiler.algebra.original import OriginalOperators
from rankhoist.compiler.algebra.permuted import ByLaw
from rankhoist.compiler.algebra.values import Opaque, Value, flat, mapped, tensors_in
from rankhoist.compiler.graph.lengths import varies
from rankhoist.compiler.graph.node import Rate, aten

BY_IDS = {"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", "one_hot", "index",
          "index_select", "gather", "scatter", "scatter_add", "scatter_reduce"}  # fmt: skip
OF_SOME = {"opaque", "inverse", "cholesky", "cholesky_inverse", "cholesky_solve", "matrix_power"}  # refuse matrices
LAYERS: dict[Any, int] = {
    aten.linear.default: 1,
    aten.matmul.default: 0,
    aten.mm.default: 0,
}  # which axis of the matrix is summed over
PLACES = 16  # at most, of a row that are added up one after the other
DIVISIONS = {"div", "floor_divide", "remainder", "fmod"}  # refuse a whole number 0


# -- x[m]


def mask_of(originals: OriginalOperators, value: Form) -> Mask:
    """A mask over rows and places of each."""
    if value.dtype != torch.bool or value.of_weights or not value.has_rows:
        raise Elsewhere(f"{value.axes} is no mask of rows that depends on the inputs")
    if varies(value.sizes):
        raise Elsewhere(f"a mask of {value.axes} whose length varies")
    form, outside = _folded(originals, value, len(value.layout))
    return Mask(form, originals.node(form), int(form.extents[0][0]), outside)


def of(originals: OriginalOperators, node: fx.Node, args: Any, kwargs: Any, value: Form, mask: Form) -> Chosen:
    """`value[mask]`, the first result of a captured operator."""
    own, axes = mask_of(originals, mask), len(mask.layout)
    if originals.program.training:  # where(m, f(x), z) has no gradient where f has none, chosen or not
        raise Decline("rows are chosen by a mask while training")
    if value.extents[:axes] != mask.extents:
        raise Decline(f"a mask of {mask.axes} chooses from {value.axes}")
    folded, _ = _folded(originals, value, axes)
    if _of_candidates(folded, 0) and not _columns(folded).any():
        raise Decline(f"a mask chooses from {value.axes}, most places of which depend on the candidate")
    symbol = originals.size(node.meta["val"].shape[0])
    made = originals.fallback(node, args, kwargs)  # which measures how many there are
    originals.memo.chosen.setdefault(own.node.index, set()).add(symbol)
    return Chosen(folded, 0, own, lambda: made, partial(put, originals))


def _folded(originals: OriginalOperators, value: Form, axes: int) -> tuple[Form, int]:
    """With the first axes folded, places in one dim: `[rows, T]` is `[(rows T)]`, `[T, rows]` `[(T rows)]`. Of rows
    between places, `[K, rows, T]`, all places are behind them, `[(rows K T)]`, with K, which were outside.
    """
    count = math.prod(size for size, _ in value.extents[:axes])
    if not any(ROW in entry for entry in value.layout[:axes]):
        raise Decline(f"a mask chooses from {value.axes}, whose rows are behind its axes")
    folded = moves.ordered(folds.to_shape(originals.b, value, [(count, True), *value.extents[axes:]]))
    own = folded.layout[0]
    at, last = own.index(ROW), len(own) - 1
    if at == last > 1:
        raise Decline(f"a mask chooses from {value.axes}, whose rows are behind several axes")
    outside = math.prod(int(folded.sizes[d]) for d in own[:at]) if at < last else 1
    if last > 1:
        folded = replace(folded, layout=((ROW, *own[:at], *own[at + 1 :]), *folded.layout[1:]))
        folded = moves.merge_dims(folded, 0, last)
    return folded, outside


def _as_written(originals: OriginalOperators, value: Form, axis: int, mask: Mask) -> Form:
    """Rows and places folded on an axis in the order of the mask's author."""
    if mask.outside == 1:
        return value
    _, d = value.layout[axis]
    split = moves.split_dim(originals.b, value, d, [mask.outside, mask.count // mask.outside])
    return replace(split, layout=(*split.layout[:axis], (d, ROW, d + 1), *split.layout[axis + 1 :]))


def _places(entry: tuple[int, ...]) -> int:
    """The dim that is folded with the rows, before them or behind them."""
    return entry[0] if entry[-1] == ROW else entry[1]


def _of_candidates(value: Form, axis: int) -> bool:
    """Whether most places depend on the candidate: to compute all of them may be more than to compute the chosen."""
    if len(value.layout[axis]) == 1:
        return value.rate.per_candidate
    return bool(sequences.per_candidate(value, _places(value.layout[axis])).mean() > 0.5)


def _columns(value: Form) -> np.ndarray:
    """Of `[rows, columns]`, some of which are the candidate's, those that are not."""
    own = value.layout[-1]
    if len(value.layout) != 2 or len(own) != 1 or value.varies(own[0]) or not value.arithmetic:
        return np.zeros(0, dtype=bool)
    found: np.ndarray = ~sequences.per_candidate(value, own[0])
    return found


# -- f(x[m])


def by_law(originals: OriginalOperators, law: ByLaw, node: fx.Node, args: Any, kwargs: Any) -> tuple[Value, Outcome]:
    """What a law makes of an operator; of rows that one mask chooses, what it makes of all, chosen by that mask."""
    mask = _common(originals, node, args, kwargs)
    if mask is None or any(isinstance(v, Chosen) and _of_candidates(v.value, v.axis) for v in tensors_in(args)):
        layer = mask is not None and node.target in LAYERS and isinstance(args[0], Chosen) and args[0].axis == 0
        return _layer(originals, node.target, *args) if layer and _is_matrix(args[1]) else law(node, args, kwargs)
    own = originals.memo.chosen[mask.node.index]
    fakes = flat(node.meta["val"])
    axes = [-1 if fake is None else _axis(originals, fake, own) for fake in fakes]
    if None not in axes:
        try:
            with _as_all(originals, own, mask.count):
                value, outcome = law(node, *(_all_rows(originals, node, given, own, mask) for given in (args, kwargs)))
        except Decline:  # of the operator as it is, which is not meant
            value, outcome = None, Outcome()
        results = list(zip(flat(value), axes, strict=True)) if outcome.law else []
        if results and all(v is None or _fits(v, axis, mask) for v, axis in results):
            chosen = [v if v is None else _chosen(originals, v, axis, mask) for v, axis in results]
            return (chosen if isinstance(value, list) else chosen[0]), outcome
    originals.remark, originals.conditions = "", []
    return law(node, args, kwargs)


def _is_matrix(weight: Value) -> bool:
    return isinstance(weight, Form) and len(weight.layout) == 2 and all(len(entry) == 1 for entry in weight.layout)


def _layer(originals: OriginalOperators, op: Any, x: Chosen, weight: Form, *bias: Form | None) -> tuple[Value, Outcome]:
    """`(W [c; k] + b)[m]`, of which the candidate's columns are multiplied where they are chosen."""
    b, of_request = originals.b, _columns(x.value)
    own, across, along = x.value.layout[-1][0], weight.dim(LAYERS[op]), weight.dim(1 - LAYERS[op])

    def part(columns: np.ndarray) -> tuple[Form, Form]:
        places = np.flatnonzero(columns)
        return moves.take_dim(b, x.value, own, places), moves.take_dim(b, weight, across, places)

    whole = originals.operate(op, (*part(of_request), *filter(None, bias)), {})
    rows, matrix = part(~of_request)
    moving = _chosen(originals, rows, 0, x.mask).tensor.node
    work = x.mask.count * rows.sizes[own] * weight.sizes[along]
    args = moving, originals.present(matrix, Rate.WEIGHT)
    made = b.call(op, args, Rate.PAIR, (), whole.dtype, multiply_adds=work, rows_first=False)
    made = b.call(
        aten.add.Tensor, (made, _chosen(originals, whole, 0, x.mask).tensor.node), Rate.PAIR, (), whole.dtype,
        rows_first=False,
    )  # fmt: skip
    reason = "a mask chooses its rows"
    return Opaque(made, whole.dtype, by_data=True), Outcome(reason=reason, law="rows chosen by a mask", rule="_layer")


def _common(originals: OriginalOperators, node: fx.Node, args: Any, kwargs: Any) -> Mask | None:
    """The mask that chooses the rows of all operands which have any; None where there is no such operand or mask."""
    operands = tensors_in((args, kwargs))
    masks = [v.mask for v in operands if isinstance(v, Chosen)]
    if not masks or draws(node) or not all(m.same(masks[0]) for m in masks) or _refuses(node, operands):
        return None
    others = [v for v in operands if not isinstance(v, Chosen)]
    return masks[0] if all(isinstance(v, Form) and v.of_weights and not v.has_rows for v in others) else None


def _refuses(node: fx.Node, operands: list[Value]) -> bool:
    """Whether it may raise for some numbers that are no ids."""
    name = operator_name(node)
    whole = not any(v.dtype.is_floating_point for v in operands)
    return name in OF_SOME or "linalg" in name or (whole and name in DIVISIONS)


def _axis(originals: OriginalOperators, fake: torch.Tensor, own: set[sympy.Symbol]) -> int | None:
    """The one axis of a result that is as long as what is chosen."""
    found = [axis for axis, size in enumerate(fake.shape) if originals.size(size) in own]
    return found[0] if len(found) == 1 else None


@contextmanager
def _as_all(originals: OriginalOperators, own: set[sympy.Symbol], count: int) -> Iterator[None]:
    """While as many rows are chosen as there are."""
    symbols = originals.memo.symbols
    symbols.update(dict.fromkeys(own, originals.program.rows * count))
    try:
        yield
    finally:
        for symbol in own:
            del symbols[symbol]


def _all_rows(originals: OriginalOperators, node: fx.Node, given: Any, own: set[sympy.Symbol], mask: Mask) -> Any:
    """Arguments with all rows in place of chosen ones, and as many as there are; ids that are not chosen are 0."""
    sizes = dict.fromkeys(own, originals.program.rows * mask.count)
    given = mapped(given, sympy.Expr, lambda expr: expr.xreplace(sizes))
    return mapped(given, Chosen, partial(_shown, originals, operator_name(node) in BY_IDS))


def _shown(originals: OriginalOperators, by_ids: bool, chosen: Chosen) -> Form:
    value = chosen.value
    if not by_ids or value.dtype not in (torch.int64, torch.int32):
        return value
    return where(originals, chosen.mask.form, chosen.axis, value, 0)


def where(originals: OriginalOperators, mask: Form, axis: int, value: Form, other: Value) -> Form:
    """`value` where the mask is true that lies on its `axis` and following ones, else `other`."""
    behind = len(value.layout) - axis - len(mask.layout)
    mask = moves.with_axes(mask, range(len(mask.layout), len(mask.layout) + behind))
    op = aten.where.self if isinstance(other, Form) else aten.where.ScalarOther
    return pointwise.elementwise(originals, op, (mask, value, other), {}, value.dtype)


def _fits(value: Value, axis: int | None, mask: Mask) -> bool:
    """Whether a result has a mask's places on an axis, most of them not the candidate's, and no other rows."""
    if not isinstance(value, Form) or axis is None or any(ROW in e for i, e in enumerate(value.layout) if i != axis):
        return False
    if value.extents[axis] != (mask.count, True) or len(value.layout[axis]) > 2:
        return False
    return not _of_candidates(value, axis)


def _chosen(originals: OriginalOperators, value: Form, axis: Any, mask: Mask) -> Chosen:
    def made() -> Opaque:
        b = originals.b
        own = _as_written(originals, value, axis, mask), _as_written(originals, mask.form, 0, mask)
        rows, chosen = (originals.present(form, Rate.PAIR) for form in own)
        args = (rows, [*[None] * axis, chosen])
        return Opaque(
            b.call(aten.index.Tensor, args, Rate.PAIR, (), value.dtype, rows_first=False), value.dtype, by_data=True
        )

    return Chosen(value, axis, mask, made, partial(put, originals))


# -- z[m] = f(x[m])


def put(originals: OriginalOperators, given: Chosen, target: Form, mask: Form) -> Form:
    """`target` with rows in place of those that a mask chooses; declines where another one has chosen them.

    The mask may be that of rows, or the same along all axes behind: elements are put in their order.
    """
    behind, value = len(given.value.layout) - 1, given.value
    if len(mask.layout) == len(target.layout) and behind:
        mask = _of_rows(originals, mask, behind)
    if given.axis or not mask_of(originals, mask).same(given.mask):
        raise Decline(f"puts rows where a mask of {mask.axes} is true which another one has chosen")
    shape = [*mask.extents, *value.extents[1:]]
    value = folds.to_shape(originals.b, _as_written(originals, value, 0, given.mask), shape)
    return where(originals, mask, 0, value, target)


def added(originals: OriginalOperators, given: Chosen, target: Form, mask: Form, axis: int) -> Form:
    """`target` and rows that a mask `[tokens, K]` or `[K, tokens]` chooses, added where they are along its `axis`;
    declines where another one has chosen them.
    """
    b, other = originals.b, 1 - axis
    if len(mask.layout) != 2 or len(mask.layout[other]) != 1 or mask.layout[other] == (ROW,):
        raise Decline(f"adds rows along an axis of {mask.axes}")
    if mask.dtype != torch.bool:
        mask = pointwise.elementwise(originals, aten.ne.Scalar, (mask, 0), {}, torch.bool)
    if given.axis or not mask_of(originals, mask).same(given.mask):
        raise Decline(f"adds rows where a mask of {mask.axes} is true which another one has chosen")
    if mask.sizes[mask.dim(other)] > PLACES:
        raise Decline(f"adds rows of more than {PLACES} places")
    shape = [*mask.extents, *given.value.extents[1:]]
    value = folds.to_shape(b, _as_written(originals, given.value, 0, given.mask), shape)

    def at(form: Form, place: int) -> Form:
        dim = form.dim(other)
        return moves.drop_dim(b, moves.take_dim(b, form, dim, np.array([place])), dim)

    for place in range(mask.sizes[mask.dim(other)]):
        own = where(originals, at(mask, place), 0, at(value, place), 0)
        target = pointwise.elementwise(originals, aten.add.Tensor, (target, own), {}, target.dtype)
    return target


def _of_rows(originals: OriginalOperators, mask: Form, behind: int) -> Form:
    """A mask without its last axes, along which it is the same; declines where it is not."""
    mask = moves.ordered(originals.settled(originals.tidy(mask)))
    for _ in range(behind):
        dim = mask.dim(-1)
        if any(label in b.factor.labels for b in mask.blocks.values() for label in b.labels[dim] if label.size > 1):
            raise Decline(f"puts elements of rows where a mask of {mask.axes} is true")
        mask = moves.drop_dim(originals.b, moves.take_dim(originals.b, mask, dim, np.zeros(1, dtype=np.int64)), dim)
    return mask
