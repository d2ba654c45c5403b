"""A jagged feature, as the client sends it: a bag of values for every row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rankhoist_client.errors import InputError


class Jagged:
    """Bags of values, one a row; in JSON a list of lists, in binary `NAME.values` and `NAME.lengths`.

    Args:
        values: `[total, ...]`, the bags one after the other.
        lengths: `[rows]`, how many values each row has.

    Raises:
        InputError: the lengths do not cut the values into bags.
    """

    def __init__(self, values: npt.ArrayLike, lengths: npt.ArrayLike) -> None:
        self.values, self.lengths = np.asarray(values), np.asarray(lengths)
        whole = self.lengths.ndim == 1 and (self.lengths.dtype.kind in "iu" or not self.lengths.size)
        if not whole or not self.values.ndim or (self.lengths < 0).any() or self.lengths.sum() != len(self.values):
            sizes = f"{list(self.values.shape)} and lengths {self.lengths.tolist()}"
            raise InputError(f"jagged values {sizes:.200} do not fit: lengths [rows] add up to the number of values")
        self.lengths = self.lengths.astype(np.int64)

    @staticmethod
    def of(rows: Sequence[Sequence[Any]], dtype: npt.DTypeLike | None = None) -> Jagged:
        """From a list per row: `Jagged.of([[3, 5], [], [7]])`.

        Args:
            dtype: of the values; where there is none at all, int64 unless it is given.
        """
        values = list(itertools.chain.from_iterable(rows))
        kind = np.int64 if dtype is None and not values else dtype
        return Jagged(np.asarray(values, kind), np.fromiter(map(len, rows), np.int64, len(rows)))

    def rows(self) -> list[Any]:
        """A list per row."""
        ends = [0, *self.lengths.cumsum().tolist()]
        return [self.values[a:b].tolist() for a, b in itertools.pairwise(ends)]


def apart(features: Mapping[str, Any]) -> dict[str, Any]:
    """Features with two tensors in place of each that is jagged."""
    made: dict[str, Any] = {}
    for name, value in features.items():
        if isinstance(value, Jagged):
            made |= {f"{name}.values": value.values, f"{name}.lengths": value.lengths}
        else:
            made[name] = value
    return made
