"""Models as their authors write them: dataclasses, hooks, weights that are not there yet, lines that do not export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_equal, hoisted_at
from torch import Tensor, nn

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.errors import ExportError, InputError, UnsupportedModelError

WIDTH = 3


@dataclass
class Batch:
    user: Tensor
    item: Tensor
    other: Tensor | None = None


@dataclass
class Plain:
    user: Tensor
    item: Tensor


class Pair(NamedTuple):
    user: Tensor
    item: Tensor


torch.export.register_dataclass(Batch)


class Reads(nn.Module):
    def __init__(self, returned: Any = None) -> None:
        super().__init__()
        self.user, self.item, self.returned = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), returned

    def forward(self, batch: Any) -> Any:
        made = self.user(batch.user) * self.item(batch.item)
        return self.returned(made, batch.user) if self.returned else made


def sides(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, WIDTH, dtype=torch.float64), torch.randn(count, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Batch, Pair])
def test_inputs_in_containers_of_ones_own(kind: Any):
    model = Reads().double().eval()
    user, item = sides(5)
    made = hoisted_at(capture(model, (kind(user.expand(5, -1), item),), ["user"]), Level.REQUEST)
    user, item = sides(7)
    assert_equal(made(kind(user, item)), model(kind(user.expand(7, -1), item)))


def test_a_dataclass_that_torch_does_not_know_is_told_how():
    x = torch.randn(4, WIDTH)
    with pytest.raises(
        InputError, match=r"'batch' is Plain, .*Register its type: torch.export.register_dataclass\(Plain\)"
    ):
        capture(Reads().eval(), (Plain(x, x),), ["user"])
    with pytest.raises(ExportError, match=r"Register a dataclass: torch.export.register_dataclass"):
        capture(Reads(Plain).eval(), (Pair(x, x),), ["user"])


class Two(nn.Module):
    def __init__(self, user: nn.Module | None = None) -> None:
        super().__init__()
        self.user = user or nn.Linear(WIDTH, WIDTH)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.user(user) * item


@pytest.mark.parametrize("by_name", [True, False])
def test_hooks_see_arguments_as_the_example_gives_them(by_name: bool):
    model = Two().double().eval()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {name: x + 1 for name, x in kwargs.items()}), with_kwargs=True
    )

    def given(user: Tensor, item: Tensor) -> Any:
        return {"user": user, "item": item} if by_name else (user, item)

    user, item = sides(5)
    made = hoisted_at(capture(model, given(user.expand(5, -1), item), ["user"]), Level.REQUEST)
    user, item = sides(7)
    whole = user.expand(7, -1)
    if by_name:
        assert_equal(made(user=user, item=item), model(user=whole, item=item))
    else:
        assert_equal(made(user, item), model(whole, item))
    with pytest.raises(InputError, match="do not fit the model's signature"):
        made(*given(user, item).values()) if by_name else made(user=user, item=item)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (nn.LazyLinear(WIDTH), r"parameter 'user.weight' has no shape yet: its module is lazy"),
        (nn.Linear(WIDTH, WIDTH, device="meta"), r"parameter 'user.weight' is on the meta device and has no values"),
        (nn.BatchNorm1d(WIDTH, affine=False, device="meta"), r"buffer 'user.running_mean' is on the meta device"),
    ],
)
def test_weights_without_values_are_named(user: nn.Module, message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        capture(Two(user).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 2


def test_the_line_that_does_not_export_is_said():
    with pytest.raises(ExportError, match=r"line \d+ of .*test_as_written.py: return x if x.sum\(\) > 0"):
        capture(Two(Gate()).eval(), (torch.randn(4, WIDTH), torch.randn(4, WIDTH)), ["user"])
