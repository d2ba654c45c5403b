"""Operators with a batch axis: every row by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model
from torch import Tensor

from rules.cases import CANDIDATE, CONTEXT, HISTORY, ROWS, Equal, K, NearMiss, declines, equal_at_every_level, numbers

randn = numbers(13)

EQUAL: dict[str, Equal] = {
    "gru": (
        lambda c, k, wi, wh, b: (
            torch.gru(
                c, torch.zeros(1, c.shape[0], 3, dtype=c.dtype), [wi, wh, b, b], True, 1, 0.0, False, False, True
            )[0][:, -1]
            * k[:, :3]
        ),
        HISTORY,
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
    "distances": (lambda c, k: torch.cdist(c.view(-1, 3, 2), k.view(-1, 2, 2)).flatten(1), ROWS, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "convolution_over_rows": (
        lambda c, k, w: k + F.conv1d(c[:, :4].t(), w, padding=1).t(),
        "conv1d",
        "a convolution of [4, rows], without a batch axis",
        dict(w=randn(4, 4, 3)),
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_at_every_level(name: str):
    equal_at_every_level(*EQUAL[name])


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_declines(name: str):
    declines(*NEAR_MISSES[name])


LEARNED = {
    "layer_norm": lambda x: F.layer_norm(x, [K]),
    "softmax_over_tokens": lambda x: x.softmax(1),
    "running_sum": lambda x: x.cumsum(1),
    "largest": lambda x: x.amax(1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "order": lambda x: x.sort(1)[0],
}


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
def test_learned_tokens_have_a_row_like_everything(name: str, folded: bool):
    """Weights repeated for every row: an operator that runs once for them still counts axes from the rows."""

    def call(c: Tensor, k: Tensor, token: Tensor) -> Tensor:
        tokens = token.unsqueeze(0).unsqueeze(1) if folded else token.unsqueeze(0)
        tokens = tokens.expand(k.shape[0], *tokens.shape[1:]).reshape(k.shape[0], 3, K)
        return ((c[:, :K] * k).unsqueeze(1) + LEARNED[name](tokens)).relu().sum(2)

    check_model(Function(call, token=randn(3, K)).eval(), CONTEXT, CANDIDATE)
