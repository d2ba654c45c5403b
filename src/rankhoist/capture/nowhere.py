"""What the terms of a graph are where a mask is true nowhere, by what they are made of:

    z[m] = y  and  z.index_add(0, r, y) by its places r  are  z,   where(m, y, z)  is  z,   cat([y[m], z])  is  z

What is chosen has no elements then, and neither has what is made of it, as far as sizes say so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.immutable_collections import immutable_list
from torch.utils import _pytree as pytree

from rankhoist.capture.operators import operator_name
from rankhoist.capture.shortcuts import COMPARED, OPPOSITE, SIZES, Question
from rankhoist.capture.true_places import counted_by

aten = torch.ops.aten
COUNTED = {torch.bool, torch.int32, torch.int64, torch.float32, torch.float64}  # dtypes in which some are never none
ALONG = {"sum", "any", "count_nonzero"}  # axes that are named
COUNTS = {aten.sum.default, aten.count_nonzero.default, aten.any.default}
# Where one is true, the other is not.
CONTRARY = {"ne": "eq", "eq": "ne", "ge": "lt", "gt": "le", "le": "gt", "lt": "ge"}
COPIES = {"clone", "alias", "contiguous", "detach"}
SAME = {*COPIES, "_to_copy", "to"}  # elements are the same, perhaps in another dtype
VIEWS = {*SAME, "expand", "expand_as", "flatten", "permute", "reshape", "select", "slice", "squeeze", "t",
         "transpose", "unsqueeze", "view"}  # fmt: skip
WRITES = {"index_put", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce"}
SOME = (1, 2, 10**6)  # numbers of places; a relation that is the same of these is so of all but 0


@dataclass
class Terms:
    """Numbers of terms, of both graphs: those of the same operator and terms are one.

    Attributes:
        nowhere, everywhere: those of masks that are true nowhere, and everywhere.
        parts: of masks, axes and places on them, where they are true nowhere.

    What is known of masks is so at one question.
    """

    numbers: dict[Any, int] = field(default_factory=dict)
    nowhere: set[int] = field(default_factory=set)
    everywhere: set[int] = field(default_factory=set)
    parts: set[tuple[int, int, int]] = field(default_factory=set)

    def of(self, *key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    def forget(self) -> None:
        """What is known of masks."""
        self.nowhere, self.everywhere, self.parts = set(), set(), set()


class Numbered:
    """A graph, and the numbers of its terms."""

    def __init__(self, program: ExportedProgram, terms: Terms) -> None:
        self.terms = terms
        self._constants = {
            spec.arg.name: _content(program.constants[spec.target])
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None
        }
        self.counted_by = counted_by(program.graph)
        self._numbers: dict[fx.Node, int] = {}
        self._of: defaultdict[int, list[fx.Node]] = defaultdict(list)  # a number -> those that have it

    def name(self, node: fx.Node, number: int) -> None:
        """Give a node a number."""
        self._numbers[node] = number
        self._of[number].append(node)

    # -- what is known where there is nothing

    def learn(self, question: Question, mark: fx.Node) -> bool:
        """Which masks are true nowhere; False where it is none of them."""
        asked: Any = mark.args[1]
        known = self._says(question, asked)
        self._spread()
        return known

    def _says(self, question: Question, asked: Any) -> bool:
        if question.about is None:
            return asked is not None and self._if(asked, question.nothing)
        symbols = question.about.free_symbols
        if len(symbols) != 1 or not _says_none(lambda n: question.about.subs(*symbols, n), question.nothing):
            return False
        return self._if(asked, False) if asked is not None else self._nowhere(self.counted_by.get(*symbols))

    def _spread(self) -> None:
        """To masks that were made already of those that are known."""
        nowhere, everywhere = self.terms.nowhere, self.terms.everywhere
        todo = [*nowhere, *everywhere, *(number for number, _, _ in self.terms.parts)]
        while todo:
            for user in [user for node in self._of[todo.pop()] for user in node.users if user in self._numbers]:
                number = self._numbers[user]
                if isinstance(user.target, torch._ops.OpOverload) and number not in nowhere | everywhere:
                    self._pass_on(user, operator_name(user), number)
                    if number in nowhere | everywhere:
                        todo.append(number)

    def _if(self, node: Any, truth: bool) -> bool:
        """A number is true, or it is not."""
        name, first = operator_name(node), node.args[0]
        if node.target is aten.all.default and truth:
            return self._everywhere(first)
        if name == "logical_not" or (name in OPPOSITE and first.meta["val"].dtype == torch.bool):
            return self._if(first, not truth)
        if name in SAME and first.meta["val"].dtype == torch.bool:
            return self._if(first, truth)
        if name in COMPARED and isinstance(node.args[1], int | float):
            return _says_none(lambda n: COMPARED[name](n, node.args[1]), truth) and self._none(first)
        if name == "select":
            return not truth and self._nowhere_at(first, node.args[1] % first.meta["val"].dim(), node.args[2])
        return not truth and self._none(node)

    def _none(self, node: Any) -> bool:
        """A number of places is 0."""
        if node.meta["val"].dtype not in COUNTED:
            return False
        if operator_name(node) in SAME:
            return self._none(node.args[0])
        if node.target not in COUNTS or not set(node.args[1:]) <= {None}:
            return False
        return (node.target is not aten.sum.default or _positive(node.args[0])) and self._nowhere(node.args[0])

    def _nowhere(self, mask: Any) -> bool:
        """A mask, of booleans or numbers, is true nowhere."""
        if mask is None:
            return False
        self.terms.nowhere.add(self._numbers[mask])
        name, first = operator_name(mask), mask.args[0]
        if name in SAME and first.meta["val"].dtype == torch.bool:
            self._nowhere(first)
        if name in OPPOSITE and first.meta["val"].dtype == torch.bool:
            self._everywhere(first)
        return True

    def _nowhere_at(self, mask: Any, axis: int, place: int) -> bool:
        """A mask, of booleans or numbers, is true nowhere at one place of an axis."""
        self.terms.parts.add((self._numbers[mask], axis, place))
        if not isinstance(mask.target, torch._ops.OpOverload):
            return True
        name, first = operator_name(mask), mask.args[0]
        if name in SAME and first.meta["val"].dtype == torch.bool:
            return self._nowhere_at(first, axis, place)
        if name in COMPARED and isinstance(mask.args[1], int | float):
            none = _says_none(lambda n: COMPARED[name](n, mask.args[1]), False)
            if none and (_positive(first) or (name == "ne" and not mask.args[1])):
                return self._nowhere_at(first, axis, place)
            return not none or self._none_at(first, axis, place)
        return self._none_at(mask, axis, place)

    def _none_at(self, node: Any, axis: int, place: int) -> bool:
        """Numbers, if of places, are 0 at one place."""
        if node.meta["val"].dtype not in COUNTED or not isinstance(node.target, torch._ops.OpOverload):
            return True
        name = operator_name(node)
        if name in SAME:
            return self._none_at(node.args[0], axis, place)
        if name in ALONG and node.args[1:2] not in ((), (None,)):
            kept = _kept(node)
            if len(kept) == node.meta["val"].dim() and (name != "sum" or _positive(node.args[0])):
                return self._nowhere_at(node.args[0], kept[axis], place)
        return True

    def _everywhere(self, mask: Any) -> bool:
        name = operator_name(mask)
        if mask.meta["val"].dtype != torch.bool:
            return False
        self.terms.everywhere.add(self._numbers[mask])
        if name in OPPOSITE:
            self._nowhere(mask.args[0])
        if name in CONTRARY:
            contrary = getattr(getattr(aten, CONTRARY[name]), mask.target._overloadname)
            self.terms.nowhere.add(self.terms.of(contrary, *self._given(mask.args, mask.kwargs)))
        return True

    # -- terms

    def reads(self, nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
        """Give numbers to nodes one behind the other, as they are where there is nothing; what they are as a whole."""
        for node in nodes:
            self._numbers[node] = self._whole(node)
        whole = {node: self._numbers[node] for node in nodes}
        for node in nodes:
            self._numbers[node] = self._left(node)
        return whole

    def _given(self, *given: Any) -> Any:
        """Arguments, with numbers of terms in place of nodes, as part of a key."""
        values, spec = pytree.tree_flatten(given)
        named = [("term", self._numbers[v]) if isinstance(v, fx.Node) else (type(v), repr(v)) for v in values]
        return tuple(named), str(spec)

    def _whole(self, node: fx.Node) -> int:
        """The number of a term as it is."""
        if isinstance(size := node.meta.get("val"), torch.SymInt) and not free_unbacked_symbols(size):
            return self.terms.of("a size", str(size))  # whatever it is read of
        if node.op == "call_function":
            return self.terms.of(node.target, *self._given(node.args, node.kwargs))
        if node.op == "get_attr":  # a graph within the graph: it is not looked into
            return self.terms.of(node)
        return self.terms.of(node.op, self._constants.get(node.name, node.target))

    def _left(self, node: fx.Node) -> int:
        """The number of what a term is where there is nothing."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return self._whole(node)
        name, args = operator_name(node), tuple[Any, ...](node.args)
        if name == "cat":
            args = (immutable_list(part for part in args[0] if not self._is_nothing(part)), *args[1:])
            if len(args[0]) == 1 and _alike(args[0][0], node, self.none_of(args[0][0], node)) is not None:
                return self._numbers[args[0][0]]
        same = self._same(node, name)
        number = self.terms.of(node.target, *self._given(args, node.kwargs)) if same is None else self._numbers[same]
        self._pass_on(node, name, number)
        return number

    def _same(self, node: fx.Node, name: str) -> Any:
        """Another node that it is where there is nothing."""
        given: Any = node.args
        if name in COPIES:
            return given[0]
        if name in WRITES and any(self._is_nothing(n) for n in pytree.tree_leaves(given[1:])):
            return given[0]
        if name in ("masked_scatter", "masked_fill") and self._is_nothing(given[1]):
            return _alike(given[0], node)
        if name == "where" and len(given) == 3:
            number = self._numbers[given[0]]
            kept = 2 if number in self.terms.nowhere else 1 if number in self.terms.everywhere else 0
            return _alike(given[kept], node) if kept else None
        return None

    def _pass_on(self, node: fx.Node, name: str, number: int) -> None:
        """Masks that are made of others, and those of which it is known already, by the number of the whole term."""
        numbers = [self._numbers[n] for n in node.all_input_nodes]
        nowhere, everywhere = self.terms.nowhere, self.terms.everywhere
        for known in (nowhere, everywhere):
            if self._numbers[node] in known:
                known.add(number)
        parts = self.terms.parts
        parts |= {(number, axis, place) for own, axis, place in parts if own == self._numbers[node]}
        first = numbers[0] if numbers else -1
        if (first, *(_part(node) or ())) in parts:
            nowhere.add(number)
        if name in VIEWS or name in OPPOSITE:
            for own, other in ((nowhere, everywhere), (everywhere, nowhere)):
                if first in own:
                    (other if name in OPPOSITE else own).add(number)
        elif name in ALONG and first in nowhere:
            nowhere.add(number)
        elif name in COMPARED and first in nowhere and isinstance(node.args[1], int | float):
            (everywhere if COMPARED[name](0, node.args[1]) else nowhere).add(number)
        elif name in ("logical_and", "bitwise_and", "__and__") and nowhere & {*numbers}:
            nowhere.add(number)

    def _is_nothing(self, node: Any) -> bool:
        """A mask that is true nowhere, or a tensor without elements."""
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
            return False
        value, none = node.meta["val"], self.none_of(node)
        mask = value.dtype == torch.bool and self._numbers[node] in self.terms.nowhere
        return mask or (bool(none) and any(at(size, none) == 0 for size in value.shape))

    def none_of(self, *nodes: fx.Node) -> dict[sympy.Symbol, int]:
        """Sizes of tensors that are 0."""
        own = {s: self.counted_by[s] for node in nodes for s in symbols_of(node) if s in self.counted_by}
        return {s: 0 for s, mask in own.items() if self._numbers.get(mask, -1) in self.terms.nowhere}


