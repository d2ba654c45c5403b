"""Finite numbers added to scores hide where the sum lies far enough below; only a candidate's score tells whether."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, hoisted_at, repeated
from test_fills import LEFT, SEEN, SEEN_BY_ONE, TARGET, N, captured, plans_of
from test_padding import HIDDEN, TRIANGLE, Attention, model_of, randn, softmax_of
from torch import Tensor, nn

import rankhoist
from rankhoist import HoistedModel
from rankhoist.capture import capture
from rankhoist.compiler.algebra.fills import GAP
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plans
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import ArtifactError
from rankhoist.hoist import hoist_program
from rankhoist.runtime import artifact

OFFSETS = [0, 3, 3, N]


def numbers(mask: Tensor) -> Tensor:
    return mask.double()


def hugging_face(q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> Tensor:
    """PyTorch's own attention with the least number there is in its mask."""
    mask = numbers(HIDDEN | pad[:, None]) * torch.finfo(q.dtype).min
    return F.scaled_dot_product_attention(q, k, v, mask)


ADDED: dict[str, Attention] = {
    "times": softmax_of(lambda x, pad: x + (HIDDEN | pad[:, None]) * -1e9),
    "one_minus": softmax_of(lambda x, pad: x - (1 - numbers(~HIDDEN & ~pad[:, None])) * 1e9),
    "one_minus_a_product": softmax_of(lambda x, pad: x + (1 - TRIANGLE * numbers(~pad[:, None])) * -1e9),
    "fewer_digits": softmax_of(lambda x, pad: x + torch.where(~HIDDEN & ~pad[:, None], 0.0, -10000.0)),
    "one_by_one": softmax_of(lambda x, pad: x + HIDDEN * -1e9 + pad[:, None] * -1e9),
    "added_first": softmax_of(lambda x, pad: x + (numbers(HIDDEN) + numbers(pad[:, None])) * -1e9),
    "clamped": softmax_of(lambda x, pad: x + (numbers(HIDDEN) + numbers(pad[:, None])).clamp(max=1) * -1e9),
    "added_then_filled": softmax_of(lambda x, pad: (x + HIDDEN * -1e9).masked_fill(pad[:, None], -1e9)),
    "hugging_face": hugging_face,
    "finite_over_infinite": softmax_of(
        lambda x, pad: x.masked_fill(HIDDEN, -torch.inf).masked_fill(pad[:, None], -1e9)
    ),
}


@pytest.fixture(scope="module")
def as_written() -> int:
    """Multiply-adds of the original; they are the same for all spellings."""
    return hoisted_at(captured(model_of(ADDED["times"])), Level.EXPAND).plan.cost.multiply_adds


@pytest.mark.parametrize("name", ADDED)
def test_an_added_number_hides_where_scores_lie_above_it(name, as_written):
    model = model_of(ADDED[name])
    hoisted = hoisted_at(captured(model), Level.FIRST)
    assert as_written > 20 * hoisted.plan.cost.multiply_adds
    assert plans_of(hoisted, SEEN) == [0, 0, 0] and plans_of(hoisted, LEFT) == [0, 1, 0]
    for history in (SEEN, LEFT):
        assert_equal(hoisted(history, TARGET, request_offsets=OFFSETS), model(repeated(history, OFFSETS), TARGET))


