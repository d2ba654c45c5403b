"""Many questions of one model: what each of them may change is held apart from what the others do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, repeated
from torch import Tensor, nn

import rankhoist
from rankhoist.capture import capture
from rankhoist.errors import ExportError

WIDTH = 4
OFFSETS = [0, 1, 1, 9]


class Experts(nn.Module):
    """The best experts of every row, of those that any row chose."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, count), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        share, best = self.gate(x).softmax(1).topk(2, -1)
        mask, out = F.one_hot(best, len(self.experts)).permute(2, 1, 0), torch.zeros_like(x)
        for (e,) in (mask.sum(dim=(-1, -2)) > 0).nonzero():
            place, rows = torch.where(mask[e])
            out.index_add_(0, rows, self.experts[e](x[rows]) * share[rows, place, None])
        return out


class Asking(nn.Module):
    """One expert of those rows that have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        own, out = x[:, 0] > 0, x.clone()
        if own.any():
            out[own] = self.layer(x[own])
        return out


class Layers(nn.Module):
    def __init__(self, mix: Callable[[Layers, Tensor], Tensor], kind: Callable[[], nn.Module], layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.layers, self.mix = nn.ModuleList(kind() for _ in range(layers)), mix

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = self.first(torch.cat([context, candidate], 1))
        return self.last(self.mix(self, x)).squeeze(1)


def behind_each_other(m: Layers, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = x + layer(x.tanh())
    return x


def beside_a_shared_one(m: Layers, x: Tensor) -> Tensor:
    """No name holds what the shared one makes while others are asked."""
    for layer in m.layers:
        x = m.shared(x) + layer(x)
    return x


def in_one_statement(m: Layers, x: Tensor) -> Tensor:
    """Nor what others have made that were asked before."""
    first, second = m.layers
    return first(x) + second(x).relu()


def one_of_another(m: Layers, x: Tensor) -> Tensor:
    first, second = m.layers
    return second(first(x) * x) - first(x)


def in_a_list(m: Layers, x: Tensor) -> Tensor:
    return torch.stack([layer(x) for layer in m.layers]).sum(0)


EQUAL = [behind_each_other, beside_a_shared_one, in_one_statement, one_of_another, in_a_list]


def assert_hoisted(model: nn.Module) -> None:
    context, candidate = torch.randn(3, 2).double(), torch.randn(9, 3).double()
    hoisted = rankhoist.hoist(model, (context[[0, 1, 1, 2]], candidate[:4]), context=["context"], level="lookup")
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    for row in candidate:
        assert_equal(hoisted(context[:1], row[None]), model(context[:1], row[None]))


@pytest.mark.parametrize("kind", [Asking, lambda: Experts(3)], ids=["asking", "experts"])
@pytest.mark.parametrize("mix", EQUAL, ids=lambda mix: mix.__name__)
def test_layers_that_ask_are_held_apart(mix: Callable[[Layers, Tensor], Tensor], kind: Callable[[], nn.Module]):
    assert_hoisted(Layers(mix, kind, 2).double().eval())


def test_there_may_be_many_questions():
    model, rows = Layers(behind_each_other, lambda: Experts(35), 2).eval(), (torch.randn(4, 2), torch.randn(4, 3))
    assert capture(model, rows, ["context"]).outputs


# -- near misses


def swapped(m: Layers, x: Tensor) -> Tensor:
    """What is left out by one question is what the next one has put back."""
    made = x
    for place, layer in enumerate(m.layers):
        if (x[:, place] > 0).any():
            made = layer(x) if place == 0 else x
    return made


STORE: dict[str, Tensor] = {}


def in_a_file(m: Layers, x: Tensor) -> Tensor:
    """The same, where no frame holds it."""
    STORE["made"] = x
    if (x[:, 0] > 0).any():
        STORE["made"] = m.shared(x)
    if (x[:, 1] > 0).any():
        STORE["made"] = x
    return STORE.pop("made")


class Slots:
    __slots__ = ("made",)


SLOTS = Slots()


def in_slots(m: Layers, x: Tensor) -> Tensor:
    SLOTS.made = x
    if (x[:, 0] > 0).any():
        SLOTS.made = m.shared(x)
    if (x[:, 1] > 0).any():
        SLOTS.made = x
    return SLOTS.made


class Class:
    made: Tensor


def in_a_class(m: Layers, x: Tensor) -> Tensor:
    Class.made = x
    if (x[:, 0] > 0).any():
        Class.made = m.shared(x)
    if (x[:, 1] > 0).any():
        Class.made = x
    return Class.made


def with_the_next(m: Layers, x: Tensor) -> Tensor:
    """What one leaves out is there again in what the next one does."""
    own, made = x[:, 0] > 0, torch.zeros_like(x)
    if own.any():
        made = made + 1
    if own.logical_not().any():
        made = torch.where(own[:, None], made, 1.0)
    return made * x


def largest_of_another(m: Layers, x: Tensor) -> Tensor:
    """Nothing has no maximum, whoever asks for it."""
    own, others, out = x[:, 0].abs() > 0, x[:, 1] > 0, torch.zeros_like(x)  # true in the example
    rows = x[own]
    if own.any():
        out = torch.where(own[:, None], x, out)
    if others.any():
        out = torch.where(others[:, None], out + rows.amax(0), out)
    return out


def of_the_one_before(m: Layers, x: Tensor) -> Tensor:
    """It is known to be nothing where the one before is asked, and not where this one is."""
    own, out = x[:, 0, None] > 0, torch.zeros_like(x)
    if own.any():
        out = torch.where(own, x, out)
    if (x[:, 1] > 0).any():
        out = torch.where(own, m.shared(x), out)
    return out


def one_of_two(m: Layers, x: Tensor) -> Tensor:
    """Which are one where nothing was done before: nothing says which of them it is that is left there."""
    old = new = x * 2
    own, others = (x[:, column, None] > 0 for column in (0, 1))
    if own.any():
        new = torch.where(own, m.shared(x), new)
    if others.any():
        made = torch.where(others, old, new)
    else:
        return old
    return made


def shape_of_another(m: Layers, x: Tensor) -> Tensor:
    """Python reads a shape that is another where there is nothing."""
    own, shape, out = x[:, 0] > 0, x, torch.zeros_like(x)
    if own.any():
        shape = x[:, :3]
    if (x[:, 1] > 0).any():
        shape = x[:, :4]
    return out + shape.shape[1]


REFUSED = [
    swapped, in_a_file, in_slots, in_a_class, with_the_next, of_the_one_before, one_of_two, largest_of_another,
    shape_of_another,
]  # fmt: skip


@pytest.mark.parametrize("mix", REFUSED, ids=lambda mix: mix.__name__)
def test_what_two_questions_change_together_is_refused(mix: Callable[[Layers, Tensor], Tensor]):
    model = Layers(mix, lambda: nn.Linear(WIDTH, WIDTH), 2).eval()
    with pytest.raises(ExportError, match="its control flow, or a size, depends on the values"):
        rankhoist.hoist(model, (torch.randn(4, 2), torch.randn(4, 3)), context=["context"], level="expand")
