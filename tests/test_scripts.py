"""TorchScript inside of models: scripted, traced and frozen parts become operators; weights keep their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, hoisted_at
from torch import Tensor, nn

import rankhoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.errors import CaptureError, ExportError

WIDTH = 4


class Tower(nn.Module):
    """Branches on an argument that is no tensor, on one that may be None, and on a size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor, twice: bool = True, other: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        for layer in self.layers:
            x = torch.relu(layer(x))
        if other is not None:
            x = x + other
        if twice and x.shape[1] > 2:
            x = x * 2
        return x, {"sum": x.sum(1)}


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.GRU(1, WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x.unsqueeze(2))[0][:, -1]


class Around(nn.Module):
    def __init__(self, user: nn.Module, item: nn.Module) -> None:
        super().__init__()
        self.user, self.item = user.double().eval(), item.double().eval()

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        made = self.user(user)
        return (made * self.item(item)).sum(1)


class Several(Around):
    """One script is called for both sides, once with arguments by name."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x, _ = self.user(user)
        y, sums = self.user(x=item, twice=True, other=None)
        return (x * self.item(y)).sum(1) + sums["sum"]


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))


def script(model: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.script(model.double().eval())
    return made


def traced(model: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.trace(model.double().eval(), torch.randn(3, WIDTH, dtype=torch.float64))
    return made


MODELS: dict[str, Any] = {
    "scripted": lambda: Around(script(tower()), tower()),
    "traced": lambda: Around(traced(tower()), script(tower())),
    "frozen": lambda: Around(torch.jit.freeze(script(tower())), tower()),
    "recurrent": lambda: Around(script(Steps()), tower()),
    "arguments": lambda: Several(script(Tower()), tower()),
    "inside of others": lambda: Around(nn.Sequential(tower(), nn.ModuleDict({"a": script(tower())})["a"]), tower()),
}


def sides(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, WIDTH, dtype=torch.float64), torch.randn(count, WIDTH, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_scripts_inside_are_equal_and_hoisted(name: str):
    model = MODELS[name]()
    before = dict(model.named_modules())
    user, item = sides(5)
    made = hoisted_at(capture(model, (user.expand(5, -1), item), ["user"]), Level.REQUEST)
    for count in (1, 7):
        user, item = sides(count)
        assert_equal(made(user, item), model(user.expand(count, -1), item), name)
    assert made.state_dict().keys() == model.state_dict().keys()
    assert {n: id(m) for n, m in model.named_modules()} == {n: id(m) for n, m in before.items()}, "all is put back"
    other = MODELS[name]()
    if name != "frozen":  # its weights are constants
        made.update_weights(other.state_dict())
        assert_equal(made(user, item), other(user.expand(count, -1), item), name)


def test_they_are_verified():
    model = MODELS["scripted"]()
    user, item = sides(4)
    made = rankhoist.hoist(model, (user.expand(4, -1), item), context=["user"])
    assert rankhoist.verify(made, model, candidates=(1, 7), requests=(1, 3)).passed


class Loop(nn.Module):
    """As often as a value says."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.sum()) % 3):
            x = x * 2
        return x


def test_what_cannot_be_converted_is_named():
    model = Around(nn.Sequential(tower(), script(Loop())), tower())
    with pytest.raises(
        ExportError, match=r"'user.1', which is the TorchScript module Loop.*Hoist the nn.Module that it"
    ):
        capture(model, (torch.randn(4, WIDTH).double(), torch.randn(4, WIDTH).double()), ["user"])


def test_a_model_that_fails_on_its_example_says_so():
    with pytest.raises(CaptureError, match="the model fails on rows of its example: RuntimeError"):
        capture(MODELS["scripted"](), (torch.randn(4, 3).double(), torch.randn(4, WIDTH).double()), ["user"])
