"""Tensors without elements: what a pyramid's last layer cuts away, an empty group of features; plans without work."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, reasons
from torch import Tensor, nn

import rankhoist

G = torch.Generator().manual_seed(0)
CONTEXT, CANDIDATE = (torch.randn(n, 5, 4, generator=G, dtype=torch.float64) for n in (3, 7))
W = torch.randn(6, 4, generator=G, dtype=torch.float64)


def both(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k], 1)


EMPTY = {
    "sliced": lambda c, k, w: torch.cat([c[:, :0].relu(), k, c[:, 5:]], 1),
    "of_both": lambda c, k, w: torch.cat([F.linear(both(c, k)[:, :-10], w), F.linear(both(c, k), w)], 1),
    "split": lambda c, k, w: torch.cat([x.relu() for x in both(c, k).split([0, 4, 6, 0], 1)], 1).softmax(1),
    "sum": lambda c, k, w: both(c, k)[:, :0].sum(1) + c[:, 0] * k[:, 0],
    "mean": lambda c, k, w: both(c, k)[:, :0].mean(1) + c[:, 0] * k[:, 0],
    "product": lambda c, k, w: both(c, k)[:, :0].transpose(1, 2) @ both(c, k)[:, :0] + c[:, :4] * k[:, :4],
    "flat": lambda c, k, w: torch.cat([both(c, k)[:, :0].flatten(1), k.flatten(1)], 1),
    "unflattened": lambda c, k, w: torch.cat([both(c, k)[:, :0].unflatten(2, (2, 2)).sum(3), (c * k)[..., 2:]], 1),
    "softmax": lambda c, k, w: torch.cat([both(c, k)[:, :0].softmax(-1), c * k], 1),
    "padded": lambda c, k, w: F.pad(both(c, k)[:, :0], (0, 0, 1, 1)) + c[:, :1] * k[:, :1],
    "no_query": lambda c, k, w: F.scaled_dot_product_attention(c[:, :0], k, k).sum(1) + k.sum(1) * c.sum(1),
    "stacked": lambda c, k, w: torch.stack([c[:, :0], k[:, :0]], 1).sum((1, 2)) + c.sum(1) * k.sum(1),
    "created": lambda c, k, w: torch.cat([k.new_zeros(k.shape[0], 0, 4), c, k], 1),
    "another_dtype": lambda c, k, w: torch.cat([c[:, :0], (k > 0).float()], 1) + c,
    "returned": lambda c, k, w: (both(c, k)[:, :0], c * k),
}


@pytest.mark.parametrize("name", EMPTY)
def test_tensors_without_elements(name: str):
    models = check_model(Function(EMPTY[name], w=W).eval(), CONTEXT, CANDIDATE)
    assert not [r for m in models.values() for r in reasons(m) if "please report" in r]


def test_layers_of_nothing_cost_nothing():
    """The last layer of a pyramid keeps no token of the history, and has weights for them all the same."""

    def pyramid(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        x = both(c, k)
        for kept in (7, 5):
            total, x = x.sum(1, keepdim=True), x[:, -kept:]
            x = torch.cat([F.linear(x[:, :-5], w[:4]).relu(), torch.tanh(x[:, -5:] + total)], 1)
        return x.sum(1)

    models = check_model(Function(pyramid, w=W).eval(), CONTEXT, CANDIDATE)
    assert models["linear"].plan.cost.multiply_adds == 2 * 4 * 4  # two tokens of the first layer, once


class First(nn.Module):
    """Does no work at all."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return candidate[:, :2]


def test_a_plan_of_no_operator():
    with warnings.catch_warnings():
        warnings.simplefilter("error", rankhoist.errors.HoistingWarning)
        with pytest.warns(rankhoist.errors.UnusedInputWarning):
            hoisted = rankhoist.hoist(First().eval(), (CONTEXT[[0, 1]], CANDIDATE[:2]), context=["context"])
    assert torch.equal(hoisted(CONTEXT[:1], CANDIDATE), CANDIDATE[:, :2])
    assert hoisted.report().curves is not None
