"""Models that cut the rows of a call into pieces of so many, and join what they make of these."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import assert_equal, repeated
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import ExportError

PIECE = 20  # rows
OFFSETS = [0, 30, 30, 31, 93]

Norm = Callable[[Tensor], Tensor]


def asked_first(f: Norm, x: Tensor) -> Tensor:
    if x.shape[0] <= PIECE:
        return f(x)
    return torch.cat([f(p) for p in x.split(PIECE)])


CUT: dict[str, Callable[[Norm, Tensor], Tensor]] = {
    "chunk": lambda f, x: torch.cat([f(p) for p in x.chunk(math.ceil(len(x) / PIECE))]),
    "chunk_along": lambda f, x: torch.cat([f(p) for p in torch.chunk(x, int(np.ceil(x.shape[0] / PIECE)), dim=0)]),
    "chunk_by_whole_numbers": lambda f, x: torch.cat([f(p) for p in x.chunk((x.size(0) + PIECE - 1) // PIECE, 0)]),
    "split": lambda f, x: torch.cat([f(p) for p in x.split(PIECE)], dim=0),
    "split_along": lambda f, x: torch.vstack([f(p) for p in torch.split(x, PIECE, 0)]),
    "tensor_split": lambda f, x: torch.cat([f(p) for p in x.tensor_split((len(x) + PIECE - 1) // PIECE)]),
    "twice": lambda f, x: CUT["split"](lambda y: CUT["chunk"](f, y), x),
    "asked_first": asked_first,
}
OTHERWISE: dict[str, Callable[[Norm, Tensor], Tensor]] = {
    "unlike": lambda f, x: torch.cat([f(p) * n for n, p in enumerate(x.split(PIECE), 1)]),
    "the_first_for_all": lambda f, x: torch.cat([f(x.split(PIECE)[0][: len(p)]) for p in x.split(PIECE)]),
    "rows_meet": lambda f, x: torch.cat([f(p - p.mean(0)) for p in x.split(PIECE)]),
    "backwards": lambda f, x: torch.cat([f(p) for p in reversed(x.split(PIECE))]),
    "another_for_many": lambda f, x: f(x) if len(x) <= PIECE else f(x) + 1,
    "another_for_many_pieces": lambda f, x: torch.cat(
        [f(p) * (1 if i < 8 else 2) for i, p in enumerate(x.split(PIECE))]
    ),
    "many_at_once": lambda f, x: f(x) if len(x) <= 5000 else f(x) + 1,
}


class Cutting(nn.Module):
    """A batch norm, piece by piece, and a layer behind it."""

    def __init__(self, cut: Callable[[Norm, Tensor], Tensor]) -> None:
        super().__init__()
        self.cut, self.norm, self.layer = cut, nn.BatchNorm1d(9), nn.Linear(9, 4)
        nn.init.normal_(self.norm.weight)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        made: Tensor = self.layer(self.cut(self.norm, torch.cat([user, item], 1)))
        return made


def example(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6).double(), torch.randn(rows, 3).double()


@pytest.mark.parametrize("rows", [4, 50])
@pytest.mark.parametrize("cut", CUT)
def test_rows_in_pieces_are_rows(cut, rows):
    model = Cutting(CUT[cut]).double().eval()
    hoisted = rankhoist.hoist(model, example(rows), context=["user"])
    users, items = example(4)[0], example(93)[1]
    assert_equal(hoisted(users, items, request_offsets=OFFSETS), model(repeated(users, OFFSETS), items))
    assert_equal(hoisted(users[:1], items[:1]), model(users[:1], items[:1]))
    assert len(hoisted(users[:1], items[:0])) == 0
    assert rankhoist.verify(hoisted, model, seed=0).passed
    thousand = rankhoist.hoist(model, example(rows), context=["user"], workload=rankhoist.Workload(1000))
    assert thousand.report().total().after.multiply_adds < 1000 * 4 * 9


@pytest.mark.parametrize("cut", OTHERWISE)
def test_what_is_another_of_several_pieces_is_refused(cut):
    with pytest.raises(ExportError, match="it fixes the number of rows"):
        rankhoist.hoist(Cutting(OTHERWISE[cut]).double().eval(), example(4), context=["user"])


class OfIds(nn.Module):
    """Rows of a table meet in a piece, and those of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4).double()

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        users: Tensor = self.table(user)
        return torch.cat([p - p.mean(0) for p in users.split(PIECE)]) + item[:, :4]


@pytest.mark.parametrize("number", [0, 3])
def test_equal_rows_do_not_hide_that_they_meet(number):
    user, item = example(4)
    alike = user[:1].repeat(4, 1), item[:1].repeat(4, 1)
    for name in ("rows_meet", "the_first_for_all"):
        with pytest.raises(ExportError, match="it fixes the number of rows"):
            rankhoist.hoist(Cutting(OTHERWISE[name]).double().eval(), alike, context=["user"])
    with pytest.raises(ExportError, match="it fixes the number of rows"):
        rankhoist.hoist(OfIds().eval(), (torch.full((4,), number), torch.randn(4, 4).double()), context=["user"])


def test_pieces_that_no_longer_vary_are_refused():
    """A piece of two rows is a constant to torch.export."""
    for cut in (lambda f, x: torch.cat([f(p) for p in x.split(2)]), lambda f, x: torch.cat([f(p) for p in x.chunk(2)])):
        with pytest.raises(ExportError, match="it fixes the number of rows"):
            rankhoist.hoist(Cutting(cut).double().eval(), example(4), context=["user"])


def test_pieces_of_a_model_that_is_trained_are_refused():
    """Its norms take the mean of a piece."""
    with pytest.raises(ExportError, match="it fixes the number of rows"):
        rankhoist.grouped(Cutting(CUT["chunk"]).double(), example(4), context=["user"])
