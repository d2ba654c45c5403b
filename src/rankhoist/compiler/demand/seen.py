"""What a value at the place of a target is made of, where the target stands behind its history.

Symbols stand in the boxes of values: along one axis of a value are its rows, along another may be the one PLACE that is
computed, and along a third KEYS, those of the history and behind them that of the target. What an operator makes of
them is what it makes of any interval (`laws`), if it treats places alike. Attention does as well, if no query sees a
later key, and if what is the history's own at the place of the target is hidden.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.operators import draws, named_arguments
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Axis, Box, Part, Size
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.later import FULL, SOFTMAX, Later, number_of
from rankhoist.compiler.demand.laws import part_of
from rankhoist.compiler.demand.made import Made, Take, aligned, arguments, is_tensor, sizes_of
from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.products import einsum_axes
from rankhoist.compiler.rules.law import overloads

aten = torch.ops.aten
ROWS, PLACE, KEYS = (sympy.Symbol(name, integer=True, nonnegative=True) for name in ("row", "place", "key"))
HIDDEN, SHOWN = "hidden", "shown"  # a value but for the history's own at the place; the keys that a place sees
ABOVE = "above"  # scores whose highest have to lie above a number


def marked(symbol: sympy.Symbol, size: Size) -> Axis:
    """An axis that a symbol stands for: as long as the rows, one place, or one key more than there are."""
    longer = {ROWS: size, PLACE: 1, KEYS: size + 1}[symbol]
    return (Part(size, symbol, symbol + longer),)


def mark_of(part: Part) -> sympy.Symbol | None:
    """The symbol that stands for a part of an axis."""
    return part.first if part.first in (ROWS, PLACE, KEYS) and (part,) == marked(part.first, part.size) else None


def axes_of(box: Box) -> dict[sympy.Symbol, int]:
    """Symbol -> the axis of a box that it stands in, counted from the last."""
    return {mark_of(p): i - len(box) for i, axis in enumerate(box) for p in axis if mark_of(p) is not None}


def only_marked(box: Box) -> Box:
    """A box that is cut by symbols alone."""
    return tuple(tuple(p if p.end is None or mark_of(p) is not None else Part(p.size) for p in axis) for axis in box)


def turned(box: Box, before: sympy.Symbol, after: sympy.Symbol | None) -> Box:
    """A box with a symbol in place of another, or with all of its axis."""
    return tuple(
        tuple((marked(after, p.size)[0] if after else Part(p.size)) if mark_of(p) is before else p for p in axis)
        for axis in box
    )


class Seen:
    """The laws. `put` are the values that depend on what is put in."""

    def __init__(self, constants: Constants, later: Later, put: Collection[fx.Node]) -> None:
        self.constants, self.later, self.put = constants, later, put

    def way(self, node: fx.Node, box: Box) -> Made | Take:
        """How a box of a result is made of boxes of operands; it declines where that is not known."""
        law = LAWS.get(node.target)
        made: Made | Take | None = law(self, node, box) if law else None
        if made is None and _treats_places_alike(node, box):
            made = part_of(node, box, self.constants)
        if made is None:
            raise Decline(f"{node.name} has no law for a place that is known by data")
        return made

    def attention(self, node: fx.Node, box: Box) -> Made:
        """The queries at the place, all keys before it and that of the target."""
        q, k, v, mask, dropout, causal = arguments(node)
        *batch, queries, columns = box
        count = sizes_of(k)[-2]
        if queries != marked(PLACE, sizes_of(q)[-2]) or KEYS in axes_of(box) or not boxes.is_whole(columns) or dropout:
            raise Decline(f"{node.name} computes more than a query of each place")
        if node.kwargs.get("enable_gqa") and not boxes.all_of(tuple(batch[1:])):
            raise Decline(f"heads of {node.name} are apart")
        own: Axis = marked(KEYS, count) if k in self.put or v in self.put else (Part(count),)
        takes = []
        for x, places in ((q, queries), (k, own), (v, own)):
            *heads, _, width = boxes.whole(sizes_of(x))
            heads = [batch[0], *heads[1:]] if node.kwargs.get("enable_gqa") else batch  # fewer heads of keys
            takes.append(Take(x, aligned(x, (*heads, places, width))))
        if own == (Part(count),) and not causal:  # of another sequence, all of which is the request's
            mask = Take(mask, aligned(mask, (*batch, queries, own))) if is_tensor(mask) else mask
        else:
            mask = self._mask(mask, causal, (*batch, queries, marked(KEYS, count)))
        return Made(node.target, (*takes, mask, 0.0, False), node.kwargs)

    def _mask(self, mask: Any, causal: bool, box: Box) -> Made:
        if not is_tensor(mask):
            if not causal:
                raise Decline("queries of the history see the target")
            return Made(SHOWN, (box,))
        true = mask.meta["val"].dtype == torch.bool
        self._hides(mask, 0 if true else -math.inf, -2, -1)
        return Made(HIDDEN, (Take(mask, aligned(mask, box)), box, False if true else -math.inf))

    def _hides(self, node: fx.Node, number: float, queries: int, keys: int) -> None:
        if len(sizes_of(node)) < 2 or self.later.number(node, queries, keys) != number:
            raise Decline(f"a query of the history may see the target in {node.name}")

    def softmax(self, node: fx.Node, box: Box) -> Made | None:
        """Over keys."""
        x, *others = arguments(node)
        axes, dim = axes_of(box), named_arguments(node)["dim"] % len(box) - len(box)
        if axes.get(KEYS) != dim or PLACE not in axes:
            return None
        number = self.later.number(x, axes[PLACE], dim)
        if number is None or number > self.later.least:
            raise Decline(f"a query of the history may see the target in {x.name}")
        scores = Made(HIDDEN, (Take(x, box), box, -math.inf))
        if number > -math.inf:
            scores = Made(ABOVE, (scores, box, number))
        return Made(node.target, (scores, *others), node.kwargs)

    def filled(self, node: fx.Node, box: Box) -> Made | None:
        """One number everywhere, in a tensor like another."""
        number, value = number_of(node), node.meta["val"]
        kwargs = {"dtype": value.dtype, "device": value.device}
        sizes = [boxes.width(axis) for axis in box]
        return None if number is None else Made(aten.full.default, (sizes, number), kwargs)

    def product(self, node: fx.Node, box: Box) -> Made | None:
        """Weights of keys by what is of keys, of which there is none behind the place; others treat places alike."""
        x, y = arguments(node)
        axes = axes_of(box)
        if y not in self.put or len(sizes_of(y)) < 2 or KEYS in axes or axes.get(PLACE) != -2:
            return None
        *batch, row, column = box
        keys = marked(KEYS, sizes_of(x)[-1])
        self._hides(x, 0, -2, -1)
        takes = [Take(t, aligned(t, (*batch, *ends))) for t, ends in ((x, (row, keys)), (y, (keys, column)))]
        return Made(node.target, takes, node.kwargs)

    def einsum(self, node: fx.Node, box: Box) -> Made:
        """A product by names: what is summed over may be keys."""
        equation, operands, *path = arguments(node)
        axes, result = einsum_axes(equation, [len(sizes_of(x)) for x in operands])
        read = dict(zip(result, box, strict=True))
        place = next((n for n in result if read[n] == marked(PLACE, read[n][0].size)), None)
        if any(x in self.put and not {place, *_keys_of(read)} & {*own} for x, own in zip(operands, axes, strict=True)):
            read |= self._summed_keys(operands, axes, place, {*result})
        takes = [
            Take(
                x,
                tuple(
                    read[n] if n in read and size != 1 else (Part(size),) for n, size in zip(own, sizes, strict=True)
                ),
            )
            for x, own, sizes in zip(operands, axes, map(sizes_of, operands), strict=True)
        ]
        return Made(node.target, (equation, takes, *path), node.kwargs)

    def _summed_keys(
        self, operands: Sequence[fx.Node], axes: Sequence[Sequence[str]], place: str | None, kept: Collection[str]
    ) -> dict[str, Axis]:
        """The name that is summed over, of weights that are 0 behind the place."""
        for x, own in zip(operands, axes, strict=True):
            for name in {*own} - {*kept} if place in own else ():
                queries, keys = own.index(place), own.index(name)
                if self.later.number(x, queries, keys) == 0:
                    return {name: marked(KEYS, sizes_of(x)[keys])}
        raise Decline("a query of the history may see the target in a product")


def _keys_of(read: Mapping[str, Axis]) -> list[str]:
    return [n for n, axis in read.items() if KEYS in axes_of((axis,))]


def _treats_places_alike(node: fx.Node, box: Box) -> bool:
    if node.op != "call_function" or draws(node):
        return False
    if node.target is operator.getitem:
        return node.args[0].target in SPLITS  # type: ignore[union-attr]
    if node.target in ALONG and axes_of((box[named_arguments(node)["dim"]],)):
        return False
    pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or node.target in ALIKE


LAWS: Mapping[Any, Callable[[Seen, fx.Node, Box], Made | None]] = {
    aten.scaled_dot_product_attention.default: Seen.attention,
    **dict.fromkeys(SOFTMAX, Seen.softmax),
    **dict.fromkeys(FULL, Seen.filled),
    **dict.fromkeys(overloads("matmul bmm"), Seen.product),
    aten.einsum.default: Seen.einsum,
}
UNTAGGED = {*overloads("__or__.Tensor __and__.Tensor where.ScalarOther where.ScalarSelf")}  # elementwise all the same
ALIKE = UNTAGGED | {
    *overloads("clone contiguous alias detach _to_copy to.dtype dropout"),
    *overloads("view.default reshape _unsafe_view flatten unflatten permute transpose.int t unsqueeze squeeze expand"),
    *overloads("select.int slice.Tensor cat stack embedding linear matmul bmm mm addmm baddbmm layer_norm rms_norm"),
    *overloads("softmax.int _softmax sum.dim_IntList mean.dim amax amin linalg_vector_norm prelu"),
}
SPLITS = {*overloads("split split_with_sizes chunk unbind.int")}
ALONG = {*overloads("slice.Tensor cat stack")}  # places along these are moved
BROADCASTS = UNTAGGED | {*overloads("scaled_dot_product_attention matmul baddbmm expand")}
