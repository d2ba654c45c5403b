"""Whether a model whose Python asks questions is the graph in which there is work at each, whatever the answers are.

It is exported twice: with work at every question, and with none at any. Both come to the same questions, with the same
lines and values of Python, or nothing is known. Questions cut a graph into pieces. Piece k of either graph begins with
what is there at question k, and is compared with that of the other one alone, where there is nothing of what question k
asks for (`nowhere`): both have to lead to the same values at the next question.

Then by induction, for any answers, the model has at question k the values that the busy graph has there. It has so at
the first one, for there was no question before. From there it goes on, as Python does with the same lines and values,
by the piece of the busy graph, or by that of the idle one where there is nothing; then both have the same values.

So what is there at a question gets one name in both graphs, and what is computed from it is a term of such names. (Two
values that Python may read are one in the idle graph only if they are so in the busy one, for they share memory.) Where
pieces compute the same term whatever was answered, that term is its name, as for all that no question has a say in.
What no frame names, as the first operand of `self.a(x) + self.b(x)` at questions of `b`, is given no other value by a
branch: it is that of the busy graph which is the same term at the end of its piece, if only one that is read later is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from rankhoist.capture.nowhere import Numbered, Terms, at, symbols_of
from rankhoist.capture.shortcuts import MARK, Answers


def same_whatever(busy: tuple[ExportedProgram, Answers], idle: tuple[ExportedProgram, Answers]) -> bool:
    """Whether a model computes what was exported with work everywhere, when it does what was exported without any."""
    if not _comparable(busy, idle):
        return False
    terms = Terms()
    first, second = (_Pieces(*own, terms) for own in (busy, idle))
    if not len(first.ends) == len(second.ends) == len(busy[1].asked) + 1:
        return False
    for number in range(len(first.ends)):
        terms.forget()
        if number and not (first.has_nothing(number) and second.has_nothing(number)):
            return False
        if first.through(number) != second.through(number):
            return False
        _name(first, second, number)
    return first.takes_nothing()


def _comparable(busy: tuple[ExportedProgram, Answers], idle: tuple[ExportedProgram, Answers]) -> bool:
    """Whether both ask the same, of inputs of the same sizes, return the same containers and write to nothing else."""
    questions = [[q.form for q in answers.asked] for _, answers in (busy, idle)]
    given = [[(n.name, str(n.meta["val"])) for n in p.graph.find_nodes(op="placeholder")] for p, _ in (busy, idle)]
    specs = [program.call_spec.out_spec for program, _ in (busy, idle)]
    kinds = {spec.kind for program, _ in (busy, idle) for spec in program.graph_signature.output_specs}
    return all(one == two for one, two in (questions, given, specs)) and kinds <= {OutputKind.USER_OUTPUT}


class _Pieces(Numbered):
    """A graph between questions.

    Attributes:
        ends: of every piece, the mark of the next question, or what is returned.
    """

    def __init__(self, program: ExportedProgram, answers: Answers, terms: Terms) -> None:
        super().__init__(program, terms)
        self._asked = answers.asked
        self._place = {node: place for place, node in enumerate(program.graph.nodes)}
        self.ends: list[fx.Node] = []
        self._pieces: list[list[fx.Node]] = [[]]
        for node in program.graph.nodes:
            if node.target is MARK or node.op == "output":
                self.ends.append(node)
                self._pieces.append([])
            else:
                self._pieces[-1].append(node)
        self._last = {node: max(map(self._place.__getitem__, node.users), default=-1) for node in self._place}
        self._read_later: list[fx.Node] = []
        self._whole_numbers: dict[fx.Node, int] = {}
        self._known: list[set[int]] = []  # by piece

    def has_nothing(self, number: int) -> bool:
        """At the question before a piece."""
        return self.learn(self._asked[number - 1], self.ends[number - 1])

    def through(self, number: int) -> Any:
        """Numbers of what a piece leads to, where there is nothing."""
        end, about = self.ends[number], self._asked[number].about if number < len(self._asked) else None
        self._whole_numbers = self.reads(self._pieces[number])
        symbols = about.free_symbols & self.counted_by.keys() if about is not None else ()
        counted = [self._numbers[self.counted_by[s]] for s in symbols]
        self._known.append({*self.terms.nowhere})
        return self._given(_values(end)), counted

    def there(self, number: int) -> list[fx.Node]:
        """What is there at the end of a piece, as far as it is told there."""
        return [n for n in pytree.tree_leaves(_values(self.ends[number])) if isinstance(n, fx.Node)]

    def read_later(self, number: int) -> dict[int, list[fx.Node]]:
        """What is read behind a piece, by its number."""
        end = self._place[self.ends[number]]
        self._read_later = [n for n in (*self._read_later, *self._pieces[number]) if self._last[n] > end]
        found: defaultdict[int, list[fx.Node]] = defaultdict(list)
        for node in self._read_later:
            found[self._numbers[node]].append(node)
        return found

    def whole(self, node: fx.Node) -> int:
        """Of a node in the last piece, or before it."""
        return self._whole_numbers.get(node, self._numbers[node])

    def settle(self, names: dict[fx.Node, int]) -> None:
        """At the end of a piece: what gets no name keeps the number of its whole term."""
        for node, number in {**self._whole_numbers, **names}.items():
            self.name(node, number)

    def takes_nothing(self) -> bool:
        """Whether no operator of what has no elements raises, as a maximum of nothing does."""
        users: defaultdict[sympy.Symbol, list[fx.Node]] = defaultdict(list)
        for node in self._place:
            for symbol in {s for n in (*node.all_input_nodes, node) for s in symbols_of(n)} & self.counted_by.keys():
                users[symbol].append(node)
        for nowhere in self._known:
            sizes = {s: 0 for s, mask in self.counted_by.items() if self._numbers[mask] in nowhere}
            if not all(_takes(node, sizes) for symbol in sizes for node in users[symbol]):
                return False
        return True


def _values(end: fx.Node) -> Any:
    return end.args if end.op == "output" else end.args[1:]


def _name(busy: _Pieces, idle: _Pieces, number: int) -> None:
    """Give what is there at the end of a piece the same names in both graphs."""
    names: tuple[dict[fx.Node, int], dict[fx.Node, int]] = {}, {}
    for place, (one, other) in enumerate(zip(busy.there(number), idle.there(number), strict=True)):
        if busy.whole(one) != idle.whole(other):
            name = names[0].get(one) or busy.terms.of("there", number, place)
            names[0].setdefault(one, name)
            names[1].setdefault(other, name)
    own, others = busy.read_later(number), idle.read_later(number)
    for term in own.keys() & others.keys():
        left = [n for n in others[term] if n not in names[1]]
        alone = len({busy.whole(n) for n in own[term]}) == 1 and not names[0].keys() & {*own[term]}
        if alone and any(idle.whole(n) != busy.whole(own[term][0]) for n in left):
            name = busy.terms.of("read later", number, term)
            names[0].update(dict.fromkeys(own[term], name))
            names[1].update(dict.fromkeys(left, name))
    busy.settle(names[0])
    idle.settle(names[1])


def _takes(node: fx.Node, sizes: dict[sympy.Symbol, int]) -> bool:
    """Whether an operator takes tensors of such sizes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    try:
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: _made(n, sizes), (node.args, node.kwargs))
        node.target(*args, **kwargs)
    except Exception:  # whatever it says
        return False
    return True


def _made(node: fx.Node, sizes: dict[sympy.Symbol, int]) -> Any:
    """What a node may be at such sizes."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.zeros((), dtype=value.dtype).expand([at(size, sizes, 2) for size in value.shape])
        return at(value, sizes, 2)

    return pytree.tree_map(of, node.meta["val"])
