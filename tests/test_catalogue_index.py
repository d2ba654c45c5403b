"""How ids of items are found: by a search, or where they have no gap by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from rankhoist.errors import InputError
from rankhoist.runtime.catalogue.index import Index

LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def index(ids: list[int]) -> Index:
    """Rows count from 100 on, in the order of the ids."""
    return Index.of(np.array(ids, np.int64), np.arange(100, 100 + len(ids)))


@pytest.mark.parametrize(
    "ids",
    [[0, 1, 2, 3], [2, 0, 3, 1], [7, 8, 9], [-2, -1, 0], [5], [0, 1, 3], [-9, 4], [LEAST, LEAST + 1], [MOST - 1, MOST],
     [LEAST, MOST]],
)  # fmt: skip
def test_ids_are_found_and_no_others(ids):
    found = index(ids)
    assert found.find(np.array(ids)).tolist() == list(range(100, 100 + len(ids)))
    near = {i + step for i in (*ids, 0, LEAST, MOST) for step in (-1, 0, 1)} - set(ids)
    others = np.array(sorted(i for i in near if LEAST <= i <= MOST), np.int64)
    assert len(others) and not found.places(others)[1].any()
    with pytest.raises(InputError, match=f"no items with these ids: {others[0]}"):
        found.find(np.array([ids[0], others[0]]))


def test_texts_are_searched_for():
    found = Index.of(np.array(["1", "0", "2"]), np.arange(3))
    assert found.find(np.array(["0", "2"])).tolist() == [1, 2]
    assert not found.places(np.array([0, 1]))[1].any()


def test_an_id_that_is_dropped_leaves_a_gap():
    found = index([0, 1, 2, 3]).without(np.array([1]))
    assert found.places(np.array([0, 1, 2, 3]))[1].tolist() == [True, False, True, True]
    assert found.find(np.array([3, 2])).tolist() == [103, 102]
