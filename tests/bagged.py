"""What tests of jagged inputs share: bags of ids, what cuts values into them, and the comparison over whole rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from helpers import LEVELS, assert_equal, at_every_level, kept, reasons
from torch import Tensor, nn

from rankhoist import HoistedModel, Jagged
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules

IDS = 40
SIZES = (0, 3, 20, 1, 0, 7, 2, 11, 5)
DOUBLE = torch.float64
WIDTH = 6


class Pooled(nn.Module):
    """A user's and an item's tags, each in bags, and a number of the item."""

    def __init__(self, mode: str = "sum", **how: object) -> None:
        super().__init__()
        self.user = nn.EmbeddingBag(IDS, WIDTH, mode=mode, dtype=DOUBLE, **how)
        self.item = nn.EmbeddingBag(IDS, WIDTH, mode=mode, dtype=DOUBLE, **how)
        self.top = nn.Linear(2 * WIDTH + 1, 1, dtype=DOUBLE)

    def forward(self, tags: Tensor, tag_offsets: Tensor, words: Tensor, word_offsets: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.user(tags, tag_offsets), self.item(words, word_offsets), price], 1)
        return self.top(x).squeeze(1)


class Weighted(Pooled):
    """The same, every tag of the user with a weight."""

    def forward(self, tags, tag_offsets, words, word_offsets, price, strengths):
        x = torch.cat([self.user(tags, tag_offsets, strengths), self.item(words, word_offsets), price], 1)
        return self.top(x).squeeze(1)


def bags(sizes: Sequence[int], weights: bool = False, seed: int = 0) -> Jagged:
    """Ids, and a weight for each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(IDS, (sum(sizes),), generator=generator)
    columns = [ids, torch.rand(len(ids), generator=generator, dtype=DOUBLE)] if weights else [ids]
    return Jagged(*columns, lengths=torch.tensor(sizes))


def starts(lengths: Tensor) -> Tensor:
    """Where each bag begins, `[rows]`."""
    return lengths.cumsum(0) - lengths


def ends(lengths: Tensor) -> Tensor:
    """The same and where the last one ends, `[rows + 1]`."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def check(
    model: nn.Module, example: tuple[Any, ...], context: list[str], jagged: dict[str, Any],
    sides: tuple[Mapping[str, Any], Mapping[str, Any]], call: Callable[[dict[str, Any]], Any],
    levels: Sequence[Level] = LEVELS,
) -> list[HoistedModel]:  # fmt: skip
    """Equal to `call` over whole rows at all levels: one request, and three ragged ones of which one is empty."""
    program = capture(model, example, context, all_rules(), jagged=jagged)
    made = [*at_every_level(program, levels).values()]
    compared = [*made, kept(program)]
    context_rows, candidate_rows = sides
    count = len(next(iter(candidate_rows.values())))
    for offsets in ([0, count], [0, 4, 4, count]):
        owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), torch.tensor(offsets).diff())
        requests = {n: x[: len(offsets) - 1] for n, x in context_rows.items()}
        want = call({n: x[owner] for n, x in requests.items()} | dict(candidate_rows))
        for hoisted in compared:
            state = hoisted.prepare(requests)
            assert_equal(hoisted.score(state, candidate_rows, offsets), want, f"{hoisted.level}, {offsets}")
            assert not [r for r in reasons(hoisted) if "please report" in r], "a rule broke"
    return made
