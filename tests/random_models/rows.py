"""Rows: how many a random model has, and how sizes are written of which some are multiples of their number."""

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
OFFSETS = [0, 3, 3, 7]  # three requests, one without candidates
REQUESTS, CANDIDATES = len(OFFSETS) - 1, OFFSETS[-1]

Extent = tuple[int, ...]  # sizes of a value; -n stands for n times the row count


def extent_of(shape: Sequence[int]) -> Extent:
    """The sizes of a dry run."""
    return tuple(-(n // ROWS) if n and n % ROWS == 0 else n for n in shape)


def product(sizes: Iterable[int]) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


def symbolic(dry: Any) -> Any:
    """`meta["val"]` for the result of a dry run: made from its shape alone, for symbolic tracing is slow."""
    if isinstance(dry, Tensor):
        return _symbolic_tensor(extent_of(dry.shape), dry.dtype)
    if isinstance(dry, int):
        return _symbolic_size(dry // ROWS)
    return [symbolic(v) for v in dry]


def row_count() -> Any:
    """The symbol of the row count."""
    return _symbols()[1].node.expr


@cache
def _symbols() -> tuple[FakeTensorMode, torch.SymInt]:
    shapes = ShapeEnv()
    source = ConstantSource("rows")
    symbol = shapes.create_symbol(ROWS, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    return FakeTensorMode(shape_env=shapes), shapes.create_symintnode(symbol, hint=ROWS, source=source)


@cache
def _symbolic_tensor(extent: Extent, dtype: torch.dtype) -> Tensor:
    mode, rows = _symbols()
    with mode:
        return torch.empty([n if n >= 0 else rows * -n for n in extent], dtype=dtype)


@cache
def _symbolic_size(count: int) -> Any:
    return _symbols()[1] * count if count != 1 else _symbols()[1]
