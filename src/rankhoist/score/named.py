"""Items that a column of the file names: all rows of an id in a part have the inputs of its first row there.

So items that are known are not read again. That rows of one id agree is what the column promises: in a block that is
read anyway, because an item is new, some of the others are compared with the first of their id, or all of all blocks
where that is asked for. A part begins with no item known: its rows do not depend on which parts were scored before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.score.columns import alike
from rankhoist.score.layouts import Block, Ints, Wanted
from rankhoist.score.stocked import Repeats, of_side

COMPARED = 17  # of the rows that are read, one in so many; a prime, so that all places of requests have their turn


class Named(Repeats):
    """The items of one part of a job, as they come; `every`: all rows are compared with the first of their id."""

    def __init__(self, model: HoistedModel, wanted: Wanted, every: bool) -> None:
        super().__init__(model)
        self._wanted, self._every = wanted, every
        self._first: dict[str, Tensor] = {}  # input -> `[items so far, ...]`

    def _read(self, block: Block, numbers: Ints, new: Ints) -> None:
        if not len(new) and not self._every:
            return
        assert block.items is not None, "its layout reads items where they are wanted"
        step = 1 if self._every else COMPARED
        places = np.union1d(new, np.arange(0, len(numbers), step))
        given = of_side("item", block.items(places), self._sides)
        at = torch.from_numpy(np.searchsorted(places, new))
        items = {name: x[at] for name, x in given.items()}
        self._first = {n: torch.cat([self._first[n], x]) if n in self._first else x for n, x in items.items()}
        self._compare(block, given, torch.from_numpy(numbers[places]), places)
        self._add(items)

    def _compare(self, block: Block, given: dict[str, Tensor], numbers: Tensor, places: Ints) -> None:
        """Refuse rows that are not as the first of their id."""
        assert block.ids is not None, "its layout has ids"
        for name, rows in given.items():
            odd = torch.nonzero(~alike(self._first[name][numbers], rows)).flatten()
            if len(odd):
                place, wanted = int(places[odd[0]]), self._wanted
                column = next(f.column for f in wanted.items if f.input == name)
                raise ScoringError(
                    f"{block.where(place)}, column {column!r}: another value than in the first row of the same item, "
                    f"{wanted.item_id} {block.ids[place].as_py()!r}; rows of one id share what is the item's. Without "
                    "--item-id, items are told apart by all of their values"
                )
