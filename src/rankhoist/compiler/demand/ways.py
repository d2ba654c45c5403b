"""Of several ways to compute, of which a request chooses one, that one is computed.

Law: `where(c, f(x; V), f(x; W)) = f(x; where(c, V, W))`, row by row. A model of several domains computes the towers of
all of them for every row, and keeps one by the domain of the request: `out = where((domain == d)[:, None], y_d, out)`.
Here weights are chosen, once per request, and one tower is left. A last way that is none (zeros, for a domain that
there is not) is chosen behind the others.

Ways are alike as far back as they have the same operators, which treat every row by itself, and other weights; what is
before them is theirs together, or chosen itself. Whoever else reads a way needs it, so there ways end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from torch import fx

from rankhoist.capture import Program
from rankhoist.compiler.demand.made import is_tensor, rates_of, sizes_of, valued
from rankhoist.compiler.demand.masked import ALONG, PUTS, AllRows, computes_rows, put_back, uncount
from rankhoist.compiler.demand.selected import of_own_place
from rankhoist.compiler.demand.summed import choices

aten = torch.ops.aten
Ways = Sequence[Any]  # nodes, or what stands in one place of them


def chosen(program: Program) -> Program:
    """The same program, in which requests choose weights where they chose results; itself where they choose none."""
    if program.training or not any(n.target in CHOICES for n in program.graph.nodes):
        return program
    without: set[str] = set()
    while True:
        made, left = _Chooser(program, without).written()
        if not left:
            return made
        without |= left


class _Chooser:
    """Writes in a copy of the graph."""

    def __init__(self, program: Program, without: Collection[str]) -> None:
        self.program, self.graph = program, fx.Graph()
        places: dict[fx.Node, fx.Node] = {}
        self.graph.graph_copy(program.graph, places)  # all but its output
        self.outputs = [places[x] if isinstance(x, fx.Node) else x for x in program.outputs]
        self.graph.output(tuple(self.outputs))
        self.rates = rates_of(program, self.graph)
        self.flags: list[fx.Node] = []  # of the ways that are being chosen from, [rows], one less than there are ways
        self.products = 0
        self.names: dict[fx.Node, str] = {}  # what stands for operators as captured
        self.source: fx.Node
        self.spelled: dict[fx.Node, str] = {}  # what is written for other words for a choice, which is to be one
        for written in (self._by_mask, self._by_place, self._by_sum):
            for node in list(self.graph.nodes):
                if self.names.get(node, node.name) not in without:
                    self.source = node
                    written(node)
            self.graph.eliminate_dead_code()

    def _by_mask(self, node: fx.Node) -> None:
        """A choice where rows that a request's mask chooses are put back, or added to what is there."""
        found = put_back(node)
        if found is None or self.rates[found.mask] > 1:
            return
        rows = AllRows(found.mask, lambda x: self.rates[x] == 0)
        if not rows.holds(found.rows):
            return
        with self.graph.inserting_before(node):
            way, z = rows.write(found.rows, self._instead), found.target
            flag = self._behind(self._squeezed(found.mask), len(sizes_of(z)) - 1)
            if found.added:
                way = self._instead(node, aten.where.ScalarOther, flag, way, 0.0)
                made = self._instead(node, aten.add.Tensor, z, way)
            else:
                made = self._instead(node, aten.where.self, flag, way, z)
        for chosen in [*rows.counted, *([found.read] if found.read else [])]:
            uncount(self.graph, chosen)
        self._replaced(node, made, [way if found.added else made, *rows.made.values()])

    def _by_place(self, node: fx.Node) -> None:
        """A choice where one of several results is read at the request's place. That it is one, a lookup asks."""
        found = of_own_place(node, self.program.rows)
        if found is None or self.rates[found.place] > 1:
            return
        ways, place, own = found.ways, found.place, len(sizes_of(node)) - 1 - found.kept
        with self.graph.inserting_before(node):
            made, *others = (
                self._instead(node, aten.squeeze.dim, way, 1) if len(sizes_of(way)) > own + 1 else way for way in ways
            )
            places = self._call(aten.arange.default, len(ways), device=node.meta["val"].device)
            if found.signed:
                place = self._call(aten.index.Tensor, places, [place])
            else:  # as tables, which count none from the end
                places = self._call(aten.unsqueeze.default, places, 1)
                place = self._call(aten.embedding.default, places, self._squeezed(place))
                place = self._call(aten.squeeze.dim, place, 1)
            written = []
            for i, way in enumerate(others, 1):
                flag = self._behind(self._call(aten.eq.Scalar, place, i), own)
                made = self._instead(node, aten.where.self, flag, way, made)
                written.append(made)
            if found.kept:
                made = self._call(aten.unsqueeze.default, made, 1)
        self._replaced(node, made, written)

    def _by_sum(self, node: fx.Node) -> None:
        """A choice where results that a request's flags weigh are added up."""
        chains, others = choices(node, self.program.rows)
        written = []
        if any(self.rates[chain[0].value] > 1 for chain in chains):
            return
        with self.graph.inserting_before(node):
            for chain in chains:
                own = len(sizes_of(node)) - 1
                flags = [self._call(aten.eq.Scalar, self._squeezed(x.value), x.number) for x in chain]
                made = chain[-1].way
                for x, flag in zip(chain[:-1], flags, strict=False):
                    made = self._instead(node, aten.where.self, self._behind(flag, own), x.way, made)
                    written.append(made)
                some = reduce(partial(self._call, aten.logical_or.default), flags)
                others.append(self._instead(node, aten.where.ScalarOther, self._behind(some, own), made, 0.0))
            if chains:
                made = reduce(partial(self._instead, node, aten.add.Tensor), others)
                self._replaced(node, made, written)

    def _replaced(self, node: fx.Node, made: fx.Node, written: Sequence[fx.Node]) -> None:
        self.spelled.update(dict.fromkeys(written, node.name))
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)

    def _behind(self, flag: fx.Node, axes: int) -> fx.Node:
        for _ in range(axes):
            flag = self._call(aten.unsqueeze.default, flag, -1)
        return flag

    def _instead(self, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operator that stands for a captured one."""
        self.source = node
        made = self._call(target, *args, **kwargs)
        self.names[made] = node.name
        return made

    def written(self) -> tuple[Program, set[str]]:
        """Also what was no choice of weights, which stays in its author's words."""
        found = 0
        for node in reversed(list(self.graph.nodes)):
            if node.target is aten.where.self and not _is_way(node):
                found += self._choice(node)
        last = next(iter(self.graph.find_nodes(op="output")))
        outputs = list(last.args[0])
        self.graph.eliminate_dead_code()
        left = {self.spelled[n] for n in self.graph.nodes if n in self.spelled}
        if not found or left:
            return self.program, left
        for made, name in self.names.items():
            made.name = name
        return replace(self.program, graph=self.graph, outputs=outputs, wider=self.program), left

    def _choice(self, node: Any) -> bool:
        """Whether weights are chosen in the place of this choice and of those that are its last way."""
        flags, ways, last = [], [], node
        while last.target is aten.where.self and (last is node or len(last.users) == 1):
            flag = self._flag(last)
            if flag is None:
                break
            flags.append((flag, last.args[0]))
            ways.append(last.args[1])
            last = last.args[2]
        if not flags or not all(is_tensor(w) and sizes_of(w) == sizes_of(node) for w in [*ways, last]):
            return False
        self.source, before = node, self.products
        with self.graph.inserting_before(node):
            alone = not _alike([*ways, last])
            if alone and len(ways) < 2:
                return False
            self.flags = [self._squeezed(flag) for flag, _ in flags[: len(flags) - alone]]
            made = self._merged(ways if alone else [*ways, last])
            if self.products == before:
                return False
            if alone:
                some = flags[0][1]
                for _, flag in flags[1:]:
                    some = self._call(aten.logical_or.default, some, flag)
                made = self._call(aten.where.self, some, made, last)
        node.replace_all_uses_with(made)
        self.names.setdefault(made, self.names.get(node, node.name))
        return True

    def _flag(self, node: Any) -> fx.Node | None:
        """What chooses, if it is one flag of a request, `[rows, 1, ..., 1]`."""
        flag: Any = node.args[0]
        while flag.target is aten.expand.default:
            flag = flag.args[0]
        sizes = sizes_of(flag)
        rows = len(sizes) == len(sizes_of(node)) and sizes[0] == self.program.rows and set(sizes[1:]) <= {1}
        return flag if rows and self.rates[flag] < 2 else None

    def _squeezed(self, flag: fx.Node) -> fx.Node:
        for _ in sizes_of(flag)[1:]:
            flag = self._call(aten.squeeze.dim, flag, 1)
        return flag

    # -- ways become one

    def _merged(self, ways: Ways) -> fx.Node:
        """Tensors of all rows."""
        first: fx.Node = ways[0]
        if all(way is first for way in ways):
            return first
        if not _alike(ways):
            return self._where(ways, len(sizes_of(first)) - 1)
        made = LAWS.get(first.target, _Chooser._elementwise)(self, ways)
        self.names[made] = self.names.get(first, first.name)
        return made

    def _elementwise(self, ways: Ways) -> fx.Node:
        dims = len(sizes_of(ways[0]))
        args = [self._operand(xs, dims) for xs in zip(*(way.args for way in ways), strict=True)]
        return self._call(ways[0].target, *args, **ways[0].kwargs)

    def _operand(self, ways: Ways, dims: int) -> Any:
        """What stands in one place of alike operators: tensors that broadcast to so many axes, or the same number."""
        if all(way is ways[0] for way in ways) or not is_tensor(ways[0]):
            return ways[0]
        if self.rates.get(ways[0]) != 0:
            return self._merged(ways)
        return self._own(ways, dims - 1)

    def _own(self, ways: Ways, dims: int) -> fx.Node:
        """Weights of every row, `[rows, ...]`, each with so many axes; what is too many is one row for all."""
        own = len(sizes_of(ways[0]))
        made = self._where(ways, own)
        for _ in range(own, dims):
            made = self._call(aten.unsqueeze.default, made, 1)
        return made if own <= dims else self._call(aten.squeeze.dim, made, 1)

    def _where(self, ways: Ways, own: int) -> fx.Node:
        """What the flags choose of tensors with so many axes of a row's own."""
        *others, last = ways
        made: fx.Node = last
        for flag, way in zip(reversed(self.flags), reversed(others), strict=True):
            made = self._call(aten.where.self, self._behind(flag, own), way, made)
        return made

    def _linear(self, ways: Ways) -> fx.Node:
        """`[rows, K]` by `[H, K]`, and a bias."""
        self.products += 1
        given = [[*way.args, None][:3] for way in ways]
        xs, weights, biases = zip(*given, strict=True)
        x = self._call(aten.unsqueeze.default, self._merged(xs), 1)
        weight = self._call(aten.transpose.int, self._own(weights, 2), 1, 2)
        made = self._call(aten.squeeze.dim, self._call(aten.bmm.default, x, weight), 1)
        return made if biases[0] is None else self._call(aten.add.Tensor, made, self._own(biases, 1))

    def _layer_norm(self, ways: Ways) -> fx.Node:
        xs, sizes, weights, biases, *rest = zip(*(way.args for way in ways), strict=True)
        made = self._call(aten.layer_norm.default, self._merged(xs), sizes[0], None, None, *(r[0] for r in rest))
        return self._scaled(made, weights, biases)

    def _batch_norm(self, ways: Ways) -> fx.Node:
        """`(x - m) / sqrt(v + eps)` of `[rows, H]`, scaled and shifted."""
        xs, weights, biases, means, variances, _, eps = zip(*(way.args[0].args for way in ways), strict=True)
        made = self._call(aten.sub.Tensor, self._merged(xs), self._own(means, 1))
        scale = self._call(aten.rsqrt.default, self._call(aten.add.Scalar, self._own(variances, 1), eps[0]))
        return self._scaled(self._call(aten.mul.Tensor, made, scale), weights, biases)

    def _prelu(self, ways: Ways) -> fx.Node:
        """`x` where it is positive, a share of it elsewhere."""
        xs, shares = zip(*(way.args for way in ways), strict=True)
        x = self._merged(xs)
        less = self._call(aten.mul.Tensor, x, self._own(shares, 1))
        return self._call(aten.where.self, self._call(aten.gt.Scalar, x, 0), x, less)

    def _along(self, ways: Ways) -> fx.Node:
        xs, *place = zip(*(way.args for way in ways), strict=True)
        return self._call(ways[0].target, self._merged(xs), *(p[0] for p in place))

    def _scaled(self, made: fx.Node, weights: Ways, biases: Ways) -> fx.Node:
        for target, ways in ((aten.mul.Tensor, weights), (aten.add.Tensor, biases)):
            if ways[0] is not None:
                made = self._call(target, made, self._own(ways, 1))
        return made

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """An operator of ours, with what a report says of the choice's."""
        made = valued(self.graph.call_function(target, args, kwargs), self.source)
        self.rates[made] = max((self.rates[x] for x in made.all_input_nodes), default=0)
        return made


CHOICES = {  # and other words for one: what none has is not copied
    aten.where.self, *PUTS, aten.index.Tensor, aten.gather.default,
    aten.eq.Scalar, aten.ne.Scalar, aten.one_hot.default,
}  # fmt: skip
LAWS: dict[Any, Callable[[_Chooser, Ways], fx.Node]] = {
    aten.linear.default: _Chooser._linear,
    aten.layer_norm.default: _Chooser._layer_norm,
    aten.prelu.default: _Chooser._prelu,
    operator.getitem: _Chooser._batch_norm,
    **dict.fromkeys(ALONG, _Chooser._along),
}


def _is_way(node: Any) -> bool:
    """Whether it is the last way of another choice alone."""
    users = list(node.users)
    return len(users) == 1 and users[0].target is aten.where.self and users[0].args[2] is node


def _alike(ways: Ways) -> bool:
    """Whether they are one operator that has a law here, of tensors of the same sizes, and nobody else reads them."""
    return all(_as(way, ways[0]) for way in ways) and len({*ways}) == len(ways)


def _as(way: Any, first: Any) -> bool:
    if not (
        computes_rows(way) and way.target is first.target and len(way.users) == 1 and sizes_of(way) == sizes_of(first)
    ):
        return False
    if way.target is operator.getitem:
        way, first = way.args[0], first.args[0]
        if len(way.users) > 1:
            return False
    same = len(way.args) == len(first.args) and way.kwargs == first.kwargs
    return same and all(_operand_as(x, y) for x, y in zip(way.args, first.args, strict=True))


def _operand_as(x: Any, y: Any) -> bool:
    if is_tensor(x) and is_tensor(y):
        return sizes_of(x) == sizes_of(y) and x.meta["val"].dtype == y.meta["val"].dtype
    return not isinstance(x, fx.Node) and not isinstance(y, fx.Node) and bool(x == y)
