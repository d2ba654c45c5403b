"""What a model returns beside tensors: numbers that its rows say, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import nn

from rankhoist import hoist, load
from rankhoist.errors import BackendError, UnsupportedModelError


def rows(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 2), torch.randn(count, 3)


class Numbered(nn.Module):
    """Returns a number beside its scores."""

    def __init__(self, number: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.number = number

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return user.sum(1) * item.sum(1), self.number(user, item)


def test_the_number_of_rows_may_be_returned(tmp_path):
    model = Numbered(lambda user, item: {"batch": user.shape[0], "sizes": item.shape, "half": len(item) // 2 + 1})
    hoisted = hoist(model.eval(), rows(), context=["user"])
    hoisted.save(tmp_path / "numbered.rankhoist")
    user, item = rows(7)
    expected = model(user[[0, 0, 0, 1, 1, 1, 1]], item)
    loaded = load(tmp_path / "numbered.rankhoist")
    for own in (hoisted, loaded, hoisted.to_backend("inductor")):
        scores, numbers = own(user[:2], item, request_offsets=[0, 3, 7])
        assert_equal(scores, expected[0])
        assert numbers == expected[1]
    with pytest.raises(BackendError, match="number that changes with the number of rows, and only tensors"):
        hoisted.export_onnx(tmp_path)


@pytest.mark.parametrize(
    "number",
    [lambda user, item: (user[:, 0] > 0).sum().item(), lambda user, item: len(item) / 2,
     lambda user, item: item[:, 0].nonzero().shape[0]],
    ids=["out of data", "no whole number", "measured"],
)  # fmt: skip
def test_other_numbers_are_not_returned(number):
    with pytest.raises(UnsupportedModelError, match="returns a number that is no tensor and no number of rows"):
        hoist(Numbered(number).eval(), rows(), context=["user"])


def test_the_length_of_an_axis_that_varies_is_not_returned():
    model = Numbered(lambda user, item: user.shape[1]).eval()
    with pytest.raises(UnsupportedModelError, match="no number of rows"):
        hoist(model, rows(), context=["user"], dynamic={"user": {1: (2, 9)}})


def test_one_candidate_has_a_row_where_the_model_loses_it():
    """What docs/limits.md says of `squeeze()`."""

    class Lost(nn.Module):
        def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return (user.sum(1, keepdim=True) * item).sum(1, keepdim=True).squeeze()

    model = Lost().eval()
    hoisted, (user, item) = hoist(model, rows(), context=["user"]), rows(1)
    assert model(user, item).shape == ()
    assert_equal(hoisted(user, item), model(user, item).reshape(1))
