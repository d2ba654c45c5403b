"""Which names of a function may be read again from where it is: not those that are given another value first.

Read in its source, block by block. Where that is not seen through, as in `try`, all that is mentioned is read.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from types import CodeType, FrameType

from rankhoist.capture.statements import source

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
JUMPS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
READ_ALL = {"locals", "vars", "eval", "exec", "dir"}
Block = Sequence[ast.stmt]


def read_again(frame: FrameType) -> Callable[[str], bool]:
    """Whether a name may be read from the statement on that a frame is in, which is taken to begin anew."""
    code = frame.f_code
    blocks = _behind(code, frame.f_lineno)
    if blocks is None or READ_ALL & {*code.co_names}:
        return lambda name: True
    shared = {*code.co_cellvars, *code.co_freevars}  # functions within it, and around it, read them when called
    return lambda name: name in shared or any(_read(block, name) for block in blocks)


def _behind(code: CodeType, line: int) -> list[Block] | None:
    """What may come from a line on: the rest of its block, and of those around it: a loop once more, and what is behind
    them. None where the line is not one of a statement alone.
    """
    functions = [s for s in ast.walk(source(code.co_filename)) if isinstance(s, FUNCTIONS) and s.name == code.co_name]
    own = [s for s in functions if min(n.lineno for n in (s, *s.decorator_list)) == code.co_firstlineno]
    behind: list[Block] = []
    block: Block = own[0].body if len(own) == 1 else []
    while True:
        at = [i for i, s in enumerate(block) if s.lineno <= line <= (s.end_lineno or 0)]
        if len(at) != 1:
            return None
        statement, rest = block[at[0]], block[at[0] :]
        if not isinstance(statement, ast.If | ast.With | ast.For | ast.While):
            return [*behind, rest]
        blocks = [b for b in (statement.body, getattr(statement, "orelse", [])) if b]
        inner = [b for b in blocks if b[0].lineno <= line <= (b[-1].end_lineno or 0)]
        if len(inner) != 1:
            return [*behind, rest]
        behind.append(rest if isinstance(statement, ast.For | ast.While) else rest[1:])
        (block,) = inner


def _read(block: Block, name: str) -> bool | None:
    """Whether a name is read in a block before it is given a value; None where it may be left as it is."""
    for statement in block:
        if (read := _read_by(statement, name)) is not None:
            return read
        if isinstance(statement, JUMPS):
            return None
    return None


def _read_by(statement: ast.stmt, name: str) -> bool | None:
    match statement:
        case ast.If():
            ways = {_read(statement.body, name), _read(statement.orelse, name)}
            return _loaded(name, statement.test) or (True in ways) or (False if ways == {False} else None)
        case ast.While():
            blocks = _read(statement.body, name) or _read(statement.orelse, name)
            return True if _loaded(name, statement.test) or blocks else None
        case ast.For():
            given = _is_given(name, statement.target)
            blocks = (not given and _read(statement.body, name)) or _read(statement.orelse, name)
            return True if _loaded(name, statement.iter, statement.target) or blocks else None
        case ast.With():  # it may end an exception before a value is given, but those of torch end none
            read = _loaded(name, *statement.items) or _read(statement.body, name)
            return read if read or all(_is_torchs(item.context_expr) for item in statement.items) else None
        case ast.Assign():
            if _loaded(name, statement.value, *statement.targets):
                return True
            return False if any(_is_given(name, target) for target in statement.targets) else None
    return True if _mentioned(name, statement) else None


def _loaded(name: str, *nodes: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name and not isinstance(n.ctx, ast.Store) for n in _walk(*nodes))


def _mentioned(name: str, *nodes: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in _walk(*nodes))


def _walk(*nodes: ast.AST) -> list[ast.AST]:
    return [n for node in nodes for n in ast.walk(node)]


def _is_torchs(node: ast.expr) -> bool:
    """Whether it is a call of what is named as torch's own: `torch.no_grad()`."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id == "torch"


def _is_given(name: str, target: ast.expr) -> bool:
    """Whether a target is a name, or has it as a part."""
    if isinstance(target, ast.Tuple | ast.List):
        return any(_is_given(name, part) for part in target.elts)
    return isinstance(target, ast.Name) and target.id == name
