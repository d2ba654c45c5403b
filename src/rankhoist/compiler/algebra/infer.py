"""What an operator would return, found by a run without data: sizes, dtypes and work, for operators that no graph has.

Tensors have a prime number of rows, larger than any size that a model writes down: a size that it divides counts rows.
Lengths that vary are tried at several numbers: a size that is the same at all is a number, and one that grows in step
with a length is that many times the length, and a number.
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

from rankhoist.compiler.algebra.bags import Bounds, OfBags, Ragged
from rankhoist.compiler.algebra.forms import Decline, Extent, Form
from rankhoist.compiler.algebra.orders import Chosen, InOrder, RowNumber
from rankhoist.compiler.algebra.values import Opaque, Promise, Value, told
from rankhoist.compiler.graph.lengths import Length, Sized
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
    given = _frozen(args), tuple((k, _frozen(v)) for k, v in kwargs.items())
    lengths = {s: n for x in _lengths_in((args, list(kwargs.values()))) for s, n in x.at.items()}
    usual = tuple(sorted(lengths.items(), key=str))
    found, work = _inferred(op, *given, usual)
    if not lengths:
        return found, work
    tried = [usual, tuple((s, n + 3 + i) for i, (s, n) in enumerate(usual))]
    tried += [tuple((s, n + 2 * (s == own)) for s, n in usual) for own, _ in usual]
    several = [_inferred(op, *given, lengths)[0] for lengths in tried]
    if isinstance(found, Promise):
        return _following([p for p in several if isinstance(p, Promise)], tried), work
    return [_following([p[i] for p in several if isinstance(p, list)], tried) for i in range(len(found))], work


def _following(tried: list[Promise], lengths: list[Any]) -> Promise:
    """What holds for all lengths, of what was returned at some."""
    axes = zip(*(promise.extents for promise in tried), strict=True)
    shape = tuple((_fit([n for n, _ in axis], lengths), axis[0][1]) for axis in axes)
    return Promise(shape, tried[0].dtype)


def _fit(sizes: list[int], lengths: list[Any]) -> Sized:
    """A size in step with every length, as `sizes` are; declines for another."""
    result: Sized = sizes[0]
    for larger, (symbol, usual) in zip(sizes[2:], lengths[0], strict=True):
        step = (larger - sizes[0]) // 2
        result = result + step * (Length(symbol, {symbol: usual}) - usual)
    fits = [x.when(dict(at)) if isinstance(x := result, Length) else x for at in lengths]
    if fits != sizes:
        raise Decline(f"makes sizes of {sizes} where lengths are {lengths}")
    return result


def _lengths_in(value: Any) -> list[Length]:
    """Those among arguments."""
    if isinstance(value, list | tuple):
        return [x for v in value for x in _lengths_in(v)]
    if isinstance(value, Operand):
        return [n for n, _ in value.extents if isinstance(n, Length)]
    return [value] if isinstance(value, Length) else []


@lru_cache(maxsize=4096)
def _inferred(op: Op, args: Any, kwargs: Any, lengths: Any) -> tuple[Promise | list[Promise], Work]:
    given, named = _thawed(args, dict(lengths)), {k: _thawed(v, dict(lengths)) for k, v in kwargs}
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


def _thawed(value: Any, lengths: Mapping[sympy.Symbol, int]) -> Any:
    kind, content = value
    if kind is list:
        return [_thawed(v, lengths) for v in content]
    if kind is Length:
        return content.when(lengths)
    if kind is Operand:
        sizes = [(n.when(lengths) if isinstance(n, Length) else n, rows) for n, rows in content.extents]
        return torch.empty([n * ROWS if rows else n for n, rows in sizes], dtype=content.dtype, device="meta")
    return content


def operand(value: Value) -> Any:
    """An argument as inference takes it."""
    if isinstance(value, Form):
        return Operand(tuple(value.extents), value.dtype)
    if isinstance(value, Ragged):  # as many as there are rows, for example
        return Operand(((1, True), *((n, False) for n in value.parts[0].form.sizes)), value.dtype)
    if isinstance(value, Bounds) and not (value.first and value.last):
        return Operand(tuple(value.lengths.extents), value.dtype)
    if isinstance(value, RowNumber):
        return Operand(((value.count * value.each, True), *((n, False) for n in value.behind)), value.dtype)
    if isinstance(value, Opaque | OfBags | InOrder | Chosen):
        raise Decline(told(value))
    return [operand(v) for v in value] if isinstance(value, list | tuple) else value
