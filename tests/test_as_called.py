"""Models that ask whether they are traced: what counts is what they compute when they are called."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.compiler import is_compiling

import rankhoist
from rankhoist.capture import as_called
from rankhoist.errors import UnsupportedModelError

ASKS: dict[str, Callable[[], bool]] = {
    "is_compiling": lambda: torch.compiler.is_compiling(),
    "is_exporting": lambda: torch.compiler.is_exporting(),
}


class Asking(nn.Module):
    """A gate that is another where the model is traced."""

    def __init__(self, asks: Callable[[], bool], otherwise: bool = True) -> None:
        super().__init__()
        self.asks, self.otherwise = asks, otherwise
        self.gate, self.top = nn.Linear(9, 4), nn.Linear(4, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(torch.cat([user, item], 1)))
        if not self.asks() or not self.otherwise:
            gate = gate * torch.sqrt(1 - gate**2)
        score: Tensor = self.top(gate)
        return score


def hoisted(model: nn.Module) -> rankhoist.HoistedModel:
    return rankhoist.hoist(
        model.double().eval(), (torch.randn(4, 6).double(), torch.randn(4, 3).double()), context=["user"]
    )


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS)
def test_scores_are_those_of_the_model_when_it_is_called(asks):
    model = Asking(asks)
    user, item = torch.randn(1, 6).double(), torch.randn(20, 3).double()
    assert_equal(hoisted(model)(user, item), model(user.expand(20, 6), item))
    assert not torch.compiler.is_compiling() and torch.compiler.is_compiling is is_compiling


def test_who_computes_the_same_is_exported_once():
    with mock.patch.object(as_called, "_not_traced", side_effect=AssertionError):
        hoisted(Asking(ASKS["is_compiling"], otherwise=False))


def test_who_cannot_be_told_otherwise_is_refused():
    with pytest.raises(UnsupportedModelError, match="computes something else where it is traced"):
        hoisted(Asking(lambda: is_compiling()))


def test_what_cannot_be_held_beside_the_model_is_no_second_try():
    """The first export is known to differ; of the others nothing is known."""
    with mock.patch.object(as_called, "_same", side_effect=[False, None, None]), pytest.raises(UnsupportedModelError):
        hoisted(Asking(ASKS["is_compiling"]))


def checked(x: Tensor) -> Tensor:
    if type(x) is not Tensor:
        raise TypeError(f"no tensor: {type(x)}")
    return x.tanh()


@pytest.mark.parametrize(
    "told",
    [
        lambda x: 2 * x if type(x) is Tensor else x,
        lambda x: {Tensor: torch.exp}.get(type(x), torch.neg)(x),
        lambda x: 2 * x if x.__class__ == Tensor else x,
        checked,
    ],
)
def test_a_tensor_is_of_its_own_type(told: Callable[[Tensor], Tensor]):
    class Typed(Asking):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return told(self.gate(torch.cat([user, item], 1)))

    model = Typed(bool)
    user, item = torch.randn(1, 6).double(), torch.randn(20, 3).double()
    assert_equal(hoisted(model)(user, item), model(user.expand(20, 6), item))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        self.calls.view(3)[1:] += 1
        return (user[:, :3] * item * self.calls).sum(1)


def test_buffers_of_a_model_that_writes_to_them_stay_as_they_are():
    model = Counting()
    with pytest.raises(UnsupportedModelError, match="writes to its buffer 'calls'"):
        hoisted(model)
    assert not model.calls.any()


class Halving(nn.Module):
    """Writes to what it is given, and to what it makes of it: nothing that outlives a call of the hoisted model."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        user.mul_(0.5)
        return (user[:, :3] * item).view(-1, 3).exp_().sum(1)


def test_who_writes_to_its_inputs_is_held_beside_its_graph():
    with mock.patch.object(as_called, "leaves_alike", return_value=True) as held:
        hoisted(Halving())
    assert held.called


def test_torch_itself_is_answered_as_ever():
    with mock.patch("torch.compiler._is_compiling_flag", True), as_called._not_traced():
        assert not torch.compiler.is_compiling()
        assert torch._dynamo.external_utils.is_compiling()  # asks torch.compiler


class Alone(nn.Module):
    """What it makes of a row alone is `one`'s."""

    def __init__(self, one: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one = one

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.one(user, item) if len(user) == 1 else (user.sum(1) * item.sum(1))


def test_a_model_that_scores_one_row_otherwise_is_refused():
    """torch.export takes it for granted that a call has several."""
    example = torch.randn(4, 5), torch.randn(4, 3)
    with pytest.raises(UnsupportedModelError, match="scores one row alone otherwise than among others"):
        rankhoist.hoist(Alone(lambda u, i: u.sum(1)).eval(), example, context=["user"])


def test_one_row_may_lose_its_axis_or_fail():
    def fails(user: Tensor, item: Tensor) -> Tensor:
        raise ValueError("one is not enough")

    example = torch.randn(4, 5), torch.randn(4, 3)
    for one in (lambda u, i: (u.sum(1) * i.sum(1)).squeeze(), fails):
        scores = rankhoist.hoist(Alone(one).eval(), example, context=["user"])(example[0][:1], example[1][:1])
        assert_equal(scores, example[0][:1].sum(1) * example[1][:1].sum(1))
