"""How much work the levels save: whole request, both stages, N = 1000, and the closed forms of the paper."""

from __future__ import annotations

from math import comb

import pytest
import torch
from helpers import assert_equal, repeated

from rankhoist import Workload
from rankhoist.algebra.interpret import Level
from rankhoist.bench.scenarios import CrossLayers, DotPairs, NormLinear, Scenario, scenario
from rankhoist.capture import Program, capture
from rankhoist.hoist import hoist_program
from rankhoist.plan.search import ALIKE, attempt, make_plan

GOALS = {
    "cross_full": 4.0,
    "cross_low_rank": 2.6,
    "dot_pairs_80_10": 10.5,
    "target_attention": 2.6,
    "norm_linear": 7.5,
    "token_attention": 2.8,
    "compressed_pairs": 3.0,
    "matrix_pairs": 3.0,
}


def captured(case: Scenario) -> Program:
    context, candidate = case.inputs(4, 4, dtype=torch.float64)
    return capture(case.model(dtype=torch.float64), (context, candidate), ["context"])


def multiply_adds(program: Program, level: str, candidates: int = 1000) -> int:
    return hoist_program(program, workload=Workload(candidates), level=level).plan.cost.multiply_adds


@pytest.mark.parametrize("name", GOALS)
def test_full_saves_what_was_promised(name):
    case = scenario(name)
    program = captured(case)
    hoisted = hoist_program(program)
    assert multiply_adds(program, "expand") / hoisted.plan.cost.multiply_adds >= GOALS[name]
    assert hoisted.plan.cost.seconds <= ALIKE * hoist_program(program, level="first").plan.cost.seconds
    context, candidate = case.inputs(3, 5, seed=1, dtype=torch.float64)
    model = case.model(dtype=torch.float64)
    offsets = [0, 2, 2, 5]
    assert_equal(hoisted(context, candidate, request_offsets=offsets), model(repeated(context, offsets), candidate))


@pytest.mark.parametrize("candidates", [1, 100, 1000])
def test_a_plan_that_does_not_pay_is_not_chosen(candidates):
    """Wide candidate, few of them: the design's last rows; `full` is never predicted to be slower than `first`."""
    program = captured(Scenario("wide", lambda: CrossLayers(96, 3, 32), (64,), (32,)))
    order = [multiply_adds(program, x, candidates) for x in ("expand", "lookup", "request", "linear", "first")]
    assert order == sorted(order, reverse=True)
    seconds = [make_plan(program, x, Workload(candidates)).cost.seconds for x in Level]
    assert seconds[-1] <= ALIKE * min(seconds)


def test_pairs_cost_at_most_the_closed_form():
    """`C(K, 2) D + N (K M + C(M, 2)) D` (arXiv 2605.27450, Eq. 6), beside the layer that reads the pairs."""
    k, m, d, out, n = 9, 4, 8, 3, 100
    program = captured(Scenario("pairs", lambda: DotPairs(k + m, out), (k, d), (m, d)))
    cross = k * m + comb(m, 2)
    layer = comb(k, 2) * out + n * cross * out
    # One matrix product per group computes both orders of a symmetric pair and the squares on its diagonal.
    assert multiply_adds(program, "first", n) <= k * k * d + n * (k * m + m * m) * d + layer
    assert multiply_adds(program, "expand", n) == n * ((k + m) ** 2 * d + comb(k + m, 2) * out)


def test_linear_over_a_concatenation_is_exact():
    """`Dc H + N Dk H` (arXiv 2602.23105)."""
    program = captured(Scenario("linear", lambda: CrossLayers(40, 0, 16), (30,), (10,)))
    assert multiply_adds(program, "linear", 50) == 30 * 16 + 50 * 10 * 16
    assert multiply_adds(program, "full", 50) == 30 * 16 + 50 * 10 * 16


def test_first_cross_layer_is_exact():
    """One cross layer: `Dc D + N Dk D`, and the layer after it over all of x_1 (arXiv 2605.27450, section 4.2)."""
    dc, dk, out, n = 30, 10, 16, 50
    program = captured(Scenario("cross", lambda: CrossLayers(dc + dk, 1, out), (dc,), (dk,)))
    width = dc + dk
    assert multiply_adds(program, "first", n) == dc * width + n * dk * width + n * width * out
    assert multiply_adds(program, "expand", n) == n * width * (width + out)


def test_norm_then_linear_is_a_small_addition_to_the_linear_map():
    """Statistics of blocks, then `Dc H + N Dk H` products: no term in N Dc."""
    dc, dk, out, n = 90, 12, 20, 1000
    program = captured(Scenario("norm", lambda: NormLinear(dc + dk, out), (dc,), (dk,)))
    every = attempt(program, Level.FULL, Workload(n), frozenset())
    assert every.cost.multiply_adds <= dc * out + n * dk * out + (dc + dk + 2) * out * 2
