"""Files of jagged inputs: columns of lists of any length, in the three layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from bagged import DOUBLE, IDS, SIZES, Weighted, bags, starts
from helpers import assert_equal
from scoring import changed, numbered, scored

import rankhoist
from rankhoist import Jagged
from rankhoist.errors import ScoringError
from rankhoist.score.scorer import TableScorer

OFFSETS = [0, 4, 4, len(SIZES)]
OWNER = np.repeat(np.arange(3), np.diff(OFFSETS))
CONTEXT, WORDS = bags((4, 0, 3), True, seed=1), bags(SIZES, seed=2)
PRICE = torch.linspace(-1, 1, len(SIZES), dtype=DOUBLE)


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return made()


def made(item: list[str] | None = None) -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    tags, words = bags(SIZES, True), bags(SIZES, seed=3)
    price = PRICE.unsqueeze(1)
    example = tags.values[0], starts(tags.lengths), words.values[0], starts(words.lengths), price, tags.values[1]
    jagged = {"tags": "tag_offsets", "strengths": "tag_offsets", "words": "word_offsets"}
    return rankhoist.hoist(Weighted().eval(), example, context=["tags"], item=item, jagged=jagged)


@pytest.fixture(scope="module")
def artifact(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("artifact") / "bags.rankhoist"
    hoisted.save(path)
    return str(path)


def lists(given: Jagged, column: int = 0) -> list[list[float]]:
    return [part.tolist() for part in given.values[column].split(given.lengths.tolist())]


def requests() -> pa.Table:
    """One row per request; the bag of the second is null."""
    tags, strengths = lists(CONTEXT), lists(CONTEXT, 1)
    return pa.table({"request_id": ["a", "b", "c"], "tags": [tags[0], None, tags[2]], "strengths": strengths})


def candidates() -> pa.Table:
    """One row per candidate."""
    ids = requests()["request_id"].take(pa.array(OWNER))
    words = pa.array(lists(WORDS), pa.large_list(pa.int32()))
    return pa.table({"request_id": ids, "words": words, "price": [[x] for x in PRICE.tolist()]})


def repeated() -> pa.Table:
    """The context on every row of a candidate."""
    table, context = candidates(), requests().take(pa.array(OWNER))
    return table.append_column("tags", context["tags"]).append_column("strengths", context["strengths"])


def nested() -> pa.Table:
    """One row per request, with a list of lists of words."""
    table, of_candidates = requests(), candidates()
    for name in ("words", "price"):
        own = pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), of_candidates[name].combine_chunks())
        table = table.append_column(name, own)
    return table


LAYOUTS: dict[str, Callable[[], dict[str, pa.Table]]] = {
    "nested": lambda: {"requests": nested()}, "repeated": lambda: {"candidates": repeated()},
    "joined": lambda: {"requests": requests(), "candidates": candidates()},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_this_process(layout: str, hoisted: rankhoist.HoistedModel, artifact: str, tmp_path: Path):
    want = hoisted.score(hoisted.prepare([CONTEXT]), [WORDS, PRICE.unsqueeze(1)], OFFSETS)
    assert_equal(scored(artifact, tmp_path, **LAYOUTS[layout]()).float(), want.float())


def test_tables_of_a_pipeline(hoisted: rankhoist.HoistedModel, artifact: str):
    want = hoisted.score(hoisted.prepare([CONTEXT]), [WORDS, PRICE.unsqueeze(1)], OFFSETS)
    table = TableScorer(artifact)(nested())
    assert_equal(torch.tensor(table["scores"].to_pylist()), want.float())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_one_id_share_a_number_and_have_bags_of_their_own(layout: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("rankhoist.score.job.items_repeat", lambda *_: True)  # so little does not pay
    tables, price = LAYOUTS[layout](), PRICE[[i % 3 for i in range(len(SIZES))]]
    side = "requests" if layout == "nested" else "candidates"
    ids, prices = pa.array([f"sku {i % 3}" for i in range(len(SIZES))]), pa.array([[x] for x in price.tolist()])
    if layout == "nested":
        ids, prices = (pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), x) for x in (ids, prices))
    tables[side] = tables[side].drop_columns("price").append_column("sku", ids).append_column("price", prices)
    of_items = made(["price"])
    of_items.save(tmp_path / "items.rankhoist")
    found = scored(str(tmp_path / "items.rankhoist"), tmp_path, item_id="sku", **tables)
    want = of_items.score(of_items.prepare([CONTEXT]), [WORDS, price.unsqueeze(1)], OFFSETS)
    assert_equal(found.float(), want.float())


WRONG = {
    "null": (repeated, "words", 1, [3, None], r"row 1, column 'words': a null; expected lists, of any length"),
    "kind": (repeated, "words", 1, [0.5], r"column 'words': the column holds double"),
    "other": (repeated, "strengths", 2, [0.5], r"row 2, column 'strengths': a list of 1, where 'tags' has 4"),
    "run": (repeated, "tags", 2, [1, 2, 3, 4], r"row 2, column 'tags': request 'a' has another value here"),
    "number": (repeated, "words", None, None, r"column 'words': the column is int64; expected lists, of any length"),
    "id": (repeated, "words", 6, [1, IDS], r"row 6, column 'words': \[1, 40\] is not in the model's vocabulary"),
    "context": (nested, "tags", 0, [1, 2, -1, 3], r"row 0, candidate 0, column 'tags': \[1, 2, -1, 3\] is not"),
    "deep": (nested, "words", 2, [[1], [2, None], [3], [4], [5]], r"row 2, column 'words': a null"),
    "rows": (nested, "words", 0, [[1], [2]], r"row 0, column 'price': a list of 4, where 'words' has 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named(case: str, artifact: str, tmp_path: Path):
    kind, column, row, value, said = WRONG[case]
    table = numbered(kind(), column) if row is None else changed(kind(), column, row, value)
    with pytest.raises(ScoringError, match=said):
        scored(artifact, tmp_path, **{"candidates" if kind is repeated else "requests": table})


@pytest.mark.parametrize("tags", [[5], [7, 7, 7, 7], []])
def test_bags_of_other_sizes_and_other_values_in_a_run_are_found(tags: list[int], artifact: str, tmp_path: Path):
    table = changed(changed(repeated(), "tags", 3, tags), "strengths", 3, [0.5] * len(tags))
    with pytest.raises(ScoringError, match="row 3, column 'tags': request 'a' has another value here"):
        scored(artifact, tmp_path, candidates=table)
