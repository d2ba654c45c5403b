"""Checks of data that a model's author wrote in Python, as assertions of the graph.

    assert ok.all(), "words"        if bad.any(): raise ValueError("words")

Such a statement does nothing but raise. So the graph goes on as if the check held, and asserts that it does: it raises
for the data for which the model raises, though by another exception. Which statement asks whether a tensor is true, and
what it wants to hear, is read in the source, as far as it is one answer that leads on.
"""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

BRANCHES = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)


class Stated(TorchFunctionMode):
    """While a model is exported: what a check asks of a tensor is asserted, and is as the check wants it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].dim() == 0:
            check = _check(sys._getframe(1))
            if check is not None:
                wanted, words = check
                torch._assert_async(args[0].bool() if wanted else args[0].logical_not(), words)
                return wanted
        return func(*args, **(kwargs or {}))


def _check(frame: FrameType | None) -> tuple[bool, str] | None:
    """Of the statement that asks for the truth of a tensor: what has to be the answer, and words if it is another."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    if frame is None or not _branches(frame):
        return None
    checks, line = _checks(frame.f_code.co_filename), frame.f_lineno
    found = [s for s in checks if s.test.lineno <= line <= (s.test.end_lineno or 0)]
    if len(found) != 1:
        return None
    wanted = _wanted(found[0].test, isinstance(found[0], ast.Assert))
    return None if wanted is None else (wanted, _words(found[0]))


def _branches(frame: FrameType) -> bool:
    """Whether it is about to go on in one of two ways, and not in a call such as `sorted(x)`."""
    code, at = frame.f_code.co_code, frame.f_lasti
    while code[at] == dis.EXTENDED_ARG:  # before a jump that goes far
        at += 2
    return dis.opname[code[at]].startswith(("POP_JUMP", "JUMP_IF", "TO_BOOL"))


@functools.lru_cache(8)
def _checks(file: str) -> list[ast.Assert | ast.If]:
    """Assertions, and conditions under which something is raised and that is all, where nobody catches it; none where
    there is no source.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return []
    caught = {id(s) for t in ast.walk(tree) if isinstance(t, ast.Try) and t.handlers for s in ast.walk(t)}
    found = [s for s in ast.walk(tree) if isinstance(s, ast.Assert | ast.If) and id(s) not in caught]
    return [s for s in found if isinstance(s, ast.Assert) or _only_raises(s)]


def _only_raises(statement: ast.If) -> bool:
    return len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise) and not statement.orelse


def _wanted(test: ast.expr, on: bool) -> bool | None:
    """Which truth of every tensor that a test asks leads `on`, to True or to False; None where that is not one."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _wanted(test.operand, not on)
    if isinstance(test, ast.BoolOp):
        parts = {_wanted(part, on) for part in test.values}
        return parts.pop() if isinstance(test.op, ast.And) is on and len(parts) == 1 else None
    if isinstance(test, ast.Compare) and len(test.ops) > 1 and not on:
        return None
    return None if any(isinstance(part, BRANCHES) for part in ast.walk(test)) else on


def _words(statement: ast.Assert | ast.If) -> str:
    """What the author says of it, where that is plain text; else the check itself."""
    said = statement.msg if isinstance(statement, ast.Assert) else statement.body[0].exc  # type: ignore[attr-defined]
    if isinstance(said, ast.Call) and said.args:
        said = said.args[0]
    if isinstance(said, ast.Constant) and isinstance(said.value, str):
        return said.value
    return f"{'assert' if isinstance(statement, ast.Assert) else 'refused if'} {ast.unparse(statement.test)}"