def _kept(node: fx.Node) -> list[int]:
    """Axes that a reduction leaves."""
    x, dims = cast(tuple[Any, Any], node.args[:2])
    sizes = x.meta["val"].dim()
    gone = {dim % sizes for dim in (dims if isinstance(dims, list | tuple) else [dims])}
    return [d for d in range(sizes) if d not in gone]


def _part(node: fx.Node) -> tuple[int, int] | None:
    """The axis, and the only place on it, that a node takes of its operand."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    x, axis, place, *end = cast(tuple[Any, ...], node.args)
    return (axis % x.meta["val"].dim(), place) if end in ([], [place + 1], [place + 1, 1]) else None


def _positive(node: Any) -> bool:
    """Whether no element is below 0, so that a sum of 0 is one of zeros."""
    if node.meta["val"].dtype == torch.bool or operator_name(node) == "one_hot":
        return True
    return operator_name(node) in VIEWS and _positive(node.args[0])


def symbols_of(node: fx.Node) -> set[sympy.Symbol]:
    """What the sizes of a node's tensors are made of."""
    sizes = [x.shape if isinstance(x, torch.Tensor) else [x] for x in pytree.tree_leaves(node.meta.get("val"))]
    own = [size.node.expr for shape in sizes for size in shape if isinstance(size, SIZES)]
    return {symbol for expr in own for symbol in expr.free_symbols}


