"""Versions of weights, apart from any model: what a state dict may change."""

from __future__ import annotations

import re

import pytest
import torch

from rankhoist.errors import WeightsError
from rankhoist.runtime.weights import renewed

ORIGINAL = {"p_w": torch.zeros(2, 3), "p_order": torch.arange(3), "c_mask": torch.ones(1)}
NAMES = {"w": "p_w", "order": "p_order"}  # in the state dict; the mask is not
NEW = {"w": torch.ones(2, 3), "order": torch.arange(3)}


def test_new_values_come_to_their_placeholders():
    made = renewed(ORIGINAL, NEW | {"unknown": torch.ones(1)}, NAMES, {"p_order"})
    assert torch.equal(made["p_w"], NEW["w"]) and made.keys() == ORIGINAL.keys()
    assert made["p_w"].data_ptr() == NEW["w"].data_ptr() and made["c_mask"] is ORIGINAL["c_mask"], "nothing is copied"
    assert not ORIGINAL["p_w"].any(), "the old version stays as it was"


def test_new_values_come_in_the_dtype_of_the_old():
    made = renewed(ORIGINAL, NEW | {"w": torch.ones(2, 3, dtype=torch.float64, requires_grad=True)}, NAMES, ())
    assert made["p_w"].dtype == torch.float32 and not made["p_w"].requires_grad


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "the state dict lacks 2 weights: w, order"),
        (NEW | {"w": torch.ones(3)}, "weight 'w' has shape [3], expected [2, 3]"),
        (NEW | {"order": torch.zeros(3).long()}, "'order' selects positions, which the plan is made for"),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}"):
        renewed(ORIGINAL, given, NAMES, {"p_order"})


def test_what_no_plan_was_made_from_may_change():
    assert renewed(ORIGINAL, NEW | {"order": torch.zeros(3).long()}, NAMES, ())["p_order"].tolist() == [0, 0, 0]
