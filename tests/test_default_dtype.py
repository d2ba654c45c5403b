"""What a model makes without naming a dtype has torch's default of its capture, whatever that is where it runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankhoist import HoistedModel, hoist, load
from rankhoist.verify import verify

EXAMPLE = (torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 20).reshape(5, 4))


class Making(nn.Module):
    """Matrices, numbers of each column and of each row, which products refuse in another dtype than the weights'."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4))
        self.rates = nn.Parameter(torch.linspace(0.5, 1, 3))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        own = torch.full((4, 4), 1 / 3) @ self.mix
        parts = torch.eye(4)
        parts[0, 1] = self.rates[0]
        parts[torch.tensor([1, 2]), torch.tensor([2, 3])] = self.rates[1:]
        turned = torch.full((2,), 1 / 3 + 1j).real * torch.scalar_tensor(1 / 7)
        columns = torch.arange(0.1, 4.0) + torch.linspace(0, 1 / 3, 4) + turned.sum()
        places = torch.arange(4)
        own = own + (places / 3) @ self.mix + torch.sigmoid(places) @ self.mix + (places > 1) * 0.1
        signs = torch.where(item > 0, 1.0, -1 / 3) @ self.mix  # of two numbers
        return (((user @ own + torch.ones(len(user), 1) / 3) @ parts * columns) * (item + signs)).sum(1)


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    return hoist(Making().eval(), EXAMPLE, context=["user"])


def scores(model: HoistedModel, dtype: torch.dtype = torch.float32) -> Tensor:
    user, item = (x.to(dtype) for x in EXAMPLE)
    return model(user[:1], item)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_runs_in_its_own_dtype_whatever_the_default_is(hoisted: HoistedModel, dtype: torch.dtype):
    weights, expected = hoisted.weights, scores(hoisted)
    with by_default(dtype):
        made = HoistedModel.of(hoisted.blueprint, weights.original, weights.constants, hoisted.dtype, hoisted.device)
        torch.testing.assert_close(scores(made), expected, rtol=0, atol=0)


def test_it_is_float64_where_the_model_is(hoisted: HoistedModel):
    """To the last digits, 1 / 3 among them: nothing is rounded to float32 first."""
    model = Making().eval()
    certificate = verify(hoisted, model)
    assert certificate and certificate.truth == "model in float64"
    moved = hoist(model, EXAMPLE, context=["user"]).double()
    user, item = (x.double() for x in EXAMPLE)
    with by_default(torch.float64):
        expected = copy.deepcopy(model).double()(user[:1].expand(5, 4), item)
    torch.testing.assert_close(scores(moved, torch.float64), expected, rtol=1e-14, atol=1e-14)


def test_a_model_of_another_default_keeps_it():
    user, item = (x.double() for x in EXAMPLE)
    with by_default(torch.float64):
        model = Making().eval()
        hoisted = hoist(model, (user, item), context=["user"])
        expected = model(user[:1].expand(5, 4), item)
    torch.testing.assert_close(scores(hoisted, torch.float64), expected, rtol=1e-14, atol=1e-14)


def test_it_follows_to_a_shorter_dtype(hoisted: HoistedModel):
    short = scores(hoist(Making().eval(), EXAMPLE, context=["user"]).to(torch.bfloat16), torch.bfloat16)
    torch.testing.assert_close(short.float(), scores(hoisted), rtol=0.05, atol=0.05)
    assert short.dtype == torch.bfloat16


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_whole_numbers_of_a_call_do_so_too(default: torch.dtype, tmp_path: Path):
    """Of both sides, in a file that is loaded and called under another default."""

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(3, 1)

        def forward(self, age: Tensor, count: Tensor) -> Tensor:
            return self.top(torch.cat([age / 7, count * 0.1, torch.pow(count, 0.5)], 1)).squeeze(1)

    age, count = torch.arange(5).unsqueeze(1), torch.arange(5, 10).unsqueeze(1)
    hoisted = hoist(Counted().eval(), (age, count), context=["age"])
    hoisted.save(tmp_path / "model")
    with by_default(default):
        loaded = load(tmp_path / "model")
        torch.testing.assert_close(loaded(age[3:4], count), hoisted(age[3:4], count), rtol=0, atol=0)


def test_what_has_a_dtype_keeps_it():
    """One that is named, an operand's, and that of whole numbers and of truth values, which no default changes."""

    class Named(nn.Module):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            named, own = torch.eye(4, dtype=torch.float64), torch.ones_like(user.half())
            whole, truth = torch.arange(4), torch.full((4,), True)
            return (user @ named.float() + own + whole * truth) * item

    graph = hoist(Named().eval(), EXAMPLE, context=["user"]).program.graph
    found = {
        n.target._schema.name.split("::")[1]: n.kwargs.get("dtype") for n in graph.nodes if n.op == "call_function"
    }
    kept = {"eye": torch.float64, "ones_like": None, "arange": None, "full": None}
    assert {name: found[name] for name in kept} == kept
