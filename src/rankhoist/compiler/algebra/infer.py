"""What an operator would return, found by a run without data: sizes, dtypes and work, for operators that no graph has.

Tensors have a prime number of rows, larger than any size that a model writes down: a size that it divides counts rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from rankhoist.compiler.algebra.forms import Decline, Extent
from rankhoist.compiler.algebra.values import Promise
from rankhoist.compiler.graph.node import Op, Work
from rankhoist.compiler.graph.work import original_work
from rankhoist.mistakes import is_mistake

ROWS = 1_000_003


@dataclass(frozen=True)
class Operand:
    """A tensor of which sizes and dtype are known."""

    extents: tuple[Extent, ...]
    dtype: torch.dtype


def inferred(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Promise | list[Promise], Work]:
    """What `op` of these arguments returns, and its work per row; tensors among the arguments are `Operand`s."""
    return _inferred(op, _frozen(args), tuple((k, _frozen(v)) for k, v in kwargs.items()))


@lru_cache(maxsize=4096)
def _inferred(op: Op, args: Any, kwargs: Any) -> tuple[Promise | list[Promise], Work]:
    given, named = _thawed(args), {k: _thawed(v) for k, v in kwargs}
    try:
        results = op(*given, **named)
    except Exception as error:
        if not is_mistake(error):
            raise
        raise Decline(f"{op} cannot be run without data: {error}") from error
    if isinstance(results, torch.Tensor):
        return _promise(results), _work(op, given, named, results)
    return [_promise(r) for r in results], _work(op, given, named, results)


def _promise(result: torch.Tensor) -> Promise:
    return Promise(tuple((n // ROWS, True) if n and n % ROWS == 0 else (n, False) for n in result.shape), result.dtype)


def _work(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any], results: Any) -> Work:
    """As that of a captured operator, for one of the rows."""
    graph = fx.Graph()

    def given(tensor: torch.Tensor) -> fx.Node:
        node = graph.placeholder("given")
        node.meta["val"] = tensor
        return node

    nodes = tree_map_only(torch.Tensor, given, (tuple(args), dict(kwargs)))
    node = graph.call_function(op, *nodes)
    node.meta["val"] = results
    work = original_work(node, sympy.Symbol("rows"), 1)
    return Work(-(-work.multiply_adds // ROWS), -(-work.elements // ROWS))


# -- arguments that can be a key


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list, tuple(_frozen(v) for v in value)
    return type(value), value  # 1, 1.0 and True are equal, and different arguments


def _thawed(value: Any) -> Any:
    kind, content = value
    if kind is list:
        return [_thawed(v) for v in content]
    if kind is Operand:
        shape = [n * ROWS if rows else n for n, rows in content.extents]
        return torch.empty(shape, dtype=content.dtype, device="meta")
    return content
