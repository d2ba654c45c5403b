"""A candidate stage on some rows at a time: equal at every level, chosen by measurement, never where rows meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from artifacts import CASES, OFFSETS, made
from helpers import Function, assert_equal

from rankhoist import HoistedModel, Split, hoist, load
from rankhoist.compiler.plan import Range, Ranges, Way
from rankhoist.compiler.targets.timing import Timing
from rankhoist.errors import VocabularyError
from rankhoist.runtime import tune


def copied(name: str) -> HoistedModel:
    """A copy of a model that others read."""
    model = made(name)[1]
    return HoistedModel.of(model.blueprint, model.weights.original, model.weights.constants, model.dtype, model.device)


def by(model: HoistedModel, plan: int, chunk: int) -> HoistedModel:
    """It, scoring all calls by one plan, on so many rows at a time."""
    ranges = Ranges((1,), ((Range(0, Way(plan, "", chunk)),),))
    model.blueprint = replace(model.blueprint, plans=replace(model.plans, ranges=ranges))
    return model


def doubled(inputs: Any) -> Any:
    """Numbers in float64."""
    if isinstance(inputs, Split):
        return Split(inputs.context.double(), inputs.candidate.double())
    if isinstance(inputs, dict):
        return {name: doubled(x) for name, x in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


@pytest.mark.parametrize("name", ["ranker", "tied", "nested", "packed"])
def test_every_plan_scores_the_same_in_chunks(name):
    """Of float64, whole and in two halves, for sizes that do not divide and for requests without candidates."""
    inputs = CASES[name][1]
    for plan in range(len(made(name)[1].plans.plans)):
        plain, cut = (by(copied(name).double(), plan, chunk) for chunk in (0, 4))
        for offsets in ([0, 1], [0, 11], OFFSETS):
            given = tuple(map(doubled, inputs(len(offsets) - 1, offsets[-1])))
            assert_equal(cut(*given, request_offsets=offsets), plain(*given, request_offsets=offsets), f"plan {plan}")


def test_no_more_rows_at_a_time_than_it_says(monkeypatch):
    """Chunks are as even as can be; a call that is smaller is run whole."""
    model = by(copied("ranker"), 0, 4)
    stage, seen = model.stages.variants[0].candidate, []
    run = stage.run
    monkeypatch.setattr(stage, "run", lambda rows, *given: seen.append(rows) or run(rows, *given))
    state = model.prepare(CASES["ranker"][1](1, 1)[:2])
    for rows in (11, 4, 0):
        model.score(state, CASES["ranker"][1](1, rows)[2:])
    assert seen == [3, 4, 4, 4, 0]


def test_a_wrong_id_is_named_with_its_own_row():
    user, dense, item = CASES["ranker"][1](1, 11)
    item[9] = 99
    with pytest.raises(VocabularyError, match="'item' has id 99 in row 9, expected 0 to 29"):
        by(copied("ranker"), 0, 4)(user, dense, item)


# -- tune


@pytest.fixture
def fast_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as they are told: 64 rows at a time are the fastest."""

    def told(calls: Mapping[Way, Callable[[], Any]], *args: Any, **kwargs: Any) -> dict[Way, Timing]:
        taken = {key: 1.0 if key.chunk == 64 else 2.0 + key.plan for key in calls}
        return {key: Timing(t, t, t, 5) for key, t in taken.items()}

    monkeypatch.setattr(tune, "interleaved", told)
    monkeypatch.setattr(tune, "HOPELESS", 1e9)
    monkeypatch.setattr(tune, "NEAR", 1e9)
    monkeypatch.setattr(tune, "FINALISTS", 99)
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager"])


def test_tune_finds_it_and_a_file_keeps_it(fast_in_chunks, tmp_path):
    model = copied("ranker").tune([50, 200], [1, 3], seconds=1)
    at = [(model.plans.ranges.at(n, r).chunk, r, n) for n in (50, 200) for r in (1, 3)]
    assert at == [(0, 1, 50), (0, 3, 50), (64, 1, 200), (64, 3, 200)], "50 candidates are fewer than any chunk"
    assert "in chunks of 64 rows" in str(model.report()) and "in chunks of 64 rows" in str(model.plans)
    model.save(tmp_path / "tuned.rankhoist")
    loaded = load(tmp_path / "tuned.rankhoist")
    assert loaded.plans.ranges == model.plans.ranges and loaded.report() == model.report()
    given = CASES["ranker"][1](1, 200)
    assert loaded.prepare(given[:2], candidates=200).way.chunk == 64
    assert_equal(loaded(*given), made("ranker")[1](*given))


def test_a_model_whose_rows_meet_is_never_cut(fast_in_chunks):
    """Its scores are those of all rows of a call, as its author wrote it."""
    torch.manual_seed(0)
    model = Function(lambda c, k, w: (torch.cat([c, k], 1) @ w) - k.mean(0), w=torch.randn(9, 1)).eval()
    example = torch.randn(8, 6), torch.randn(8, 3)
    hoisted = hoist(model, example, context=["context"]).tune([200], seconds=1)
    (point,) = hoisted.report().tuning.points
    assert not any(trial.chunk for trial in point.trials) and not hoisted.plans.ranges.at(200, 1).chunk
    c, k = torch.randn(1, 6), torch.randn(200, 3)
    assert_equal(hoisted(c, k), model(c.expand(200, 6), k))
