"""Versions of weights: what a state dict may change, apart from any model; checkpoints; weights in lists."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from helpers import assert_equal
from torch import nn

import rankhoist
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
        (NEW | {"order": torch.zeros(3).long()}, "'order' decides what is computed, and the plan is made for it"),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}"):
        renewed(ORIGINAL, given, NAMES, {"p_order"})


def test_what_no_plan_was_made_from_may_change():
    assert renewed(ORIGINAL, NEW | {"order": torch.zeros(3).long()}, NAMES, ())["p_order"].tolist() == [0, 0, 0]


class Scaled(nn.Module):
    """Reads a parameter by its name, and in a list and a closure; and what is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale, self.fixed = nn.Linear(4, 3), nn.Parameter(torch.rand(3)), torch.rand(3)
        scale = self.scale
        self.ways, self.scaled = [self.scale, self.fixed], lambda x: x * scale

    def forward(self, user, item):
        return (self.scaled(self.linear(user)) * item * self.ways[0] + self.scale * self.ways[1]).sum(1)


USER, ITEM = torch.randn(1, 4), torch.randn(5, 3)


def changed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor * 1.5 for name, tensor in model.state_dict().items()}


def after(model: Scaled, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model computes with these weights; its tensors are left as they are."""
    linear, scale = copy.deepcopy(model.linear), state["scale"]
    linear.load_state_dict({n: state[f"linear.{n}"] for n in ("weight", "bias")})
    return (linear(USER) * scale * ITEM * scale + scale * model.fixed).sum(1)


def test_a_weight_in_a_list_or_a_closure_is_the_weight():
    model = Scaled().eval().requires_grad_(False)
    hoisted = rankhoist.hoist(model, (USER.expand(5, 4), ITEM), context=["user"])
    assert_equal(hoisted(USER, ITEM), after(model, model.state_dict()))
    hoisted.update_weights(changed(model))
    assert_equal(hoisted(USER, ITEM), after(model, changed(model)))


def test_a_weight_in_a_list_or_a_closure_is_trained():
    model = Scaled()
    step = rankhoist.grouped(model, (USER.expand(5, 4), ITEM), context=["user"])
    gradients = [
        torch.autograd.grad(made.square().sum(), model.scale)[0]
        for made in (step(USER, ITEM), model(USER.expand(5, 4), ITEM))
    ]
    assert_equal(*gradients)


def test_checkpoints_hold_the_weights_of_a_hoisted_model():
    model = Scaled().eval().requires_grad_(False)
    hoisted = rankhoist.hoist(model, (USER.expand(5, 4), ITEM), context=["user"])
    whole = nn.ModuleDict({"hoisted": hoisted, "other": nn.Linear(2, 2)})
    assert {n.removeprefix("hoisted.") for n in whole.state_dict()} > {*model.state_dict()}
    new = {f"hoisted.{n}": t for n, t in changed(model).items()} | whole["other"].state_dict(prefix="other.")
    assert str(whole.load_state_dict(new)) == "<All keys matched successfully>"
    assert_equal(hoisted(USER, ITEM), after(model, changed(model)))


@pytest.mark.parametrize(
    ("wrong", "strict", "message"),
    [
        ({"scale": None}, True, 'Missing key(s) in state_dict: "scale"'),
        ({"more": torch.ones(1)}, True, 'Unexpected key(s) in state_dict: "more"'),
        ({"scale": torch.ones(2)}, False, "weight 'scale' has shape [2], expected [3]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(wrong, strict, message):
    model = Scaled().eval().requires_grad_(False)
    hoisted = rankhoist.hoist(model, (USER.expand(5, 4), ITEM), context=["user"])
    given = {n: t for n, t in (changed(model) | wrong).items() if t is not None}
    with pytest.raises(RuntimeError, match=re.escape(message)):
        hoisted.load_state_dict(given, strict=strict)


def test_a_part_of_a_checkpoint_changes_that_part():
    model = Scaled().eval().requires_grad_(False)
    hoisted = rankhoist.hoist(model, (USER.expand(5, 4), ITEM), context=["user"])
    kept = hoisted.load_state_dict({"scale": model.scale * 1.5, "more": torch.ones(1)}, strict=False)
    assert sorted(kept.missing_keys) == ["linear.bias", "linear.weight"]
    assert_equal(hoisted(USER, ITEM), after(model, dict(model.state_dict()) | {"scale": model.scale * 1.5}))
