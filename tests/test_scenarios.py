"""Scenarios are equal at every level, so that what is timed is the same model."""

from __future__ import annotations

import pytest
import torch
from helpers import LEVELS, hoisted_at

from rankhoist import Workload
from rankhoist.bench.scenarios import FAMILIES, SCENARIOS, Scenario
from rankhoist.bench.suite import error
from rankhoist.capture import capture

HISTORIES = {"padded_history_50", "padded_history_200", "recurrent_history", "interest_history"}
SLOW = {"industrial", "bilinear_pairs", "autoint", "history_transformer", *HISTORIES}  # to hoist, at six levels


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(s, id=s.name, marks=[pytest.mark.slow] if s.name in SLOW else [])
        for s in [*SCENARIOS, *FAMILIES[::4]]
    ],
)
@pytest.mark.timeout(1200)
def test_scenarios_are_equal_at_every_level(case: Scenario):
    model = case.model()
    program = capture(model, case.inputs(4, 4), case.context_names)
    context, candidate = case.sides(2, 5, seed=1)
    offsets = [0, 3, 5]
    rows = {name: x[[0, 0, 0, 1, 1]] for name, x in context.items()}
    with torch.inference_mode():
        expected = model(*case.arguments(rows, candidate))
        for level in LEVELS:
            hoisted = hoisted_at(program, level, Workload(1000))
            actual = hoisted(*case.arguments(context, candidate), request_offsets=offsets)
            assert error(actual, expected) < 1e-4, level


def test_shares_move_and_widths_stay():
    for family in {s.family for s in FAMILIES}:
        own = [s for s in FAMILIES if s.family == family]
        assert [s.share for s in own] == [25, 50, 75, 90]
        weights = {sum(w.numel() for w in s.model().parameters()) for s in own}
        assert len(weights) == 1, family
