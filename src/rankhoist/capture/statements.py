"""Which statement of a model's own Python asks for a truth, read in its source."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TypeVar

Statement = TypeVar("Statement", ast.Assert, ast.If, ast.Assert | ast.If)
AS_TRUTH = 16  # of a comparison whose result is asked for its truth at once
BRANCHES = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)


def asking(frame: FrameType, among: Sequence[Statement]) -> Statement | None:
    """The statement whose test a frame is in; None where it is not one that can be told."""
    if not _branches(frame):
        return None
    found = [s for s in among if s.test.lineno <= frame.f_lineno <= (s.test.end_lineno or 0)]
    return found[0] if len(found) == 1 else None


def goes_through(frame: FrameType | None) -> bool:
    """Whether a frame is about to go through what a `for` statement names, and nothing else does."""
    if frame is None or dis.opname[frame.f_code.co_code[frame.f_lasti]] != "GET_ITER":
        return False
    loops = [s for s in ast.walk(source(frame.f_code.co_filename)) if isinstance(s, ast.For)]
    found = [s for s in loops if s.iter.lineno <= frame.f_lineno <= (s.iter.end_lineno or 0) < s.body[0].lineno]
    return len(found) == 1 and not any(isinstance(n, BRANCHES) for n in ast.walk(found[0].iter))


def _branches(frame: FrameType) -> bool:
    """Whether it is about to go on in one of two ways, and not in a call such as `sorted(x)`."""
    code, at = frame.f_code.co_code, frame.f_lasti
    while code[at] == dis.EXTENDED_ARG:  # before a jump that goes far
        at += 2
    name = dis.opname[code[at]]
    compares = sys.version_info >= (3, 13) and name == "COMPARE_OP" and code[at + 1] & AS_TRUTH
    return bool(compares) or name.startswith(("POP_JUMP", "JUMP_IF", "TO_BOOL"))


@functools.lru_cache(8)
def source(file: str) -> ast.Module:
    """A file's statements; none where it cannot be read."""
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ast.Module([], [])


def wanted(test: ast.expr, on: bool) -> bool | None:
    """Which truth of all that a test asks leads `on`, to True or to False; None where that is not one."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return wanted(test.operand, not on)
    if isinstance(test, ast.BoolOp):
        parts = {wanted(part, on) for part in test.values}
        return parts.pop() if isinstance(test.op, ast.And) is on and len(parts) == 1 else None
    if isinstance(test, ast.Compare) and len(test.ops) > 1 and not on:
        return None
    return None if any(isinstance(part, BRANCHES) for part in ast.walk(test)) else on
