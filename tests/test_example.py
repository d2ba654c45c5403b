"""An example that the model itself does not take is refused when it is hoisted, in the model's words and by input."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import ExportError, InputError, VocabularyError


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.top = nn.Embedding(10, 4), nn.Embedding(20, 4), nn.Linear(10, 1)

    def forward(self, user: Tensor, age: Tensor, item: Tensor, price: Tensor) -> Tensor:
        return self.top(torch.cat([self.users(user), age, self.items(item % 40), price], 1)).squeeze(1)


def example(**other: Tensor) -> dict[str, Tensor]:
    rows = dict(user=torch.arange(9), age=torch.rand(9, 1), item=torch.arange(9), price=torch.rand(9, 1))
    return {**rows, **other}


def hoist(rows: dict[str, Tensor], model: nn.Module | None = None) -> rankhoist.HoistedModel:
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
def test_an_id_outside_of_its_table_is_told(rows: dict[str, Tensor], said: str) -> None:
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
def test_the_models_own_words_are_told(rows: dict[str, Tensor], said: str) -> None:
    """What exports all the same (of another dtype), and what does not."""
    with pytest.raises(InputError, match=f"(?s)the model itself fails on the example.*{said}"):
        hoist(rows)


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
    with pytest.raises(ExportError, match=r"(?s)weight.data.*F.linear\(x, self.weight \+ self.a @ self.b\)"):
        hoist(example(), model)
    assert torch.equal(model.top.weight, before)
    hoist(example(), Merged())
