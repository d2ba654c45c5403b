"""The item stage of one version of the weights: inputs of items -> what is kept of them, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.emit import Catalogue
from rankhoist.runtime.ids import Feed, Guard
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.weights import Weights

BLOCK = 4096  # items that are computed at once


@dataclass(frozen=True)
class ItemStage:
    """Computes what a store keeps.

    Attributes:
        catalogue: the graphs.
        weights: the version that it computes with.
        inputs: what items are given as, in which dtype and on which device.
        guard: says which id is outside of its table.
    """

    catalogue: Catalogue
    weights: Weights
    inputs: Inputs
    guard: Guard

    def checked(self, items: Mapping[str, Any] | Sequence[Any]) -> tuple[dict[str, Tensor], int]:
        """The inputs of M items by name, `[M, ...]`, and M.

        Raises:
            InputError: one is missing or has the wrong kind, dtype, shape or row count.
            VocabularyError: an id is outside of its table. A store may keep the id, for calls to look up.
        """
        given = self.inputs.of_side("item", items)
        count = self.inputs.accept("item", given)
        self.guard.check_all("item", given)
        return given, count

    def __call__(self, items: Mapping[str, Tensor], start: int, end: int) -> Sequence[Tensor]:
        """What is kept of the items from `start` to `end`, one tensor `[end - start, ...]` per kept node."""
        rows = {name: x[start:end].to(self.inputs.device) for name, x in items.items()}
        arguments = [rows[a] if isinstance(a, str) else a for a in self.weights.item]
        with torch.no_grad():
            return self.guard.watched(
                self.catalogue.item.run, Feed((end - start, None, None, *arguments), "item", items)
            )

    @cached_property
    def version(self) -> str:
        """32 hexadecimal digits that depend on the graph and on all weights that it reads."""
        digest = hashlib.sha256(str(self.catalogue.item.module.graph).encode())
        for argument in self.weights.item:
            if isinstance(argument, Tensor):
                digest.update(f"{argument.dtype} {tuple(argument.shape)}".encode())
                digest.update(argument.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]


def blocks(rows: int) -> list[tuple[int, int]]:
    """Items from, to (not included), of every block."""
    return [(start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK)]
