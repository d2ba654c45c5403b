"""Branches that leave work out where there is none: a mask is true nowhere, so what it chooses is nothing.

    if mask.any(): out[mask] = expert(x[mask])        if rows.numel() == 0: continue

torch.export refuses to ask data. Here the graph goes on as if there was work, at every such question. The model is
exported once more, as if there was none at any of them. From every question to the next one, that graph has to lead to
what the first one does where the mask is true nowhere; so the first is the model, whatever the answers are (`between`).

What is there at a question is what the frames of the model's Python hold (`state`), as far as anybody reads it. A
branch for nothing reads nothing on its own: it is not written, or it is `pass`, `continue`, or `return` of what the
other one reads, too.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from unittest import mock

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.node import has_side_effect
from torch.overrides import TorchFunctionMode

from rankhoist.capture.own_lines import is_own, own_frame
from rankhoist.capture.state import State, state_of
from rankhoist.capture.statements import BRANCHES, asking, source, wanted

MOST = 1024  # questions: about as many take minutes to export
SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)
COMPARED = {name: getattr(operator, name) for name in ("gt", "ge", "lt", "le", "eq", "ne")}
COMPARED |= {"greater": operator.gt, "greater_equal": operator.ge, "less": operator.lt, "less_equal": operator.le,
             "not_equal": operator.ne}  # fmt: skip
WHOLE = {"any": 0, "sum": 0, "count_nonzero": 0, "all": 1}  # of what is true nowhere; all: of its opposite
SAME = {"bool", "long", "int", "float", "double", "to", "item"}
OPPOSITE = {"logical_not", "bitwise_not", "invert"}
OPERANDS = {**dict.fromkeys(COMPARED, 2), **dict.fromkeys(SAME | OPPOSITE, 1)}
SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)


@dataclass(frozen=True)
class Question:
    """What the model's Python asks: a relation of numbers that data decides, or (None) the truth of a tensor, of which
    the graph has a mark. `nothing` is the answer where masks are true nowhere.
    """

    about: Any
    nothing: bool
    state: State

    @property
    def form(self) -> Any:
        """The same of two questions that are asked alike."""
        return self.state.lines, self.state.spaces, self.about is None, self.nothing


@torch.library.custom_op("rankhoist::asked", mutates_args=())
def _mark(number: int, about: Tensor | None, tensors: list[Tensor], sizes: list[int]) -> None:
    """Says in a graph where a question was asked: of what tensor, if of one, and what else is there."""


_mark.register_fake(lambda number, about, tensors, sizes: None)
MARK = has_side_effect(torch.ops.rankhoist.asked.default)


@dataclass
class Answers:
    """To the questions of one export: there is work at each of them, or (`idle`) at none."""

    idle: bool = False
    asked: list[Question] = field(default_factory=list)
    items: dict[sympy.Symbol, Tensor] = field(default_factory=dict)  # numbers that were read -> out of what

    def to(self, about: Any, nothing: bool, frame: FrameType, x: Tensor | None = None) -> bool:
        """Whether there is work, in the words of the question; x is what it asks, where it is a tensor."""
        state = state_of(frame)
        MARK(len(self.asked), x, state.tensors, state.sizes)
        self.asked.append(Question(about, nothing, state))
        return nothing if self.idle else not nothing


@contextlib.contextmanager
def answered(answers: Answers) -> Iterator[None]:
    """While a model is exported: its own lines are answered whether there is anything."""
    with _asked_of_sizes(answers), _AskedOfTensors(answers):
        yield


class _AskedOfTensors(TorchFunctionMode):
    """Answers of tensors, where they ask for more or less than nothing."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        self._made: dict[int, tuple[Tensor, str, tuple[Any, ...]]] = {}  # tensors are kept: none comes to their places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].dim() == 0:
            nothing, frame = self._at_nothing(args[0]), own_frame(sys._getframe(1))
            if nothing is not None and frame is not None and _is_shortcut(frame, bool(nothing)):
                return self._answers.to(None, bool(nothing), frame, args[0])
        result = func(*args, **(kwargs or {}))
        if func is Tensor.item and isinstance(result, SIZES):
            self._answers.items.update(dict.fromkeys(result.node.expr.free_symbols, args[0]))
        if isinstance(result, Tensor):
            written = any(result is x for x in args)  # it is another number then
            self._made[id(result)] = result, "" if written else func.__name__.strip("_"), args
        return result

    def _at_nothing(self, x: Any) -> float | None:
        """What a number is where masks are true nowhere, or all are true where it asks whether they are."""
        if isinstance(x, int | float):
            return x
        _, name, given = self._made.get(id(x), (None, "", ()))
        if name in WHOLE and len(given) == 1:
            return WHOLE[name]
        values = [self._at_nothing(own) for own in given[: OPERANDS.get(name, 0)]]
        if None in values or not values:
            return None
        if name in COMPARED:
            return bool(COMPARED[name](*values))
        return not values[0] if name in OPPOSITE else values[0]


