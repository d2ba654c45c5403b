"""The comparison that the tests share: what is not a number is equal to the same, at the same place, alone."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_equal

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_the_same_is_equal(value):
    assert_equal(torch.tensor([value, 1.0, 3.0]), torch.tensor([value, 1.0 + 1e-7, 3.0]))


@pytest.mark.parametrize(("one", "other"), [(INF, 1.0), (INF, -INF), (INF, NAN), (NAN, 1.0), (-INF, 0.0), (1.0, 1.1)])
def test_anything_else_is_not(one, other):
    for a, b in ((one, other), (other, one)):
        with pytest.raises(AssertionError, match="differs by"):
            assert_equal(torch.tensor([a, 2.0]), torch.tensor([b, 2.0]))
