"""Ids outside of their tables: every form of a hoisted model refuses what the model itself refuses, and says which.

Exported code by itself reads another row for some of them: a wrong score, without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import VocabularyError
from rankhoist.runtime import load_onnx, load_package
from rankhoist.runtime.ids import Bounds

USERS, ITEMS, AGES, CODES, ROWS = 10, 20, 3, 9, 7


class Ranker(nn.Module):
    """Ids as they are, in a list with a constant, from bins, remapped, computed; and rows that wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.age = nn.Embedding(USERS, 4), nn.Embedding(ITEMS, 4), nn.Embedding(AGES, 4)
        self.codes, self.row, self.top = nn.Embedding(CODES, 4), nn.Parameter(torch.randn(ROWS, 4)), nn.Linear(28, 1)
        self.register_buffer("edges", torch.tensor([1.0, 2.0, 3.0]))  # four bins, and three rows
        self.register_buffer("remap", torch.tensor([0, 5, 8, 12]))  # the last one is no row

    def forward(self, user: Tensor, age: Tensor, item: Tensor, kind: Tensor, place: Tensor) -> Tensor:
        both = self.item(torch.stack([item, torch.full_like(item, 3)], 1)).flatten(1)
        ages = self.age(torch.bucketize(age, self.edges))
        shifted = self.user(user + 1)
        parts = [self.user(user), shifted, ages, both, self.codes(self.remap[kind]), self.row[place]]
        return self.top(torch.cat(parts, 1)).squeeze(1)


