"""Large tables in a float64 run: they stay as they are, and their rows are float64 once they are looked up.

A float64 table takes twice its memory, and a run has one for the original and one for what it is compared with: for a
model of some GiB, more than the machine has that serves it. A lookup takes numbers as they are, so `W.double()[i]` is
`W[i].double()`. An operator that is no lookup is given all of the table in float64, for as long as it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from rankhoist.capture.operators import is_view

aten = torch.ops.aten
MODEL, TABLE = 2**30, 2**24  # bytes: of a model whose tables are worth it, and of such a table
LOOKUPS = {aten.embedding.default, aten.index_select.default, aten.index.Tensor}
BAGS = {aten._embedding_bag.default, aten._embedding_bag_forward_only.default}
BAG_OPTIONS = (False, 0, False, None, False, -1)  # the last is the id that is padding


class Tables:
    """The large tables among weights, of as many dtypes and aliases as there are of them."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        known = {
            t.untyped_storage().data_ptr(): t
            for t in filter(_has_memory, weights)
            if t.is_floating_point() and t.dim() == 2
        }
        size = {at: t.untyped_storage().nbytes() for at, t in known.items() if t.dtype != torch.float64}
        large = {at: known[at] for at, count in size.items() if count >= TABLE}
        self._large = large if sum(size.values()) >= MODEL else {}

    def has(self, x: Any) -> bool:
        """Whether it is a table, or a part of one."""
        return isinstance(x, Tensor) and _has_memory(x) and x.untyped_storage().data_ptr() in self._large

    def lifted(self, x: Tensor) -> Tensor:
        """What a weight is in a float64 run."""
        return x.double() if x.is_floating_point() and not self.has(x) else x

    @contextlib.contextmanager
    def looked_up(self) -> Iterator[None]:
        """While whoever runs takes the tables for float64, and runs as written: a compiler may know no float64, and
        gives up on a function for good where it meets a mode.
        """
        with torch.compiler.set_stance("force_eager"), _LookedUp(self) if self._large else contextlib.nullcontext():
            yield


class _LookedUp(TorchDispatchMode):
    def __init__(self, tables: Tables) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tables = tables

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(self._tables.has, pytree.tree_leaves((args, kwargs)))) or is_view(func):
            return func(*args, **kwargs)
        first, *others = args
        if self._tables.has(first) and not any(map(self._tables.has, pytree.tree_leaves(others))):
            if func in LOOKUPS:
                return func(*args, **kwargs).double()
            if func in BAGS:
                return _bags(func, first, *others, **kwargs)
        args, kwargs = pytree.tree_map_only(self._tables.has, torch.Tensor.double, (args, kwargs))
        return func(*args, **kwargs)


def _has_memory(x: Tensor) -> bool:
    """Of its own: neither sparse, nor made of other tensors, as quantised weights are."""
    return x.layout == torch.strided and not is_traceable_wrapper_subclass(x)


def _bags(func: Any, table: Tensor, ids: Tensor, offsets: Tensor, *given: Any, **named: Any) -> Any:
    """Of the rows that are read: which of them is padding is its number among these."""
    read, places = ids.unique(return_inverse=True)
    options = [*given, *BAG_OPTIONS[len(given) :]]
    padding = (read == options[-1]).nonzero().flatten().tolist() if options[-1] >= 0 else []
    options[-1] = padding[0] if padding else -1
    return func(table[read].double(), places, offsets, *options, **named)
