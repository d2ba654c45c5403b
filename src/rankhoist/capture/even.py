"""Rows cut apart by `chunk` and `split`: of rows under rows, how many parts there are does not depend on the rows."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHUNKS = (torch.chunk, Tensor.chunk)
SPLITS = (torch.split, Tensor.split)
CUTS = (*CHUNKS, *SPLITS, torch.tensor_split, Tensor.tensor_split)


class EvenParts(TorchFunctionMode):
    """While a model is exported: a size of so many times the rows, cut into equal parts, is cut at multiples of them.

    torch rounds up, for the last part may be shorter: it can show that `2 n` rows are two parts of `n` for one n at a
    time. Here every symbol is the number of rows, but those that may be 0: numbers of values in bags. And one part is
    all there is, not the first rows of it (see `pieces`).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CHUNKS or func in SPLITS:
            x, number = (*args[:2], *(v for k, v in kwargs.items() if k != "dim"))[:2]
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            if func in CHUNKS and number == 1:
                return (x,)
            parts = _chunks(x.shape[dim], number) if func in CHUNKS else _splits(x.shape[dim], number)
            if parts:
                return torch.split_with_sizes(x, parts, dim)
        made = func(*args, **kwargs)
        return (args[0],) if args and func in CUTS and len(made) == 1 else made


def _chunks(size: Any, count: int) -> list[Any]:
    """The sizes of `count` equal parts."""
    times = _times(size) if isinstance(count, int) else 0
    return [_rows(size) * (times // count)] * count if times and times % count == 0 else []


def _splits(size: Any, part: Any) -> list[Any]:
    """The sizes of equal parts of size `part`."""
    times, own = _times(size), _times(part)
    return [part] * (times // own) if times and own and times % own == 0 else []


def _times(size: Any) -> int:
    """How many times the rows it is; 0 where it is no such number."""
    if not isinstance(size, torch.SymInt):
        return 0
    rows = sympy.Symbol("rows", positive=True, integer=True)
    expr, env = size.node.expr, size.node.shape_env
    if any(env.is_unbacked_symint(s) or env.var_to_range[s].lower < 2 for s in expr.free_symbols):
        return 0
    times = sympy.simplify(expr.subs(dict.fromkeys(expr.free_symbols, rows)) / rows)
    return int(times) if times.is_Integer else 0


def _rows(size: torch.SymInt) -> Any:
    """The row count, as one of the symbols of a size."""
    symbol = min(size.node.expr.free_symbols, key=str)
    env = size.node.shape_env
    return env.create_symintnode(symbol, hint=int(env.size_hint(symbol)))
