"""FlexAttention: what stands for it is the same, and its models are hoisted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from rankhoist import hoist, verify
from rankhoist.capture import flex
from rankhoist.errors import ExportError

G = torch.Generator().manual_seed(0)
ROWS, HEADS, LENGTH, WIDTH = 3, 2, 5, 4
BIAS = torch.randn(HEADS, LENGTH, generator=G, dtype=torch.float64)
REACH = torch.randint(0, LENGTH, (ROWS, LENGTH), generator=G)  # 0: a query of no keys

SCORES: dict[str, Callable[..., Any]] = {
    "a table": lambda s, b, h, i, j: s + BIAS[h, j],
    "far": lambda s, b, h, i, j: s - 0.3 * (i - j).abs(),
    "capped": lambda s, b, h, i, j: 2 * torch.tanh(s / 2),
    "causal": lambda s, b, h, i, j: torch.where(i > j, s, -float("inf")),  # the first query has no keys
}
MASKS: dict[str, Callable[..., Any]] = {
    "causal": lambda b, h, i, j: i >= j,
    "of a row": lambda b, h, i, j: j < REACH[b, i],
}


def drawn(*sizes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*sizes, generator=G, dtype=torch.float64).to(dtype)


def operands(groups: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [drawn(ROWS, heads, LENGTH, WIDTH, dtype=dtype) for heads in (HEADS, groups, groups)]


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("score", [None, *SCORES])
def test_the_same_as_operators(score: str | None, mask: str | None):
    given = operands()
    blocks = None if mask is None else create_block_mask(MASKS[mask], ROWS, None, LENGTH, LENGTH, "cpu")
    own = SCORES[score] if score else None
    expected = flex_attention(*given, score_mod=own, block_mask=blocks)
    assert_equal(flex.attention(*given, own, blocks, None, False, None), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_groups_of_heads_a_scale_and_sums(dtype: torch.dtype):
    given = operands(groups=1, dtype=dtype)
    expected = flex_attention(*given, score_mod=SCORES["far"], scale=0.2, enable_gqa=True, return_lse=True)
    assert_equal(flex.attention(*given, SCORES["far"], None, 0.2, True, None), expected)


def test_functions_are_their_own_again():
    before = flex_attention.__code__, flex_attention.__kwdefaults__, create_block_mask.__defaults__
    with flex.flex_as_operators():
        assert flex_attention(*operands(), return_lse=True)[1].shape == (ROWS, HEADS, LENGTH)
        assert flex_attention.__code__ is not before[0]
    assert before == (flex_attention.__code__, flex_attention.__kwdefaults__, create_block_mask.__defaults__)


class Ranker(nn.Module):
    """A candidate among the history of a user: a bias of places, and a mask of the history's own length."""

    def __init__(self, attention: Callable[..., Any] = flex_attention) -> None:
        super().__init__()
        self.items, self.query = nn.Embedding(50, HEADS * WIDTH, padding_idx=0), nn.Linear(HEADS * WIDTH, HEADS * WIDTH)
        self.key, self.bias = nn.Linear(HEADS * WIDTH, HEADS * WIDTH), nn.Parameter(torch.randn(HEADS, LENGTH))
        self.score, self.attention = nn.Linear(HEADS * WIDTH, 1), attention

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        k, q = self.key(self.items(history)), self.query(self.items(item)).unsqueeze(1)
        k, q = (x.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for x in (k, q))
        lengths = (history > 0).sum(1)
        mask = create_block_mask(lambda b, h, i, j: j < lengths[b], history.shape[0], None, 1, LENGTH, history.device)
        made = self.attention(q, k, k, score_mod=lambda s, b, h, i, j: s + self.bias[h, j], block_mask=mask)
        return self.score(made.flatten(1)).squeeze(1)


def inputs(requests: int, count: int) -> tuple[Tensor, Tensor]:
    history = torch.randint(1, 50, (requests, LENGTH), generator=G)
    lengths = torch.randint(0, LENGTH + 1, (requests, 1), generator=G)
    return history * (torch.arange(LENGTH) < lengths), torch.randint(1, 50, (count,), generator=G)


@pytest.mark.parametrize("attention", [flex_attention, torch.compile(flex_attention)], ids=["called", "compiled"])
def test_its_models_are_hoisted(attention: Callable[..., Any]):
    model = Ranker().double().eval()
    author = Ranker(attention).double().eval()  # compiled, it runs on few processors, and in no double precision
    author.load_state_dict(model.state_dict())
    hoisted = hoist(author, inputs(6, 6), context=["history"])
    history, item = inputs(3, 9)
    with torch.no_grad():  # PyTorch's own has no backward on a CPU
        expected = model(history[[0, 0, 2, 2, 2, 2, 2, 2, 2]], item)
    assert_equal(hoisted(history, item, request_offsets=[0, 2, 2, 9]), expected)
    rates = {o.module: o.rates for o in hoisted.report().operators}
    assert rates["key"] == ("request",)
    assert verify(hoisted, model).passed
    with torch.no_grad():
        assert_equal(model(history[:1], item[:1]), hoisted(history[:1], item[:1]), "called after it was verified")


def test_what_only_kernels_make_is_refused():
    class Auxiliary(Ranker):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            q = self.query(self.items(item)).view(-1, 1, 1, HEADS * WIDTH)
            k = self.items(history).unsqueeze(1)
            made, more = flex_attention(q, k, k, return_aux=AuxRequest(max_scores=True))
            return made.flatten(1).sum(1) + more.max_scores.flatten()

    with pytest.raises(ExportError, match="return_aux"):
        hoist(Auxiliary().eval(), inputs(6, 6), context=["history"])
