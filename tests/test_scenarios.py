"""Scenarios are equal at every level, so that what is timed is the same model."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_equal, at_every_level

from rankhoist import Workload
from rankhoist.bench.blocks import MixedTokens, UserAttention
from rankhoist.bench.scenarios import BLOCKS, FAMILIES, SCENARIOS, Scenario
from rankhoist.bench.suite import error
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import operators_of
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import named

HISTORIES = {"padded_history_50", "padded_history_200", "encoded_history_2", "recurrent_history", "interest_history"}
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
        for level, hoisted in at_every_level(program).items():
            actual = hoisted(*case.arguments(context, candidate), request_offsets=offsets)
            assert error(actual, expected) < 1e-4, level


@pytest.mark.parametrize(
    "case",
    [
        Scenario("mixed_tokens", lambda: MixedTokens(11 + 7, 5), (11, 6), (7, 6)),
        Scenario("user_attention", lambda: UserAttention(2), {"keys": (9, 8), "values": (9, 8)}, {"queries": (3, 8)}),
    ],
    ids=lambda case: case.name,
)
def test_blocks_are_equal_at_every_level(case: Scenario):
    """In float64, and smaller than what is timed: one request, and several of which one is empty."""
    model = case.model(dtype=torch.float64)
    program = capture(model, case.inputs(4, 4, dtype=torch.float64), case.context_names)
    context, candidate = case.sides(3, 9, seed=1, dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2])
    with torch.inference_mode():
        for level, hoisted in at_every_level(program).items():
            for rows, offsets in ((owner, [0, 4, 4, 9]), (torch.zeros(9, dtype=torch.int64), None)):
                given = {name: x if offsets else x[:1] for name, x in context.items()}
                expected = model(*case.arguments({name: x[rows] for name, x in context.items()}, candidate))
                assert_equal(hoisted(*case.arguments(given, candidate), request_offsets=offsets), expected, level.name)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.name)
def test_a_gpu_does_the_context_half_once(case: Scenario):
    """In the published sizes: tokens of the user are multiplied per request, keys and values are never repeated."""
    program = capture(case.model(), case.inputs(2, 2), case.context_names)
    plan = attempt(Task(program, Level.FULL, Workload(1024, 15), named("cuda-bfloat16-graphs")), operators_of(program))
    original = attempt(Task(program, Level.EXPAND, Workload(1024, 15), plan.target))
    rate = {n.op: n.rate for n in plan.nodes if n.work.multiply_adds}
    assert kernels.repeat_rows not in {n.op for n in plan.nodes} and aten.cat.default not in {n.op for n in plan.nodes}
    if case.name == "mixed_tokens":
        assert plan.cost.multiply_adds == (15 * 1178 + 1024 * 866) * 433 * 256
    else:
        assert [*rate] == [kernels.request_attention]
    assert plan.cost.seconds < original.cost.seconds / 1.4


def test_the_sizes_of_what_was_only_moved_are_known():
    """So that an operator without a law there is predicted as what it is."""
    case = Scenario("attention", lambda: UserAttention(2), {"keys": (9, 8), "values": (9, 8)}, {"queries": (3, 8)})
    program = capture(case.model(), case.inputs(2, 2), case.context_names, all_rules())
    plan = attempt(Task(program, Level.LOOKUP, Workload(1000)))
    (attention,) = (n for n in plan.nodes if n.work.multiply_adds)
    assert [x.sizes for x in attention.args[:3]] == [(2, 3, 4), (2, 9, 4), (2, 9, 4)]


def test_shares_move_and_widths_stay():
    for family in {s.family for s in FAMILIES}:
        own = [s for s in FAMILIES if s.family == family]
        assert [s.share for s in own] == [25, 50, 75, 90]
        weights = {sum(w.numel() for w in s.model().parameters()) for s in own}
        assert len(weights) == 1, family
