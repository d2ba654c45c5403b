"""The measure of verification: errors by an output's scale, results that cannot be compared, and the tolerance."""

from __future__ import annotations

import math

import pytest
import torch

from rankhoist.verify.batches import Batch
from rankhoist.verify.compare import Comparison, Own, rounded
from rankhoist.verify.measure import difference, mismatch, outputs, scale_of, tolerance


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([math.nan, 2.0], [math.nan, 2.0], 0.0),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [math.nan, 2.0], math.inf),
        ([math.inf, 2.0], [math.inf, 2.0], 0.0),
        ([-math.inf, 2.0], [math.inf, 2.0], math.inf),
        ([1e-9, 0.0], [0.0, 0.0], 1e-9),  # all zero: the scale is 1
    ],
)
def test_errors_are_relative_to_the_outputs_scale(actual, expected, error):
    a, e = torch.tensor(actual, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    found = difference([e, a], [e, e], scale_of([e, e]))
    assert found.error == pytest.approx(error)
    assert found.at is None if error == 0 else found.at == (1, (int((a != e).nonzero()[0]),))


def test_integers_may_be_those_of_the_truth_or_those_of_the_original():
    def errors(actual: list[int]) -> float:
        batch = Batch({}, {}, (0, 2))
        given, truth, own = (outputs(torch.tensor(x)) for x in (actual, [1, 5], [1, 6]))
        return rounded("float32", Comparison([batch], [given], [truth]), Own([own], {}), torch.float32).error

    assert [errors(actual) for actual in ([1, 5], [1, 6], [1, 7], [2, 5])] == [0.0, 0.0, math.inf, math.inf]


def test_integers_are_equal_or_not():
    assert difference([torch.tensor([1, 2])], [torch.tensor([1, 3])], 1e9).error == math.inf
    assert difference([torch.tensor([True])], [torch.tensor([True])], 1.0).error == 0.0


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        ({"a": torch.zeros(2, 1)}, "output['a'] has shape [2, 1], expected [2]"),
        ({"a": torch.zeros(2).double()}, "output['a'] has dtype torch.float64, expected torch.float32"),
        ({"b": torch.zeros(2)}, "the outputs are output['b'], expected output['a']"),
        ({"a": 3}, "output['a'] is 3, expected tensor"),
    ],
)
def test_results_that_cannot_be_compared(actual, words):
    assert words in mismatch(outputs(actual), outputs({"a": torch.zeros(2)}), same_dtype=True)


def test_tolerance_has_one_formula():
    eps = torch.finfo(torch.float32).eps
    assert tolerance(0.0, torch.float32) == 8 * eps
    assert tolerance(1e-3, torch.float32) == 2e-3
