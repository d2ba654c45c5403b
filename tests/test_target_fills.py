"""A target written into a history of which finite numbers hide what is behind: it is moved on a condition."""

from __future__ import annotations

import pytest
import torch
from helpers import Function, assert_equal, kept, repeated
from test_target import (
    CANDIDATE,
    CONTEXT,
    HIDDEN,
    READS,
    WRITES,
    Calls,
    D,
    Ranker,
    T,
    assigned,
    by_softmax,
    padding,
    program_of,
    ran,
    rows,
    scored,
    together,
    written,
)
from torch import Tensor, nn

from rankhoist import HoistedModel
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.fills import GAP
from rankhoist.compiler.demand.target import behind
from rankhoist.compiler.plan.plans import Plans
from rankhoist.hoist import hoist_program

LEAST = torch.finfo(torch.float64).min


def by_ids(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Padding is looked for among the ids, of which the target's is one."""
    ids = assigned(history, p, item)
    hide = by_softmax(lambda x, _: x.masked_fill(HIDDEN | (ids == 0)[:, None, None], -1e9))
    return m.score(m.encoded(m.items(ids) + m.places, p, hide)[rows(ids), p])


def folded(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Heads are rows."""
    x = assigned(m.items(history), p, m.items(item)) + m.places
    for wide in m.wide[:1]:
        q, k, v = (t.reshape(-1, T, 2, D // 2).transpose(1, 2).flatten(0, 1) for t in wide(x).chunk(3, -1))
        made = torch.bmm(torch.bmm(q, k.mT).masked_fill(HIDDEN, -1e4).softmax(-1), v)
        x = x + made.view(-1, 2, T, D // 2).transpose(1, 2).flatten(2)
    return m.score(x[rows(x), p])


MASKED_FILL = by_softmax(lambda x, p: x.masked_fill(HIDDEN, -1e9))
MOVED: dict[str, Calls] = {
    "chosen_fill": scored(
        assigned, READS["gathered"], by_softmax(lambda x, p: torch.where(HIDDEN | padding(p)[:, None, None], LEAST, x))
    ),
    "filled_twice": scored(
        WRITES["weighed"],
        READS["weighed"],
        by_softmax(lambda x, p: x.masked_fill(HIDDEN, -1e9).masked_fill(padding(p)[:, None, None], -1e9)),
    ),
    "padding_sees_nothing": scored(
        assigned, READS["indexed"], by_softmax(lambda x, p: x.masked_fill(HIDDEN | padding(p)[:, None, :, None], -1e9))
    ),
    "where_there_may_be_none": scored(WRITES["chosen"], READS["indexed"], MASKED_FILL),
    "fill_by_name": scored(
        WRITES["scattered"],
        READS["taken"],
        lambda m, q, k, v, p: torch.einsum(
            "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(HIDDEN, -1e9).softmax(-1), v
        ),
    ),
    "padding_by_ids": by_ids,
    "heads_are_folded": folded,
}


def hides(moved: Program, outputs: list[Tensor]) -> Tensor:
    """Whether each row's highest scores lie far enough above what is filled in."""
    peaks = outputs[len(moved.returned) :]
    found = [p.reshape(len(CANDIDATE), -1).amin(1) - GAP > n for p, (_, n) in zip(peaks, moved.fills, strict=True)]
    return torch.stack(found).all(0)


def test_a_target_is_moved_on_a_condition() -> None:
    """Of two layers, the queries of the first one's history are told of, and those at the place of both."""
    model = Ranker(together(*MOVED.values()), layers=2)
    program = program_of(model, ["context"])
    moved = behind(program, supposing=True)
    assert not written(moved) and len(moved.fills) >= 2 * len(MOVED)
    assert written(behind(program)) == written(program)
    for context in (CONTEXT[[0] * 8], CONTEXT[[1] * 8], CONTEXT[[2] * 8], CONTEXT[torch.arange(8) % 3]):
        found = ran(moved, context, CANDIDATE)
        assert hides(moved, found).all()
        for name, made, own in zip(MOVED, found[: len(MOVED)], model(context, CANDIDATE), strict=True):
            assert_equal(made, own, name)


# -- near misses


def of_itself(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Weights of the history alone, whose scores nobody computes at the place."""
    h = m.items(history)
    weights = (h @ h.mT).masked_fill(HIDDEN, -1e9).softmax(-1)
    return m.score((weights @ assigned(h, p, m.items(item)))[rows(h), p])


def filled(number: float, mask: Tensor = HIDDEN) -> Calls:
    return scored(assigned, READS["indexed"], by_softmax(lambda x, p: x.masked_fill(mask, number)))


ONE_LOOKS_AHEAD = HIDDEN.index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(False))
NEAR_MISSES: dict[str, Calls] = {
    "too_weak_a_fill": filled(-GAP + 1),
    "a_positive_fill": filled(1e9),
    "one_is_not_filled": filled(-1e9, ONE_LOOKS_AHEAD),
    "fill_before": filled(-1e9, HIDDEN.T),
    "two_fills": scored(
        assigned,
        READS["indexed"],
        by_softmax(lambda x, p: x.masked_fill(HIDDEN, -1e9).masked_fill(padding(p)[:, None, None], -1e8)),
    ),
    "added_fill": scored(assigned, READS["indexed"], by_softmax(lambda x, p: x + HIDDEN * -1e9)),
    "padding_alone_filled": scored(
        assigned, READS["indexed"], by_softmax(lambda x, p: x.masked_fill(padding(p)[:, None, None], -1e9))
    ),
    "filled_over_queries": scored(
        assigned, READS["indexed"], lambda m, q, k, v, p: (q @ k.mT).masked_fill(HIDDEN, -1e9).softmax(-2) @ v
    ),
    "weights_of_the_history": of_itself,
}


def test_near_misses() -> None:
    model = Ranker(together(*NEAR_MISSES.values()))
    program = program_of(model, ["context"])
    moved = behind(program, supposing=True)
    assert written(moved) == written(program) and not moved.fills


# -- a condition that fails


FRONT = CONTEXT.clone()  # in front of the last two histories is padding: their first query sees nothing
FRONT[1:, 1] = 0
ITEMS_AND_NONE = CANDIDATE.clone()
ITEMS_AND_NONE[2] = ITEMS_AND_NONE[6] = 0  # a target that is padding itself: with no history, it sees nothing


@pytest.fixture(scope="module")
def padded() -> tuple[nn.Module, HoistedModel]:
    model = Ranker(by_ids, layers=2)
    return model, hoist_program(program_of(model, ["context"]))


def test_what_is_saved(padded: tuple[nn.Module, HoistedModel]) -> None:
    """As where `-inf` hides; the law that it needs is named, and may be switched off."""
    hoisted = padded[1]
    total = hoisted.report().total()
    assert total.after.multiply_adds < total.before.multiply_adds / 4
    assert "finite fills (level first): 2 operators, for calls where it holds" in str(hoisted.report())
    assert hoisted.plans.otherwise is not None
    plain = hoist_program(hoisted.program, without=["finite fills"])
    assert plain.plans.otherwise is None
    assert plain.report().total().after.multiply_adds > 3 * total.after.multiply_adds


def test_a_request_that_fails_is_scored_by_another_plan(padded: tuple[nn.Module, HoistedModel]) -> None:
    model, hoisted = padded
    other = hoisted.plans.otherwise
    assert [hoisted.prepare([x[None]]).plan for x in (*CONTEXT, *FRONT)] == [0, 0, 0, 0, other, other]
    for context in (CONTEXT, FRONT):
        for one in context.split(1):
            assert_equal(hoisted(one, CANDIDATE), model(repeated(one, [0, 8]), CANDIDATE))
        for offsets in ([0, 3, 3, 8], [0, 1, 5, 8]):
            expected = model(repeated(context, offsets), CANDIDATE)
            assert_equal(hoisted(context, CANDIDATE, request_offsets=offsets), expected)


def test_a_candidate_that_fails_is_scored_by_another_plan(
    padded: tuple[nn.Module, HoistedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hoisted = padded
    asked, for_all = list[int](), Plans.for_all
    monkeypatch.setattr(Plans, "for_all", lambda plans, plan: asked.append(plan) or for_all(plans, plan))
    for context, count in ((CONTEXT[:1], 1), (CONTEXT[1:2], 0)):
        assert_equal(hoisted(context, ITEMS_AND_NONE), model(repeated(context, [0, 8]), ITEMS_AND_NONE))
        assert len(asked) == count, "behind a history, a target that is padding sees that"
        asked.clear()


# -- how far above is far enough


def twice(c: Tensor, k: Tensor) -> Tensor:
    """Two layers in which every query scores a key by its own number."""
    p = c[:, 0].long()
    x = assigned(c[:, 1:, None], p, k)
    for _ in range(2):
        x = (torch.ones_like(x) @ x.mT).masked_fill(HIDDEN[:3, :3], -2000.0).softmax(-1) @ x
    return x[rows(x), p]


EDGES = [GAP - 2000, GAP - 2000 + 1e-9, -1300.0, -2000.0, -1e5, float("nan")]


@pytest.mark.parametrize("number", EDGES)
def test_the_edge_from_both_sides(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a history's first query, and of a target that has no history."""
    model = Function(twice).eval()
    ones = torch.ones(8, 1, dtype=torch.float64)
    context = torch.tensor([[1.0, number, 0.0, 5.0], [0.0, 7.0, 7.0, 7.0]], dtype=torch.float64)
    hoisted = kept(capture(model, (context[[1] * 8], ones), ["context"]))
    assert hoisted.plan.condition is not None and hoisted.plan.check is not None
    asked, for_all = list[int](), Plans.for_all
    monkeypatch.setattr(Plans, "for_all", lambda plans, plan: asked.append(plan) or for_all(plans, plan))
    for one, candidate in ((context[:1], ones), (context[1:], ones * number)):
        found, expected = hoisted(one, candidate), model(one.expand(8, -1), candidate)
        torch.testing.assert_close(found, expected, equal_nan=True)
        assert len(asked) == (number != EDGES[1])
        asked.clear()
