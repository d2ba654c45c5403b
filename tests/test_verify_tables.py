"""Large tables are not held in float64 to verify a model: the same certificate comes out, and no table is lifted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankhoist
from rankhoist.verify import tables
from rankhoist.verify.tables import Tables

USERS, ITEMS = torch.randint(8, (8, 5)), torch.randint(30, (8,))


class Ranker(nn.Module):
    """Rows of a table of users and of one of items; `reads` says how."""

    def __init__(self, reads: Callable[[Ranker, Tensor], Tensor]) -> None:
        super().__init__()
        self.reads = reads
        self.users, self.items = nn.Embedding(40, 6), nn.Embedding(30, 6)
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.layers(torch.cat([self.reads(self, user), self.items(item)], 1)).squeeze(1)


def bags(m: Ranker, ids: Tensor, **how: Any) -> Tensor:
    starts = torch.arange(ids.shape[0]) * ids.shape[1]
    return F.embedding_bag(ids.flatten(), m.users.weight, starts, **how)


READS = {
    "rows": lambda m, ids: m.users(ids).mean(1),
    "bags": lambda m, ids: bags(m, ids, mode="sum", padding_idx=3),
    "means": bags,
    "weighted": lambda m, ids: bags(m, ids, mode="sum", per_sample_weights=torch.ones(ids.numel()) / 3),
    "index": lambda m, ids: m.users.weight[ids].sum(1),
    "select": lambda m, ids: m.users.weight.detach().index_select(0, ids[:, 0]),
    "gather": lambda m, ids: m.users.weight.t().gather(1, ids[:, :1].t().expand(6, -1)).t(),
    "normalised": lambda m, ids: F.normalize(m.users.weight, dim=1)[ids[:, 0]],
}


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def from_now_on() -> None:
        monkeypatch.setattr(tables, "MODEL", 0)
        monkeypatch.setattr(tables, "TABLE", 30 * 6 * 4)

    return from_now_on


def certified(model: nn.Module, hoisted: rankhoist.HoistedModel, rows: tuple[Tensor, Tensor]) -> list[Any]:
    """What the truth was, and which checks have passed."""
    made = rankhoist.verify(hoisted, model, rows, candidates=(1, 20))
    assert made.passed, str(made)
    return [made.truth, made.row_independent, *((check.name, check.tolerance) for check in made.checks)]


@pytest.mark.parametrize("how", READS)
def test_certificates_are_those_of_tables_in_float64(how: str, all_are_large: Callable[[], None], tmp_path: Path):
    model = Ranker(READS[how]).eval()
    hoisted = rankhoist.hoist(model, (USERS, ITEMS), context=["user"])
    hoisted.save(tmp_path / "ranker.rankhoist")
    loaded = rankhoist.load(tmp_path / "ranker.rankhoist")
    rows = (torch.randint(8, (8, 5)), ITEMS)
    before = [certified(model, own, rows) for own in (hoisted, loaded)]
    all_are_large()
    lifted: list[Tensor] = []
    held = Tables.lifted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tables, "lifted", lambda own, x: lifted.append(held(own, x)) or lifted[-1])
        assert [certified(model, own, rows) for own in (hoisted, loaded)] == before
    assert {t.dtype for t in lifted if t.dim() == 2 and t.shape[1] == 6} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_other_weights_are_found(all_are_large: Callable[[], None]):
    all_are_large()
    model = Ranker(READS["rows"]).eval()
    hoisted = rankhoist.hoist(model, (USERS, ITEMS), context=["user"])
    state = {name: x.clone() for name, x in model.state_dict().items()}
    state["items.weight"] *= 1.1
    hoisted.update_weights(state)
    assert not rankhoist.verify(hoisted, model, candidates=(20,)).passed


def test_small_models_and_tables_are_lifted():
    model = Ranker(READS["rows"])
    small = Tables(model.parameters())
    assert small.lifted(model.users.weight).dtype == torch.float64
    with small.looked_up():
        assert model.users.weight[:2].dtype == torch.float32