NEAR_MISSES: dict[str, Attention] = {
    "ten": softmax_of(lambda x, pad: x + HIDDEN * -10.0),
    "fifty": softmax_of(lambda x, pad: x + (numbers(HIDDEN) + numbers(pad[:, None])) * -50.0),
    "more_than_nothing": softmax_of(lambda x, pad: x + HIDDEN * 1e9),
    "one_entry_sees_it": softmax_of(lambda x, pad: x + SEEN_BY_ONE * -1e9),
    "padding_alone": softmax_of(lambda x, pad: x + (1.0 - numbers(~pad[:, None])) * -1e9),
    "fifty_in_a_mask": lambda q, k, v, pad: F.scaled_dot_product_attention(q, k, v, numbers(HIDDEN) * -50.0),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_others_hide_nothing(name, as_written):
    model = model_of(NEAR_MISSES[name])
    hoisted = hoisted_at(captured(model), Level.FIRST)
    assert hoisted.plans.otherwise is None and hoisted.plan.cost.multiply_adds > as_written / 5
    assert_equal(hoisted(SEEN[:1], TARGET), model(repeated(SEEN[:1], [0, N]), TARGET))


# -- how far above is far enough


def one_score(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """An entry of a history, whose second number is 1: it scores entries by their first, and a candidate 2000 less."""
    x = torch.stack([c, k], 1)
    scores = x[..., 1:] @ (x[..., :1] * w).mT + HIDDEN[:2, :2].to(x.dtype) * -2000.0
    return (scores.softmax(-1) @ x)[:, 0]


@pytest.fixture
def other_plans(monkeypatch) -> Iterator[list[int]]:
    """The plans that were asked to score what another one does not hold for."""
    asked: list[int] = []
    usual = Plans.for_all

    def noted(self, plan: int) -> int:
        asked.append(plan)
        return usual(self, plan)

    monkeypatch.setattr(Plans, "for_all", noted)
    yield asked


EDGE = 2000 - GAP  # of a candidate's score


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("score", "holds"),
    [(0.0, True), (EDGE - 16, True), (EDGE, False), (EDGE + 16, False), (2000.0, False), (1e5, False),
     (-1e5, True), (float("nan"), False)],
)  # fmt: skip
def test_the_edge_from_both_sides(score, holds, dtype, other_plans, edge_model):
    model, hoisted = edge_model[dtype]
    context, candidate = torch.tensor([[0.0, 1.0]], dtype=dtype), randn(5, 2).to(dtype)
    candidate[3, 0] = score
    found, expected = hoisted(context, candidate), model(context.expand(5, -1), candidate)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert other_plans == ([] if holds else [0])


@pytest.fixture(scope="module")
def edge_model() -> dict[torch.dtype, tuple[nn.Module, HoistedModel]]:
    def made(dtype: torch.dtype) -> tuple[nn.Module, HoistedModel]:
        model, rows = Function(one_score, w=torch.ones(1, dtype=dtype)).eval(), randn(5, 2).to(dtype)
        return model, hoisted_at(capture(model, (rows, rows), ["context"], all_rules()), Level.FIRST)

    return {dtype: made(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)}


def test_a_state_scores_with_its_own_weights(edge_model, other_plans):
    """Also where another plan has to."""
    model, hoisted = copy.deepcopy(edge_model[torch.float64])
    context, candidate = torch.tensor([[0.3, 1.0], [-0.2, 1.0]], dtype=torch.float64), randn(5, 2)
    candidate[3, 0] = 1e4
    expected = model(context.repeat_interleave(torch.tensor([2, 3]), 0), candidate)
    state = hoisted.prepare([context])
    hoisted.update_weights({"w": torch.full((1,), 2.0, dtype=torch.float64)})
    assert_equal(hoisted.score(state, [candidate], [0, 2, 5]), expected)
    assert other_plans == [0]
    assert state.bytes > sum(t.numel() * t.element_size() for t in state.tensors.values())
    assert hoisted.score(state, [candidate[:0]], [0, 0, 0]).shape == (0, 2)


# -- a model with plans for both


@pytest.fixture(scope="module")
def added() -> tuple[nn.Module, HoistedModel]:
    model = model_of(ADDED["one_by_one"])
    return model, hoist_program(captured(model))


def test_equal_at_every_level():
    check_model(model_of(ADDED["times"]), LEFT, TARGET)


def test_scores_that_are_made_with_rows_on_another_axis():
    """What is made of them, row by row, is not what one row would tell."""

    def scores(context: Tensor, candidate: Tensor) -> Tensor:
        folded = torch.stack([context, candidate], 1).reshape(-1, 4)
        made = torch.special.i0e(folded.T).T.reshape(-1, 2, 4)
        return (made + (made > 0.5) * -1e9).softmax(2).sum(1)

    check_model(Function(scores).eval(), randn(3, 4), randn(N, 4))


def test_a_file_holds_what_is_checked(added, tmp_path: Path):
    model, hoisted = added
    assert any(plan.check is not None for plan in hoisted.plans.plans)
    hoisted.save(tmp_path / "model")
    loaded = rankhoist.load(tmp_path / "model")
    assert [v.checks for v in loaded.stages.variants] == [v.checks for v in hoisted.stages.variants]
    for own in (hoisted, loaded):
        assert_equal(own(LEFT, TARGET, request_offsets=OFFSETS), model(repeated(LEFT, OFFSETS), TARGET))


def test_a_file_whose_plans_return_too_little_is_refused(added):
    blueprint, weights = added[1].blueprint, added[1].weights
    variants = [replace(v, checks=False) for v in blueprint.stages.variants]
    forged = replace(blueprint, stages=replace(blueprint.stages, variants=variants))
    with pytest.raises(ArtifactError, match="another number of values"):
        artifact.members(forged, weights, torch.float64, None)


def test_recorded_calls_check_their_rows(edge_model, other_plans):
    """A replay pads a call's rows, and what it says of them comes after the results."""
    model, hoisted = edge_model[torch.float64]
    recorded = copy.deepcopy(hoisted).to_backend("graphs")
    context, candidate = torch.tensor([[0.0, 1.0]], dtype=torch.float64), randn(5, 2)
    assert_equal(recorded(context, candidate), model(context.expand(5, -1), candidate))
    assert recorded.replay_counts.replayed and not other_plans
    candidate[2, 0] = 1e4
    assert_equal(recorded(context, candidate), model(context.expand(5, -1), candidate))
    assert other_plans == [0]
