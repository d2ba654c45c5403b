"""Where a model gives its rows a number: torch refuses once all is exported, and does not say at which line."""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import sympy
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rankhoist.capture.own_lines import is_own

FIXES = "_set_replacement"  # of a symbol, by what it is from then on


class Fixed(NamedTuple):
    """A line of the model's author, and the modules whose `forward` is on the way there, the innermost first."""

    line: str
    modules: list[nn.Module]

    def module(self, model: nn.Module) -> tuple[str, str]:
        """The path and the kind of the innermost one."""
        paths = {id(module): name for name, module in model.named_modules()}
        found = next((m for m in self.modules if id(m) in paths), model)
        return paths[id(found)], type(found).__name__


@contextlib.contextmanager
def noting(found: list[Fixed]) -> Iterator[None]:
    """Where a size becomes a number meanwhile, the first one first."""
    known = getattr(ShapeEnv, FIXES, None)

    def noted(env: ShapeEnv, symbol: sympy.Symbol, by: sympy.Expr, *rest: Any) -> None:
        if not getattr(by, "free_symbols", True) and (fixed := _here()):
            found.append(fixed)
        known(env, symbol, by, *rest)  # type: ignore[misc]

    with mock.patch.object(ShapeEnv, FIXES, noted) if known else contextlib.nullcontext():
        yield


def _here() -> Fixed | None:
    """At the innermost line that is neither torch's nor ours, and at the module's that calls it."""
    line, called, modules, frame = "", "", list[nn.Module](), sys._getframe().f_back
    while frame is not None:
        path, number, owner = frame.f_code.co_filename, frame.f_lineno, frame.f_locals.get("self")
        if is_own(path) and (said := linecache.getline(path, number).strip()):
            line = line or f"line {number} of {path}: {said}"
            if isinstance(owner, nn.Module):
                called = called or f"line {number} of {path}: {said}"
        if frame.f_code.co_name == "forward" and isinstance(owner, nn.Module):
            modules.append(owner)
        frame = frame.f_back
    told = f"{line}\nreached from {called}" if called not in ("", line) else line
    return Fixed(told, modules) if line else None
