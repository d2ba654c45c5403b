"""Masks filled with finite numbers: they hide where a request's scores lie far enough above, and a plan says so."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import Function, assert_equal, check_model, hoisted_at, repeated
from test_padding import HIDDEN, Attention, D, T, model_of, randn, sequence, softmax_of
from test_runner import exported
from torch import Tensor, nn

import rankhoist
from rankhoist import HoistedModel
from rankhoist.capture import Program, capture
from rankhoist.compiler import targets
from rankhoist.compiler.algebra.fills import GAP
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import ArtifactError
from rankhoist.hoist import hoist_program
from rankhoist.runtime import artifact

N = 7
SEEN = torch.randint(1, 20, (3, T - 1), generator=torch.Generator().manual_seed(3))  # the first entry is never padding
SEEN[1, 30:] = 0
SEEN[2, 1::3] = 0
LEFT = SEEN.clone()  # of the second request, the first queries see padding alone
LEFT[1, :3] = 0
TARGET = torch.tensor([3, 9, 0, 1, 4, 0, 7])
REAL = Path(targets.__file__).with_name("profile.json")
LEAST = torch.finfo(torch.float64).min
FEWER = torch.finfo(torch.float32).min


def of_heads(q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> Tensor:
    """Heads in an axis of their own, one mask for all of them."""
    q, k, v = (x.view(-1, T, 2, D // 2).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.mT).masked_fill(HIDDEN | pad[:, None, None], -1e9)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, T, D)


FILLED: dict[str, Attention] = {
    "masked_fill": softmax_of(lambda x, pad: x.masked_fill(HIDDEN | pad[:, None], -1e9)),
    "filled_twice": softmax_of(lambda x, pad: x.masked_fill(HIDDEN, -1e9).masked_fill(pad[:, None], -1e9)),
    "where": softmax_of(lambda x, pad: torch.where(HIDDEN | pad[:, None], LEAST, x)),
    "more_digits": lambda q, k, v, pad: (
        (q @ k.mT / 2).float().masked_fill(HIDDEN | pad[:, None], FEWER).softmax(-1, torch.float64) @ v
    ),
    "infinite_padding": softmax_of(lambda x, pad: x.masked_fill(pad[:, None], -torch.inf).masked_fill(HIDDEN, -1e9)),
    "heads": of_heads,
}


def captured(model: nn.Module) -> Program:
    return capture(model, (SEEN[[0, 1, 2, 0]], TARGET[:4]), ["context"], all_rules())


def plans_of(hoisted: HoistedModel, history: Tensor) -> list[int]:
    """The plan that each request is prepared for."""
    return [hoisted.prepare([history[i : i + 1]]).plan for i in range(len(history))]


@pytest.mark.parametrize("name", FILLED)
def test_a_finite_fill_hides_where_scores_lie_above_it(name):
    model = model_of(FILLED[name])
    hoisted = hoisted_at(captured(model), Level.FIRST)
    plain = hoisted_at(hoisted.program, Level.EXPAND)
    assert plain.plan.cost.multiply_adds > 20 * hoisted.plan.cost.multiply_adds
    assert plans_of(hoisted, SEEN) == [0, 0, 0]
    for history in (SEEN, LEFT):
        offsets = [0, 3, 3, N]
        expected = model(repeated(history, offsets), TARGET)
        assert_equal(hoisted(history, TARGET, request_offsets=offsets), expected)


SEEN_BY_ONE = HIDDEN.clone()
SEEN_BY_ONE[2, -1] = False  # one entry of the history sees the target

NEAR_MISSES: dict[str, Attention] = {
    "too_weak": softmax_of(lambda x, pad: x.masked_fill(HIDDEN, -100.0)),
    "positive": softmax_of(lambda x, pad: x.masked_fill(HIDDEN, 1e9)),
    "nothing_in_a_product": softmax_of(lambda x, pad: x.masked_fill(HIDDEN, 0.0)),
    "one_entry_sees_it": softmax_of(lambda x, pad: x.masked_fill(SEEN_BY_ONE, -1e9)),
    "padding_alone": softmax_of(lambda x, pad: x.masked_fill(pad[:, None], -1e9)),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_fills_hide_nothing(name):
    model = model_of(NEAR_MISSES[name])
    hoisted = hoisted_at(captured(model), Level.FIRST)
    assert hoisted.plans.otherwise is None
    assert hoisted.plan.cost.multiply_adds > hoisted_at(hoisted.program, Level.EXPAND).plan.cost.multiply_adds / 5
    assert_equal(hoisted(SEEN[:1], TARGET), model(repeated(SEEN[:1], [0, N]), TARGET))


# -- how far above is far enough


def test_the_gap_is_where_a_weight_is_zero_in_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert torch.tensor([-GAP, 0.0], dtype=dtype).softmax(0)[0] == 0, dtype
    assert torch.tensor([2 - GAP, 0.0], dtype=torch.float64).exp()[0] > 0


def one_score(c: Tensor, k: Tensor) -> Tensor:
    """One entry of a history, whose own score is the first number of it; what it makes of both is the result."""
    x = torch.stack([c, k], 1)
    scores = (torch.ones_like(x[..., :1]) @ x[..., :1].mT).masked_fill(HIDDEN[:2, :2], -2000.0)
    return (scores.softmax(-1) @ x)[:, 0]


@pytest.mark.parametrize(
    ("score", "plan"),
    [(GAP - 2000, 1), (GAP - 2000 + 1e-9, 0), (-1300.0, 1), (-2000.0, 1), (-1e5, 1), (float("nan"), 1)],
    ids=["at_the_gap", "above_it", "below_it", "at_the_fill", "below_the_fill", "no_number"],
)
def test_the_edge_from_both_sides(score, plan):
    model = Function(one_score).eval()
    context, candidate = torch.tensor([[score, 1.0]], dtype=torch.float64), randn(5, 2)
    hoisted = hoisted_at(capture(model, (randn(5, 2), candidate), ["context"], all_rules()), Level.FIRST)
    assert hoisted.prepare([context]).plan == plan
    found, expected = hoisted(context, candidate), model(context.expand(5, -1), candidate)
    torch.testing.assert_close(found, expected, equal_nan=True)


# -- a model with plans for both


@pytest.fixture(scope="module")
def masked() -> tuple[nn.Module, HoistedModel]:
    model = model_of(FILLED["masked_fill"])
    return model, hoist_program(captured(model))


def test_equal_at_every_level():
    check_model(model_of(FILLED["masked_fill"]), LEFT, TARGET)


def test_a_request_that_fails_is_scored_by_the_plan_without_the_law(masked):
    model, hoisted = masked
    plans = hoisted.plans
    other = plans.otherwise
    assert hoisted.plan.level > Level.EXPAND and other not in (None, 0, plans.original)
    assert f"where the condition of a plan does not hold: full (plan {other})" in str(plans)
    assert plans_of(hoisted, LEFT) == [0, other, 0]
    state = hoisted.prepare([LEFT])  # one of three fails
    assert state.plan == other and hoisted.prepare([SEEN]).plan == 0
    for offsets in ([0, 2, 4, N], [0, 0, 5, N]):
        assert_equal(hoisted.score(state, [TARGET], offsets), model(repeated(LEFT, offsets), TARGET))
    assert plans.fits(other, 1000, 1) and plans.fits(0, 1000, 1) and not plans.fits(plans.original, 1000, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_other_dtypes(masked, dtype):
    model, rounded, rows = masked[0], copy.deepcopy(masked[0]).to(dtype), repeated(LEFT, [0, 3, 3, N])
    hoisted = hoisted_at(captured(rounded), Level.FIRST)
    assert plans_of(hoisted, LEFT) == [0, 1, 0]
    expected = model(rows, TARGET)
    found, own = hoisted(LEFT, TARGET, request_offsets=[0, 3, 3, N]), rounded(rows, TARGET)
    least = 2 * (own - expected).abs().max()  # what rounding does to the original
    assert (found - expected).abs().max() < least + 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_a_file_holds_both_plans(masked, tmp_path: Path):
    model, hoisted = masked
    hoisted.save(tmp_path / "model")
    loaded = rankhoist.load(tmp_path / "model")
    assert plans_of(loaded, LEFT) == plans_of(hoisted, LEFT)
    offsets = [0, 3, 3, N]
    assert_equal(loaded(LEFT, TARGET, request_offsets=offsets), model(repeated(LEFT, offsets), TARGET))


@pytest.mark.parametrize("condition", [-1, "no plan without it"])
def test_a_forged_condition_is_refused(masked, condition):
    blueprint, weights = masked[1].blueprint, masked[1].weights
    first, *others = blueprint.stages.variants
    if condition == -1:
        variants = [dataclasses.replace(first, condition=-1), *others]
        blueprint = dataclasses.replace(blueprint, stages=dataclasses.replace(blueprint.stages, variants=variants))
    else:
        blueprint = dataclasses.replace(blueprint, plans=dataclasses.replace(blueprint.plans, otherwise=None))
    with pytest.raises(ArtifactError, match="condition"):
        artifact.members(blueprint, weights, torch.float64, None)


def test_the_exported_plan_has_no_condition(masked, tmp_path: Path):
    model, hoisted = masked
    runner = exported(hoisted, tmp_path, several=False)
    for row in (SEEN[:1], LEFT[1:2]):
        assert_equal(runner(row, TARGET), model(repeated(row, [0, N]), TARGET))


def test_report_and_certificate_say_that_it_is_conditional(masked):
    model, hoisted = masked
    told = "finite fills (level first): 1 operator, for calls where it holds; another plan scores the others"
    assert told in str(hoisted.report())
    certificate = rankhoist.verify(hoisted, model, (LEFT, TARGET[:3]), candidates=(2,))
    assert certificate.passed and certificate.conditional == ("finite fills",)
    assert "conditional: finite fills" in str(certificate)
    assert type(certificate).from_json(certificate.to_json()) == certificate


def test_where_the_law_saves_nothing_no_plan_has_a_condition(monkeypatch):
    """The history of the only layer is read by nobody but the target: on a real machine, plans are as fast without."""
    monkeypatch.setenv("RANKHOIST_PROFILE", str(REAL))
    model = Function(sequence(FILLED["masked_fill"], layers=1), e=randn(20, D), w=randn(D, 3 * D), n=randn(D)).eval()
    hoisted = hoist_program(captured(model))
    assert hoisted.plans.otherwise is None
    assert_equal(hoisted(LEFT[1:2], TARGET), model(repeated(LEFT[1:2], [0, N]), TARGET))


def test_the_law_can_be_switched_off(masked):
    hoisted = hoist_program(masked[1].program, without=["finite fills"])
    assert hoisted.plans.otherwise is None and all(plan.condition is None for plan in hoisted.plans.plans)