@contextlib.contextmanager
def _asked_of_sizes(answers: Answers) -> Iterator[None]:
    """Answers of numbers that data decides, where torch knows none, to the model's own lines in this thread."""
    thread = threading.get_ident()

    def asks(truth: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def asked(x: Any) -> bool:
            try:
                return truth(x)
            except GuardOnDataDependentSymNode:
                frame = sys._getframe(1)
                if threading.get_ident() != thread or not is_own(frame.f_code.co_filename):
                    raise
                about = x.node.expr if isinstance(x, torch.SymBool) else sympy.Ne(x.node.expr, 0)
                nothing = about.subs(dict.fromkeys(about.free_symbols, 0))
                if nothing not in (True, False) or not _is_shortcut(frame, bool(nothing)):
                    raise
                (symbol, *_) = about.free_symbols
                return answers.to(about, bool(nothing), frame, answers.items.get(symbol))

        return asked

    with contextlib.ExitStack() as stack:
        for kind in (torch.SymBool, torch.SymInt):
            stack.enter_context(mock.patch.object(kind, "__bool__", asks(kind.__bool__)))
        yield


# -- where it is asked


def _is_shortcut(frame: FrameType, nothing: bool) -> bool:
    """Whether a condition asks, and the branch that such an answer leads to reads nothing on its own."""
    found = asking(frame, _conditions(frame.f_code.co_filename))
    return found is not None and _leaves_out(found, nothing, frame)


def _leaves_out(found: ast.If, nothing: bool, frame: FrameType) -> bool:
    for on in (True, False):
        if wanted(found.test, on) is (not nothing):
            work, rest = (found.body, found.orelse) if on else (found.orelse, found.body)
            behind = [*work, *_behind(source(frame.f_code.co_filename), found)]
            return _goes_on(work, ast.Continue) if not rest else len(rest) == 1 and _idle(rest[0], work, behind)
    return False


def _goes_on(work: Sequence[ast.stmt], *jumps: type[ast.stmt]) -> bool:
    """Whether it comes to its end, and leaves by none of these."""
    leaves = (ast.Return, ast.Break, ast.Raise, *jumps)
    return not any(isinstance(n, leaves) for s in work for n in ast.walk(s))


@functools.lru_cache(8)
def _conditions(file: str) -> list[ast.If]:
    return [s for s in ast.walk(source(file)) if isinstance(s, ast.If)]


def _idle(statement: ast.stmt, work: Sequence[ast.stmt], behind: Sequence[ast.stmt]) -> bool:
    """Whether it computes nothing, and reads what is read where there is work, too."""
    if isinstance(statement, ast.Return):
        names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
        plain = statement.value is None or isinstance(statement.value, ast.Name | ast.Tuple | ast.Constant)
        return plain and names <= _read(behind)
    if isinstance(statement, ast.Continue):
        return _goes_on(behind)
    return isinstance(statement, ast.Pass) and _goes_on(work, ast.Continue)


def _behind(tree: ast.Module, statement: ast.stmt) -> list[ast.stmt]:
    """The statements behind one in its block."""
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list) and statement in block:
                return block[block.index(statement) + 1 :]
    return []


def _read(statements: Sequence[ast.stmt]) -> set[str]:
    """Names that are read, or written into, before they are given another value, in any case."""
    read: set[str] = set()
    given: set[str] = set()
    for statement in statements:
        if not isinstance(statement, SIMPLE) or any(isinstance(n, BRANCHES) for n in ast.walk(statement)):
            break  # it may not come to what is in it
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
        into = statement.target if isinstance(statement, ast.AugAssign) else None
        read |= {n.id for n in names if isinstance(n.ctx, ast.Load) or n is into} - given
        given |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
    return read