def at(size: Any, sizes: dict[sympy.Symbol, int], others: int | None = None) -> Any:
    """A size as a number where it is one."""
    if not isinstance(size, SIZES):
        return size
    expr = size.node.expr.subs(sizes)
    if others is not None:
        expr = expr.subs(dict.fromkeys(expr.free_symbols, others))
    return expr if expr.free_symbols else bool(expr) if isinstance(size, torch.SymBool) else int(expr)


def _alike(node: Any, other: fx.Node, sizes: dict[sympy.Symbol, int] | None = None) -> Any:
    """A node, if it has the shape and dtype of another one, where some sizes are known."""
    if not isinstance(node, fx.Node):
        return None
    one, two = node.meta["val"], other.meta["val"]
    shapes = [[at(size, sizes or {}) for size in own.shape] for own in (one, two)]
    same = len(shapes[0]) == len(shapes[1]) and all(map(_same_size, *shapes))
    return node if same and one.dtype == two.dtype else None


def _same_size(one: Any, two: Any) -> bool:
    return bool(sympy.sympify(one) == sympy.sympify(two))


def _says_none(truth: Callable[[int], Any], nothing: bool) -> bool:
    """Whether a relation of one number has an answer for 0, and another for all above."""
    return bool(truth(0)) is nothing and all(bool(truth(n)) is not nothing for n in SOME)


def _content(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return id(x)
    return x.dtype, x.shape, x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
