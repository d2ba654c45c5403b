"""Files with histories of any length: columns of lists within the bounds of an axis, in the three layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import assert_equal
from lengthy import IDS, AttendedScores, attended, attends, hoisted_attends
from scoring import changed, numbered, scored

import rankhoist
from rankhoist.errors import ScoringError
from rankhoist.score.calls import outputs_of
from rankhoist.score.columns import features
from rankhoist.score.scorer import TableScorer

SIZES = [(5, 2, 3), (1, 0, 4), (5, 2, 2), (50, 2, 0), (5, 30, 1), (1, 0, 2)]  # history, other, candidates of a request
GIVEN = [attends(history, other, rows=rows, seed=i) for i, (history, other, rows) in enumerate(SIZES)]
COUNTS = [rows for _, _, rows in SIZES]
OWNER = np.repeat(np.arange(len(SIZES)), COUNTS)
WANT = torch.cat([attended(*own)["scores"] for own in GIVEN])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("artifact") / "any.rankhoist"
    hoisted_attends(AttendedScores).save(path)
    return str(path)


def requests() -> pa.Table:
    """One row per request."""
    columns = {name: [context[name][0].tolist() for context, _ in GIVEN] for name in GIVEN[0][0]}
    return pa.table({"request_id": list("abcdef"), **columns})


def candidates() -> pa.Table:
    """One row per candidate."""
    columns = {name: [row for _, own in GIVEN for row in own[name].tolist()] for name in GIVEN[0][1]}
    return pa.table({"request_id": requests()["request_id"].take(pa.array(OWNER)), **columns})


def repeated() -> pa.Table:
    """The context on every row of a candidate."""
    table, context = candidates(), requests().take(pa.array(OWNER))
    for name in GIVEN[0][0]:
        table = table.append_column(name, context[name])
    return table


def nested() -> pa.Table:
    """One row per request, its candidates in lists."""
    table, of_candidates = requests(), candidates()
    offsets = pa.array(np.concatenate([[0], np.cumsum(COUNTS)]), pa.int32())
    for name in GIVEN[0][1]:
        own = pa.ListArray.from_arrays(offsets, of_candidates[name].combine_chunks())
        table = table.append_column(name, own)
    return table


LAYOUTS: dict[str, Callable[[], dict[str, pa.Table]]] = {
    "nested": lambda: {"requests": nested()}, "repeated": lambda: {"candidates": repeated()},
    "joined": lambda: {"requests": requests(), "candidates": candidates()},
}  # fmt: skip


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_stand_where_their_candidates_do(layout: str, budget: int | None, artifact: str, tmp_path: Path):
    assert_equal(scored(artifact, tmp_path, budget, **LAYOUTS[layout]()).float(), WANT.float())


def test_requests_of_one_length_share_a_call(artifact: str, monkeypatch: pytest.MonkeyPatch):
    scorer, calls = TableScorer(artifact), []
    prepare = scorer._model.prepare
    monkeypatch.setattr(
        scorer._model, "prepare", lambda c, **how: calls.append(c["history"].shape) or prepare(c, **how)
    )
    assert_equal(torch.tensor(scorer(nested())["scores"].to_pylist()), WANT.float())
    assert sorted(map(tuple, calls)) == [(1, 5), (2, 1), (2, 5)]
    none = scorer(nested().slice(3, 1))
    assert none.num_rows == 0 and none.column_names == ["request_id", "scores"]


WRONG = {
    "null": (repeated, "other", 4, None, r"row 4, column 'other': a null; expected lists, 0..30 long, of numbers"),
    "inside": (repeated, "other", 0, [3, None], r"row 0, column 'other': a null; expected lists, 0..30 long"),
    "long": (repeated, "other", 3, [1] * 31, r"row 3, column 'other': a list of 31; expected lists, 0..30 long"),
    "none": (nested, "history", 1, [], r"row 1, column 'history': a list of 0; expected lists, 1..50 long"),
    "times": (nested, "times", 2, [0.5], r"row 2, candidate 0, column 'times': a list of 1, where 'history' has 5"),
    "matches": (repeated, "matches", 1, [0.5], r"row 1, column 'matches': a list of 1, where 'history' has 5"),
    "kind": (nested, "history", 0, [0.5] * 5, r"column 'history': the column holds double"),
    "flat": (repeated, "history", None, None, r"column 'history': the column is int64; expected lists, 1..50 long"),
    "run": (repeated, "other", 2, [1], r"row 2, column 'other': request 'a' has another value here"),
    "id": (repeated, "other", 9, [1] * 29 + [IDS], r"row 9, column 'other': \[1, .*, 40\] is not in the model's voc"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named(case: str, artifact: str, tmp_path: Path):
    made, column, row, value, said = WRONG[case]
    table = numbered(made(), column) if row is None else changed(made(), column, row, value)
    with pytest.raises(ScoringError, match=said):
        scored(artifact, tmp_path, **{"candidates" if made is repeated else "requests": table})


def test_what_no_column_holds_is_refused_by_name():
    with pytest.raises(ScoringError, match="output 'weights' of the model is as long as an input that varies"):
        outputs_of(hoisted_attends())

    class Grid(torch.nn.Module):
        def forward(self, grid, item):
            return grid.sum((1, 2)) * item

    example = {"grid": torch.rand(4, 3, 5), "item": torch.rand(4)}
    made = rankhoist.hoist(Grid().eval(), example, context=["grid"], dynamic={"grid": {2: (1, 9)}})
    with pytest.raises(ScoringError, match="axis 2 of input 'grid' varies: files have lists of any length for axis 1"):
        features(made)
