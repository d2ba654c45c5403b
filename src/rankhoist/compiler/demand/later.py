"""What a value is for keys behind a query, whatever the inputs are: what a causal mask hides.

Law: `true | x = true`, `-inf + x = -inf`, `softmax(-inf) = 0` and so on, element by element, as of the masks of forms
(`algebra/known`); here of captured values, over one row.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import draws
from rankhoist.compiler.algebra import known
from rankhoist.compiler.algebra.known import NEITHER, Known
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import is_tensor, sizes_of
from rankhoist.compiler.rules.law import overloads

aten = torch.ops.aten
VIEWS = {*overloads("view.default _unsafe_view reshape")}
MOVES = VIEWS | {
    *overloads("flatten permute transpose.int t unsqueeze squeeze.dim squeeze.dims"),
    *overloads(
        "expand select.int slice.Tensor clone contiguous alias detach dropout repeat repeat_interleave.self_int"
    ),
}
FULL = {*overloads("zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full")}
ADDED = {aten.baddbmm.default}
SOFTMAX = {*overloads("softmax.int _softmax")}


class Later:
    """Looks into the captured values of a program. Of scores that are not above `least` the softmax is 0; where these
    are finite, on a condition, as of `algebra/fills`: it has to hold of all that are `supposed`.
    """

    def __init__(self, rows: sympy.Symbol, constants: Constants, least: float = -math.inf) -> None:
        self.rows, self.constants, self.least = rows, constants, least
        self.supposed: set[fx.Node] = set()
        self._found: dict[fx.Node, Known] = {}
        self._filled_with: set[fx.Node] = set()  # softmax of finite numbers that are not above `least`

    def number(self, node: fx.Node, queries: int, keys: int) -> float | None:
        """What all of its elements are where the place along axis `keys` is behind that along `queries`."""
        sizes = sizes_of(node)
        if sizes[queries] != sizes[keys] or (own := self._known(node)) is None:
            return None
        values, sure = (t.movedim((queries, keys), (-2, -1)) for t in (own.values, own.sure))
        behind = torch.ones(sure.shape[-2:], dtype=torch.bool).triu(1)
        if not bool(sure[..., behind].all()):
            return None
        numbers = values[..., behind].unique()
        if len(numbers) != 1:
            return None
        self._decides(node)
        return float(numbers)

    def _decides(self, node: fx.Node) -> None:
        """The constants that it is known by may not change."""
        waiting, seen = [node], {node}
        while waiting:
            own = waiting.pop()
            self.supposed |= {own} & self._filled_with
            if self.constants.value(own) is not None:
                self.constants.decides(own)
            elif _looks_through(own):
                waiting += [x for x in own.all_input_nodes if x not in seen]
                seen.update(waiting)

    def _known(self, node: fx.Node) -> Known | None:
        if node not in self._found:
            nothing = self._nothing(node)
            if nothing is None:
                return None
            made = self._made(node)
            self._found[node] = nothing if made is None or made.values.shape != nothing.values.shape else made
        return self._found[node]

    def _nothing(self, node: fx.Node) -> Known | None:
        """That no element is known; None of what is too large to look into."""
        shape = self._over_one_row(sizes_of(node)) if is_tensor(node) else None
        if shape is None or math.prod(shape) > known.LARGEST:
            return None
        empty = torch.zeros((), dtype=torch.bool).expand(shape)
        return Known(empty.to(node.meta["val"].dtype), empty, NEITHER)

    def _over_one_row(self, sizes: Any) -> list[int] | None:
        own = [s if isinstance(s, int) else s.subs(self.rows, 1) for s in sizes]
        return [int(s) for s in own] if all(isinstance(s, int | sympy.Integer) for s in own) else None

    def _made(self, node: fx.Node) -> Known | None:
        value = self.constants.value(node)
        if value is not None:
            return known.all_of(value)
        if not _looks_through(node):
            return None
        if node.target in (*FULL, *ADDED):
            return self._filled(node) if node.target in FULL else self._added(node)
        given = {x: self._known(x) for x in node.all_input_nodes if is_tensor(x)}
        sizes = [x for x in node.all_input_nodes if not is_tensor(x)]
        if any(x is None for x in given.values()) or any(self._size(x) is None for x in sizes):
            return None
        if node.target in MOVES:
            values, sure = (self._called(node, {x: getattr(k, name) for x, k in given.items()}) for name in PARTS)
            return Known(values, sure, next(k.infinities for k in given.values() if k))
        if node.target in SOFTMAX:
            (x,) = given.values()
            sure = x.sure & (x.values <= self.least)  # type: ignore[union-attr]
            if bool(x.values[sure].isfinite().any()):  # type: ignore[union-attr]
                self._filled_with.add(node)
            return Known(torch.zeros(sure.shape), sure, NEITHER)
        args = pytree.tree_map_only(fx.Node, lambda x: given.get(x, self._size(x)), node.args)
        return known.result(node.target, args, node.kwargs)

    def _added(self, node: fx.Node) -> Known | None:
        """`b + x y`."""
        before, product = self._known(node.args[0]), self._nothing(node)  # type: ignore[arg-type]
        scaled = {"beta", "alpha"} & {name for name, value in node.kwargs.items() if value != 1}
        return None if scaled or not before or not product else known.result(aten.add.Tensor, [before, product], {})

    def _filled(self, node: fx.Node) -> Known | None:
        sizes, value = self._over_one_row(sizes_of(node)), node.meta["val"]
        number = number_of(node)
        if sizes is None or number is None:
            return None
        return known.all_of(torch.full((), number, dtype=value.dtype).expand(sizes))

    def _called(self, node: fx.Node, given: dict[fx.Node, Any]) -> Any:
        args = pytree.tree_map_only(fx.Node, lambda x: given[x] if x in given else self._size(x), node.args)
        target: Any = aten.reshape.default if node.target in VIEWS else node.target
        return target(*args, **node.kwargs)

    def _size(self, node: fx.Node) -> int | None:
        value = node.meta.get("val")
        own = self._over_one_row([value.node.expr]) if isinstance(value, torch.SymInt) else None
        return own[0] if own else None


PARTS = ("values", "sure")


def number_of(node: Any) -> Any:
    """What one of `FULL` is filled with, or None."""
    name = str(node.target)
    number = 1 if "ones" in name else 0 if "zeros" in name else node.args[-1]
    return None if isinstance(number, fx.Node) else number


def _looks_through(node: fx.Node) -> bool:
    ours = node.target in MOVES | FULL | SOFTMAX | ADDED
    return node.op == "call_function" and not draws(node) and (ours or known.by_elements(node.target))
