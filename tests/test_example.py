"""An example that the model itself does not take is refused when it is hoisted, in the model's words and by input."""

import warnings
import zipfile
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import (
    CaptureError,
    ContextError,
    InputError,
    UnsupportedModelError,
    VocabularyError,
)


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.top = nn.Embedding(10, 4), nn.Embedding(20, 4), nn.Linear(10, 1)

    def forward(self, user: Tensor, age: Tensor, item: Tensor, price: Tensor) -> Tensor:
        return self.top(torch.cat([self.users(user), age, self.items(item % 40), price], 1)).squeeze(1)


def example(**other: Any) -> dict[str, Any]:
    rows = dict(user=torch.arange(9), age=torch.rand(9, 1), item=torch.arange(9), price=torch.rand(9, 1))
    return {**rows, **other}


def hoist(rows: dict[str, Any], model: nn.Module | None = None) -> rankhoist.HoistedModel:
    return rankhoist.hoist((model or Ranker()).eval(), rows, context=["user", "age"])


def test_what_the_model_takes_is_hoisted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hoist(example())


@pytest.mark.parametrize(
    "rows, said",
    [
        (example(user=torch.tensor([*range(8), 10])), "input 'user' has id 10 in row 8, expected 0 to 9"),
        (example(user=torch.tensor([-1, *range(8)])), "input 'user' has id -1 in row 0, expected 0 to 9"),
        (example(item=torch.tensor([*range(8), 23])), "the model computes id 23 from input 'item', expected 0 to 19"),
    ],
    ids=["too large", "negative", "computed"],
)
def test_an_id_outside_of_its_table_is_told(rows: dict[str, Any], said: str) -> None:
    with pytest.raises(VocabularyError, match=f"the model does not take its example: {said}"):
        hoist(rows)


@pytest.mark.parametrize(
    "rows, said",
    [
        (example(age=torch.rand(9, 1).double()), "'top'.*; the model's weights are float32, unlike 'age'"),
        (example(user=torch.rand(9)), r"'users' \(Embedding\): RuntimeError: .*user float32 \[9\]"),
        (example(age=torch.rand(9, 3)), r"'top' \(Linear\): RuntimeError: .*age float32 \[9, 3\]"),
        (example(price=torch.rand(9)), r"same number of dimensions.*price float32 \[9\]"),
    ],
    ids=["dtype", "ids that are floats", "width", "axes"],
)  # fmt: skip
def test_the_models_own_words_are_told(rows: dict[str, Any], said: str) -> None:
    """What exports all the same (of another dtype), and what does not."""
    with pytest.raises(InputError, match=f"(?s)the model itself fails on the example.*{said}"):
        hoist(rows)


OF_ANOTHER_KIND = {
    "one row of context": (example(user=torch.arange(1)), "the model was trained on: one row of context is repeated"),
    "an array": (example(user=np.arange(9)), r"input 'user' is ndarray, .*: torch.from_numpy\(x\)"),
    "a sparse tensor": (example(age=torch.rand(9, 1).to_sparse()), "input 'age' is torch.sparse_coo, .*to_dense"),
    "no values": (example(user=torch.arange(9, device="meta")), "input 'user' is on the meta device and has no values"),
    "a table": (SimpleNamespace(columns=["user"], to_numpy=None), r"x\[name\].to_numpy\(\)\) for name in x\}$"),
    "a column": (example(user=pa.array(range(9))), r"is Int64Array, .*: torch.from_numpy\(x.to_numpy\(\)\)"),
    "a dict of another kind": ((UserDict(example()),), r"is UserDict, .*A dict is taken apart: dict\(x\)"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_KIND)
def test_what_is_no_rows_is_told_with_what_makes_some(name: str) -> None:
    rows, said = OF_ANOTHER_KIND[name]
    model = Held() if isinstance(rows, tuple) else Ranker()
    with pytest.raises(InputError, match=said):
        rankhoist.hoist(model.eval(), rows, context=["user", "age"])


class Held(Ranker):
    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        return super().forward(**rows)


def test_a_list_in_the_place_of_a_tensor_is_told_by_its_input() -> None:
    """It was opened as a container: inputs `0`, `price`, ... were there and `user` was missing."""
    rows = example()
    with pytest.raises(InputError, match=r"^input 'user' is list, expected a tensor: torch.tensor\(x\)$"):
        hoist(rows)([3], rows["age"][:1], rows["item"], rows["price"])


@pytest.mark.parametrize(
    "columns", [np.array([0, 2]), torch.tensor([0, 2]), (0, 2)], ids=["NumPy", "PyTorch", "Python"]
)
def test_columns_are_whole_numbers_of_any_library(columns: Any) -> None:
    hoisted = rankhoist.hoist(nn.Linear(3, 1).eval(), (torch.rand(4, 3),), context={"input": columns})
    assert hoisted.interface.inputs["input"].columns == (0, 2)


@pytest.mark.parametrize("columns", [[True, False, True], torch.tensor([True, False, True]), "ab", [0.5]])
def test_a_mask_is_no_list_of_columns(columns: Any) -> None:
    with pytest.raises(ContextError, match=r"context columns of input 'input': .* is no whole number"):
        rankhoist.hoist(nn.Linear(3, 1).eval(), (torch.rand(4, 3),), context={"input": columns})


def test_a_model_that_returns_nothing_is_refused() -> None:
    class Forgot(Ranker):
        def forward(self, user: Tensor, age: Tensor, item: Tensor, price: Tensor) -> None:  # type: ignore[override]
            super().forward(user, age, item, price)

    with pytest.raises(UnsupportedModelError, match="returns no tensor"):
        hoist(example(), Forgot())


def test_a_file_that_is_no_archive_is_told_by_us_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """torch logs a traceback of its own, of a zip file that is no archive, too."""
    (tmp_path / "model.pt2").write_bytes(b"model")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as file:
        file.writestr("model", b"model")
    for name, said in {"model.pt2": "it is no zip file", "zip.pt2": "not a readable", "": "Is a directory"}.items():
        with pytest.raises(CaptureError, match=said):
            rankhoist.hoist(tmp_path / name, None, context=["user"])
    assert not caplog.records


class Merging(Ranker):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(1, 2)), nn.Parameter(torch.rand(2, 10))

    def forward(self, user: Tensor, age: Tensor, item: Tensor, price: Tensor) -> Tensor:
        self.top.weight.data += self.a @ self.b
        return super().forward(user, age, item, price)


class Merged(Merging):
    def forward(self, user: Tensor, age: Tensor, item: Tensor, price: Tensor) -> Tensor:
        x = torch.cat([self.users(user), age, self.items(item), price], 1)
        return F.linear(x, self.top.weight + self.a @ self.b).squeeze(1)


def test_a_weight_that_forward_writes_by_its_data_is_told_with_a_way_out() -> None:
    """A model that is refused is left as it was; what is advised is hoisted."""
    model = Merging()
    before = model.top.weight.clone()
    with pytest.raises(
        UnsupportedModelError, match=r"'top.weight' in forward.*F.linear\(x, self.weight \+ self.a @ self.b\)"
    ):
        hoist(example(), model)
    assert torch.equal(model.top.weight, before)
    hoist(example(), Merged())
