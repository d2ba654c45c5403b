"""Attention layers that PyTorch computes by one operator where gradients are off, and otherwise than by their lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import UnsupportedModelError

ROWS, EVENTS, IDS, WIDTH = 6, 5, 20, 8


class Pooled(nn.Module):
    """An encoder over the target and a history with padding behind it, and the mean of all places."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
        self.events, self.out = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 1)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat([item[:, None], history], 1)
        score: Tensor = self.out(self.layers(self.events(ids), src_key_padding_mask=ids == 0).mean(1))
        return score


class Causal(nn.Module):
    """Events and the target, of which none sees what comes behind it: the first of padding in front sees nothing."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.events, self.out = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, 1)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        ids = torch.cat([history, item[:, None]], 1)
        x, later = self.events(ids), torch.ones(EVENTS + 1, EVENTS + 1, dtype=torch.bool).triu(1)
        seen, _ = self.attention(x, x, x, attn_mask=later, key_padding_mask=ids == 0, need_weights=False)
        score: Tensor = self.out(x + seen)
        return score


TWO_ANSWERS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and where the padding is
    "padding_is_0": (lambda: Pooled(nested=True), -1),
    "nothing_seen_is_nan": (lambda: Causal(heads=2), 0),
}
ONE_ANSWER: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "not_nested": (lambda: Pooled(nested=False), -1),
    "all_see_something": (lambda: Causal(heads=2), -1),
}


def rows(padding: int | None) -> tuple[Tensor, Tensor]:
    history = torch.randint(1, IDS, (ROWS, EVENTS))
    if padding is not None:
        history[:, padding] = 0
    return history, torch.randint(1, IDS, (ROWS,))


def equal(model: nn.Module, example: tuple[Tensor, Tensor]) -> None:
    """A row by itself each, with gradients off."""
    hoisted = rankhoist.hoist(model, example, context=["history"], level="request")
    with torch.no_grad():
        assert_equal(hoisted(*example, request_offsets=list(range(ROWS + 1))), model(*example))


@pytest.fixture
def by_lines() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", TWO_ANSWERS)
def test_a_model_with_two_answers_is_refused(name):
    made, padding = TWO_ANSWERS[name]
    model, example = made().double().eval(), rows(padding)
    with pytest.raises(UnsupportedModelError, match="two answers for rows of the example: where gradients are off"):
        rankhoist.hoist(model, example, context=["history"], level="request")


@pytest.mark.parametrize("name", TWO_ANSWERS)
def test_it_is_hoisted_once_one_is_chosen(name, by_lines):
    made, padding = TWO_ANSWERS[name]
    equal(made().double().eval(), rows(padding))


@pytest.mark.parametrize("name", ONE_ANSWER)
def test_a_model_with_one_answer_is_hoisted(name):
    made, padding = ONE_ANSWER[name]
    equal(made().double().eval(), rows(padding))


def test_verify_finds_what_an_example_does_not_show():
    model = Pooled(nested=True).double().eval()
    hoisted = rankhoist.hoist(model, rows(None), context=["history"], level="request")
    for padding, passed in ((None, True), (-1, False)):
        certificate = rankhoist.verify(hoisted, model, rows(padding), candidates=[ROWS], requests=[1])
        assert certificate.passed is passed
