"""Which row of a store an id has: ids in order, searched by bisection."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankhoist.errors import InputError

SHOWN = 10  # unknown ids that an error names
Ids = np.ndarray[Any, Any]


def as_ids(given: Tensor | np.ndarray[Any, Any] | Sequence[Any]) -> Ids:
    """Ids `[M]`, whole numbers or strings.

    Raises:
        InputError: they are neither, or have several axes.
    """
    found = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iuUS"):
        raise InputError(f"ids are whole numbers or strings, [items], got {found.dtype} of shape {list(found.shape)}")
    return found.astype(np.int64) if found.dtype.kind in "iu" or not found.size else found.astype(np.str_)


class Index:
    """Ids and their rows; never changed, so that who reads one is not disturbed by an update.

    Args:
        ids: `[M]`, ascending, no two the same.
        rows: `[M]`, the row of each.
    """

    def __init__(self, ids: Ids, rows: np.ndarray[Any, Any]) -> None:
        self.ids, self.rows = ids, rows

    @staticmethod
    def of(ids: Ids, rows: np.ndarray[Any, Any]) -> Index:
        """Of ids in any order.

        Raises:
            InputError: an id is there twice.
        """
        order = np.argsort(ids, kind="stable")
        made = Index(ids[order], rows[order])
        twice = made.ids[1:][made.ids[1:] == made.ids[:-1]]
        if len(twice):
            raise InputError(f"ids are given twice: {listed(twice)}")
        return made

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def used(self) -> int:
        """Rows from 0 to the last that an item has."""
        return int(self.rows.max()) + 1 if len(self.rows) else 0

    def places(self, ids: Ids) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Per id: its place in the order, and whether it is there."""
        if not len(self.ids) or not len(ids) or ids.dtype.kind != self.ids.dtype.kind:
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        if self._dense:
            places = ids - self.ids[0]
            known = (places >= 0) & (places < len(self.ids))
            return np.where(known, places, 0), known
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return places, self.ids[places] == ids

    @cached_property
    def _dense(self) -> bool:
        """Whether they are whole numbers without a gap, each of which says its place."""
        return self.ids.dtype.kind == "i" and int(self.ids[-1]) - int(self.ids[0]) == len(self.ids) - 1

    def find(self, ids: Ids) -> Tensor:
        """The rows of ids, `[N]`, int64.

        Raises:
            InputError: some are unknown.
        """
        places, known = self.places(ids)
        if not known.all():
            raise InputError(f"the store has no items with these ids: {listed(ids[~known])}")
        return torch.from_numpy(self.rows[places])

    def with_ids(self, ids: Ids, rows: np.ndarray[Any, Any]) -> Index:
        """With more ids."""
        if not len(self.ids):
            return Index.of(ids, rows)
        return Index.of(np.concatenate([self.ids, ids]), np.concatenate([self.rows, rows]))

    def moved(self, places: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Index:
        """With other rows for the ids at some places."""
        own = self.rows.copy()
        own[places] = rows
        return Index(self.ids, own)

    def without(self, places: np.ndarray[Any, Any]) -> Index:
        """Without those at some places."""
        return Index(np.delete(self.ids, places), np.delete(self.rows, places))


@dataclass(frozen=True)
class Edition:
    """What a store holds from one change to the next: its items, the number of the edition, and since when (seconds
    since 1970)."""

    index: Index
    number: int = 1
    since: float = field(default_factory=time.time)

    @property
    def about(self) -> tuple[int, float]:
        """Its number, and since when."""
        return self.number, self.since

    def after(self, index: Index) -> Edition:
        """The next one, from now on."""
        return Edition(index, self.number + 1)


def listed(ids: Ids) -> str:
    """Ids for a message: the first of them."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(repr(x) for x in ids[:SHOWN].tolist()) + more
