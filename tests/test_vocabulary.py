"""How large ids may be is read from the graphs, wherever a plan looks them up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rankhoist_client.refusal import RequestError
from serving import CONTEXT, ITEMS, TAGS, USERS, Ranker, inputs, made_up
from torch import nn

import rankhoist
from rankhoist.errors import VocabularyError
from rankhoist.runtime.vocabulary import Vocabulary
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.model import ServedModel


@pytest.mark.parametrize("level", ["expand", "lookup", "request", "full"])
def test_every_level_knows_every_table(level: str):
    hoisted = rankhoist.hoist(Ranker().eval(), inputs(8, 8), context=list(CONTEXT), level=level)
    found = {name: set(bounds.tolist()) for name, bounds in hoisted.vocabulary.below.items()}
    assert found == {"user": {USERS}, "item": {ITEMS}, "tags": {TAGS}}


class Otherwise(nn.Module):
    """Every other way to look ids up: a weight indexed, also along two axes, bags, one hot; and computed ids."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.cell = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.randn(4, 9, 3))
        self.sums, self.means = nn.EmbeddingBag(11, 3, mode="sum"), nn.EmbeddingBag(13, 3, mode="mean")
        self.top = nn.Linear(6 + 5 + 6, 1)

    def forward(self, user, history, item, place, tags, kind, shifted):
        bags = self.sums(tags) + self.means(history) + self.sums(shifted + 1)
        kinds = [F.one_hot(kind, 5).float(), F.one_hot(shifted[:, 0] + 1, 6).float()]
        return self.top(torch.cat([self.row[user], self.cell[item, place] + bags, *kinds], 1))


SIZES = {"user": 7, "history": 13, "item": 4, "place": 9, "tags": 11, "kind": 5, "shifted": 4}


def ids(rows: int) -> dict[str, torch.Tensor]:
    width = {"history": (4,), "tags": (3,), "shifted": (2,)}
    return {name: torch.randint(0, size, (rows, *width.get(name, ()))) for name, size in SIZES.items()}


@pytest.mark.parametrize("level", ["expand", "lookup", "request", "full"])
def test_every_way_of_looking_up_is_bounded(level: str):
    hoisted = rankhoist.hoist(Otherwise().eval(), ids(8), context=["user", "history"], level=level)
    found = {name: set(bounds.tolist()) for name, bounds in hoisted.vocabulary.below.items()}
    assert found == {name: {size} for name, size in SIZES.items() if name != "shifted"}


class Read(nn.Module):
    """A table of 7 rows, read as `how` says."""

    def __init__(self, how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *shape: int) -> None:
        super().__init__()
        self.how, self.table = how, nn.Parameter(torch.randn(7, *shape))

    def forward(self, user, item):
        return (self.how(self.table, item) * user).sum(1)


def selected(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, ids).view(len(ids), -1)


READS = {
    "index_select": (selected, (3,)), "of numbers": (selected, ()), "of matrices": (selected, (3, 1)),
    "embedding": (lambda table, ids: F.embedding(ids, table), (3,)),
    "index": (lambda table, ids: table[ids], (3,)), "take": (lambda table, ids: table.take(ids)[:, None], ()),
}  # fmt: skip


@pytest.mark.parametrize("level", ["lookup", "full"])
@pytest.mark.parametrize("name", READS)
def test_ids_below_zero_are_refused_unless_the_model_counts_from_the_end(name: str, level: str):
    how, shape = READS[name]
    model, user = Read(how, *shape).eval(), torch.randn(1, 3 if shape else 1)
    hoisted = rankhoist.hoist(model, (user.expand(4, -1), torch.arange(4)), context=["user"], level=level)
    below = torch.tensor([2, -1])
    with pytest.raises(VocabularyError, match="input 'item' has id 7 in row 1"):
        hoisted(user, torch.tensor([2, 7]))
    if name in ("index", "take"):
        torch.testing.assert_close(hoisted(user, below), model(user.expand(2, -1), below))
        return
    with pytest.raises(IndexError):
        model(user.expand(2, -1), below)
    with pytest.raises(VocabularyError, match="'item'"):
        hoisted(user, below)


@pytest.mark.parametrize("wrong", [-2, 4, 30])  # of a one hot and of a bag
def test_computed_ids_out_of_range_are_the_request_s_fault(wrong: int):
    hoisted = rankhoist.hoist(Otherwise().eval(), ids(8), context=["user", "history"])
    model = ServedModel("model", "1", hoisted)
    batch = made_up(hoisted, 3)
    batch.candidates["shifted"] = torch.full((3, 2), wrong)

    async def ask() -> None:
        compute = Compute()
        try:
            await asyncio.wait_for(compute.score(Job(model, batch)), 60)
        finally:
            compute.close()

    if wrong == 4:
        asyncio.run(ask())
        return
    with pytest.raises(RequestError) as error:
        asyncio.run(ask())
    assert error.value.reason == "out_of_vocabulary"


def test_an_id_of_two_inputs_is_told_of_both():
    known = Vocabulary({}, {}, [{"candidate": {"row": ["user", "item"], "one": ["item"]}}], [{"candidate": {}}])
    assert str(known.explain(0, "row", 10, range(4))) == "inputs 'user' and 'item' have id 10, expected 0 to 3"
    assert str(known.explain(0, "one", 10, range(4))) == "input 'item' has id 10, expected 0 to 3"
