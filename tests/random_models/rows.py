"""Rows, lengths that vary and values in bags: how many there are, and how sizes are written that hang on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

ROWS = 10007  # of a dry run; a prime that no other size is a multiple of
LENGTH = 1009  # of a history in a dry run, the same
BAGS = (20011, 20021)  # how many values the bags of two inputs have in a dry run; and these are
LENGTHS = (6, 5)  # of a history that varies: of the rows that are drawn, and of the shortest one
NEAR = 8  # a size this near to a multiple of a length is that multiple, and a few more or less
OFFSETS = [0, 3, 3, 7]  # three requests, one without candidates
REQUESTS, CANDIDATES = len(OFFSETS) - 1, OFFSETS[-1]
VOCABULARY = 5  # ids of an input

Extent = tuple[int, ...]  # sizes of a value; -n stands for n times the row count, `LENGTH` for a length that varies


def extent_of(shape: Sequence[int]) -> Extent:
    """The sizes of a dry run."""
    return tuple(-(n // ROWS) if n and n % ROWS == 0 else n for n in shape)


def product(sizes: Iterable[int]) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


def per_length(n: int) -> tuple[int, int]:
    """How many lengths, and how much more, a size of a dry run is."""
    count = (n + NEAR) // LENGTH
    return (count, n - count * LENGTH) if n - count * LENGTH <= NEAR else (0, n)


def varies(n: int) -> bool:
    """Whether a size of a dry run hangs on a length."""
    return per_length(abs(n))[0] > 0


def size_of(n: int, rows: Any, length: Any, bags: Sequence[Any]) -> Any:
    """A size of a dry run, for other numbers of rows, of positions and of values in bags."""
    if n in BAGS or n == sum(BAGS):
        return sum(bags) if n == sum(BAGS) else bags[BAGS.index(n)]
    count, more = (n + 1) // ROWS, n - (n + 1) // ROWS * ROWS
    if count and abs(more) <= 1:
        return _sum(rows * size_of(count, rows, length, bags) if count > 1 else rows, more)
    count, more = per_length(n)
    return _sum(length * count if count > 1 else length, more) if count else n


def _sum(x: Any, more: int) -> Any:
    return x + more if more else x


def symbolic(dry: Any) -> Any:
    """`meta["val"]` for the result of a dry run: made from its shape alone, for symbolic tracing is slow."""
    if isinstance(dry, Tensor):
        return _symbolic_tensor(tuple(dry.shape), dry.dtype)
    if isinstance(dry, int):
        return _symbolic_size(dry)
    return [symbolic(v) for v in dry]


def row_count() -> Any:
    """The symbol of the row count."""
    return _symbols()[1][0].node.expr


def length() -> Any:
    """The symbol of a length that varies."""
    return _symbols()[1][1].node.expr


def _symbol(shapes: ShapeEnv, name: str, hint: int) -> torch.SymInt:
    source = ConstantSource(name)
    symbol = shapes.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    return shapes.create_symintnode(symbol, hint=hint, source=source)


@cache
def _symbols() -> tuple[FakeTensorMode, list[torch.SymInt]]:
    """Of the rows, of a length, and of the values in bags."""
    shapes = ShapeEnv()
    sizes = {"rows": ROWS, "length": LENGTH, "values": BAGS[0], "more_values": BAGS[1]}
    return FakeTensorMode(shape_env=shapes), [_symbol(shapes, name, hint) for name, hint in sizes.items()]


@cache
def _symbolic_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    mode, _ = _symbols()
    with mode:
        return torch.empty([_symbolic_size(n) for n in shape], dtype=dtype)


@cache
def _symbolic_size(n: int) -> Any:
    rows, length, *bags = _symbols()[1]
    return size_of(n, rows, length, bags)
