"""Checks of data that a model's author wrote in Python, as assertions of the graph.

    assert ok.all(), "words"        if bad.any(): raise ValueError("words")

Such a statement does nothing but raise. So the graph goes on as if the check held, and asserts that it does: it raises
for the data for which the model raises, though by another exception. Which statement asks whether a tensor is true, and
what it wants to hear, is read in the source, as far as it is one answer that leads on.
"""

from __future__ import annotations

import ast
import functools
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rankhoist.capture.statements import asking, source, wanted


class Stated(TorchFunctionMode):
    """While a model is exported: what a check asks of a tensor is asserted, and is as the check wants it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].dim() == 0:
            check = _check(sys._getframe(1))
            if check is not None:
                needed, words = check
                torch._assert_async(args[0].bool() if needed else args[0].logical_not(), words)
                return needed
        return func(*args, **(kwargs or {}))


def _check(frame: FrameType | None) -> tuple[bool, str] | None:
    """Of the statement that asks for the truth of a tensor: what has to be the answer, and words if it is another."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    found = None if frame is None else asking(frame, _checks(frame.f_code.co_filename))
    if found is None:
        return None
    needed = wanted(found.test, isinstance(found, ast.Assert))
    return None if needed is None else (needed, _words(found))


@functools.lru_cache(8)
def _checks(file: str) -> list[ast.Assert | ast.If]:
    """Assertions, and conditions under which something is raised and that is all, where nobody catches it."""
    tree = source(file)
    caught = {id(s) for t in ast.walk(tree) if isinstance(t, ast.Try) and t.handlers for s in ast.walk(t)}
    found = [s for s in ast.walk(tree) if isinstance(s, ast.Assert | ast.If) and id(s) not in caught]
    return [s for s in found if isinstance(s, ast.Assert) or _only_raises(s)]


def _only_raises(statement: ast.If) -> bool:
    return len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise) and not statement.orelse


def _words(statement: ast.Assert | ast.If) -> str:
    """What the author says of it, where that is plain text; else the check itself."""
    said = statement.msg if isinstance(statement, ast.Assert) else statement.body[0].exc  # type: ignore[attr-defined]
    if isinstance(said, ast.Call) and said.args:
        said = said.args[0]
    if isinstance(said, ast.Constant) and isinstance(said.value, str):
        return said.value
    return f"{'assert' if isinstance(statement, ast.Assert) else 'refused if'} {ast.unparse(statement.test)}"