GOOD: dict[str, Any] = {"user": 1, "age": 0.5, "item": 19, "kind": 1, "place": -ROWS}
WRONG = [  # what is changed, and what is said of it
    ({"user": -1}, r"input 'user' has id -1.*, expected 0 to 9"),
    ({"user": USERS}, r"input 'user' has id 10.*, expected 0 to 9"),
    ({"user": USERS - 1}, r"computes .*from input.*'user'"),
    ({"age": 9.0}, r"computes .*from input.*'age'"),
    ({"item": -1}, r"input 'item' has id -1.*, expected 0 to 19|computes .*from input.*'item'"),
    ({"item": ITEMS}, r"input 'item' has id 20.*, expected 0 to 19|computes .*from input.*'item'"),
    ({"kind": 3}, r"computes .*from input.*'kind'"),
    ({"kind": -1}, r"computes .*from input.*'kind'"),
    ({"kind": 4}, r"input 'kind' has id 4.*, expected -4 to 3"),
    ({"place": ROWS}, r"input 'place' has id 7.*, expected -7 to 6"),
    ({"place": -ROWS - 1}, r"input 'place' has id -8.*, expected -7 to 6"),
]
FORMS = ["eager", "loaded", "inductor", "onnx", pytest.param("package", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Ranker().eval()


@pytest.fixture(scope="module")
def hoisted(model: nn.Module) -> rankhoist.HoistedModel:
    example = {n: torch.tensor([v] * 3) for n, v in (GOOD | {"place": 0}).items()}
    return rankhoist.hoist(model, example, context=["user", "age"], level="request")


@pytest.fixture(scope="module")
def folder(hoisted, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ids")


@pytest.fixture(scope="module", params=FORMS)
def form(request, hoisted, folder) -> Any:
    if request.param == "onnx":
        pytest.importorskip("onnxruntime")
        hoisted.export_onnx(folder / "onnx")
        return load_onnx(folder / "onnx")
    if request.param == "package":
        hoisted.package(folder / "package")
        return load_package(folder / "package")
    if request.param == "eager":
        return hoisted
    hoisted.save(folder / "file")
    return rankhoist.load(folder / "file").to_backend("inductor" if request.param == "inductor" else "eager")


def scored(form: Any, given: dict[str, Any], rows: int = 3) -> Tensor:
    one = {n: torch.tensor([v]) for n, v in given.items()}
    state = form.prepare({n: one[n] for n in ("user", "age")})
    return form.score(state, {n: one[n].expand(rows) for n in ("item", "kind", "place")})


def test_every_form_refuses_alike(form, model):
    given = {n: torch.tensor([v] * 3) for n, v in GOOD.items()}
    torch.testing.assert_close(scored(form, GOOD), model(**given).detach(), rtol=1e-4, atol=1e-5)
    for change, message in WRONG:
        with pytest.raises(IndexError):
            model(**{n: torch.tensor([v]) for n, v in (GOOD | change).items()})
        with pytest.raises(VocabularyError, match=message):
            scored(form, GOOD | change)
    assert scored(form, GOOD, rows=0).shape == (0,)


def test_a_manifest_has_the_bounds(hoisted, folder):
    pytest.importorskip("onnx")
    if not (folder / "onnx").exists():
        hoisted.export_onnx(folder / "onnx")
    about = json.loads((folder / "onnx" / "manifest.json").read_text())
    assert about["ids"]["context"] == {"user": {"lowest": 0, "below": USERS}}
    assert about["ids"]["candidate"]["place"] == {"lowest": -ROWS, "below": ROWS}
    for stage in about["stages"].values():
        assert stage["outputs"][-1] == "ids.outside" and len(stage["guards"]) >= 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_one_bound_or_one_per_value(dtype):
    one = Bounds.of(torch.tensor([0, 0]), torch.tensor([5, 5]), (2,))
    each = Bounds.of(torch.tensor([0, -7]), torch.tensor([5, 7]), (2,))
    assert one.below.dim() == 0 and Bounds.from_data(each.to_data()).below.tolist() == [5, 7]
    for value, inside in (([4, 4], (True, True)), ([0, -1], (False, True)), ([5, 0], (False, False))):
        rows = torch.tensor([[1, 1], value], dtype=dtype)
        assert (one.holds(rows), each.holds(rows)) == inside
    assert one.holds(torch.empty(0, 2, dtype=dtype))


def test_a_fraction_is_cut_off():
    """As `x.long()` does: -0.5 is row 0; what is no number is no row."""
    bounds = Bounds.of(torch.tensor([0]), torch.tensor([5]), ())
    assert bounds.holds(torch.tensor([-0.5, 4.5]))
    assert not any(bounds.holds(torch.tensor([x])) for x in (-1.0, 5.0, torch.nan, torch.inf))


class Rounded(nn.Module):
    """Ids that a float matrix holds, cut off or rounded down."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(5, 4), nn.Linear(9, 1)

    def forward(self, X: Tensor, y: Tensor) -> Tensor:
        return self.top(torch.cat([self.table(X[:, 0].long()), self.table(X[:, 1].floor().long()), y], 1))


def test_rounding_down_makes_another_id():
    hoisted = rankhoist.hoist(Rounded().eval(), (torch.rand(3, 2), torch.rand(3, 1)), context=["X"])
    assert hoisted.vocabulary.below["X"].tolist() == [5, 5]
    assert [len(side) for side in hoisted.vocabulary.computed[0].values()] == [1, 0]  # of the one that is rounded down
    with pytest.raises(VocabularyError, match="computes id -1 from input 'X', expected 0 to 4"):
        hoisted(torch.tensor([[-0.5, -0.5]]), torch.rand(2, 1))
    assert hoisted(torch.tensor([[-0.5, 0.5]]), torch.rand(2, 1)).shape == (2, 1)


class OfItems(nn.Module):
    """Ids of a request, an item and a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.places = nn.Embedding(5, 2), nn.Embedding(7, 2), nn.Embedding(3, 2)

    def forward(self, user: Tensor, item: Tensor, place: Tensor) -> Tensor:
        return (self.users(user) * self.items(item) * self.places(place)).sum(1)


def test_with_a_store_an_id_outside_of_its_table_is_named():
    model, few = OfItems().eval(), torch.arange(3)
    hoisted = rankhoist.hoist(model, (few, few, few), context=["user"], item=["item"])
    store = hoisted.catalogue({"item": torch.arange(7)})
    state = hoisted.prepare({"user": torch.tensor([4])}, store=store)
    for message, call in {
        "input 'user' has id 5 in row 0, expected 0 to 4": lambda: hoisted.prepare([torch.tensor([5])], store=store),
        "input 'item' has id -1 in row 1, expected 0 to 6": lambda: hoisted.catalogue([torch.tensor([1, -1])]),
        "input 'item' has id 7 in row 0, expected 0 to 6": lambda: store.update([torch.tensor([7])], [1]),
        "input 'place' has id 3 in row 1, expected 0 to 2": lambda: hoisted.score(
            state, store=store, rows=[0, 1], pair_inputs=[torch.tensor([2, 3])]
        ),
    }.items():
        with pytest.raises(VocabularyError, match=f"^{message}$"):
            call()
    scores = hoisted.score(state, store=store, rows=torch.tensor([6, 1], dtype=torch.uint8), pair_inputs=[few[:2]])
    assert torch.allclose(scores, model(torch.tensor([4, 4]), torch.tensor([6, 1]), few[:2]))
    assert hoisted.score(state, store=store, rows=[], pair_inputs=[few[:0]]).shape == (0,)
