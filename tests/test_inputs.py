"""The checks of a call, apart from any model: inputs by side, their rows, and the blocks of several requests."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist import Split
from rankhoist.capture import InputSpec, Interface
from rankhoist.capture.signature import Arguments
from rankhoist.errors import InputError
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.offsets import blocks_of

CPU = torch.device("cpu")
SPECS = [
    InputSpec("user", (), torch.int64, "context"),
    InputSpec("hour", (3,), torch.float32, "context"),
    InputSpec("new", (), torch.bool, "candidate"),
    InputSpec("item", (2, 2), torch.float32, "candidate"),
    InputSpec("X", (4,), torch.float32, "packed", (1, 3)),
]


def interface(example: dict[str, Tensor] | None = None) -> Interface:
    names = [spec.name for spec in SPECS]
    call = pytree.tree_structure(((0,) * len(names), {}))
    specs = {f"p_{spec.name}": spec for spec in SPECS}
    return Interface(
        specs, pytree.tree_structure(0), call, Arguments.named(names), {}, torch.float32, CPU, example or {}
    )


@pytest.fixture
def inputs() -> Inputs:
    return Inputs(interface(), torch.float32, CPU)


def context(rows: int, **changed: Any) -> dict[str, Any]:
    made = {"user": torch.arange(rows), "hour": torch.ones(rows, 3), "X": torch.ones(rows, 2)}
    return made | changed


def candidate(rows: int, **changed: Any) -> dict[str, Any]:
    return {"new": torch.ones(rows).bool(), "item": torch.ones(rows, 2, 2), "X": torch.zeros(rows, 2)} | changed


def call(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {**first, **second, "X": Split(first["X"], second["X"])}


# -- by side


def test_a_call_is_sorted_by_side(inputs):
    first, second = context(2), candidate(5)
    given = call(first, second)
    for args, kwargs in (((), given), ([given[spec.name] for spec in SPECS], {})):
        made = inputs.of_call(tuple(args), kwargs)
        for side, expected in zip(made, (first, second), strict=True):
            assert side.keys() == expected.keys() and all(side[name] is expected[name] for name in side)


def test_a_side_is_given_by_name_or_in_order(inputs):
    given = context(2)
    for way in (given, [*given.values()], candidate(5) | given):
        assert inputs.of_side("context", way) == given


def test_the_one_input_of_a_side_needs_no_list():
    spec = InputSpec("x", (), torch.int64, "context")
    one = interface()
    one.inputs.clear()
    one.inputs["p_x"] = spec
    x = torch.arange(3)
    assert Inputs(one, torch.float32, CPU).of_side("context", x)["x"] is x


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user": 0}, "missing context inputs: hour, X; got user"),
        ({}, "missing context inputs: user, hour, X; got none"),
        ({"user": [0, 1], "hour": 0, "X": 0}, "input 'user' is list, expected a tensor: torch.tensor(x)"),
        (
            {"user": [torch.ones(1)] * 2, "hour": 0, "X": 0},
            "input 'user' is a container (user.0 and 1 more), expected a tensor with rows on axis 0",
        ),
        ([0, 0], "expected 3 context inputs (user, hour, X), got 2"),
        (context(2) | {"age": 0, "item": 0}, "not context inputs: age; the context inputs are user, hour, X"),
    ],
)
def test_a_side_is_whole(inputs, given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        inputs.of_side("context", given)


def test_a_packed_input_comes_in_two_parts(inputs):
    message = "packed input 'X' is given as rankhoist.Split(context=[R, 2], candidate=[N, 2]), got Tensor"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        inputs.of_call((), call(context(1), candidate(1)) | {"X": torch.ones(1, 4)})


# -- rows


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_rows_are_counted(inputs, rows):
    assert inputs.accept("context", context(rows)) == rows
    assert inputs.accept("candidate", candidate(rows)) == rows


def test_without_inputs_there_is_one_request_and_no_candidate(inputs):
    assert (inputs.accept("context", {}), inputs.accept("candidate", {})) == (1, 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": torch.ones(2)}, "context input 'user' has dtype torch.float32, expected torch.int64"),
        ({"user": torch.ones(2).bool()}, "context input 'user' has dtype torch.bool, expected torch.int64"),
        ({"user": torch.tensor(1)}, "context input 'user' has shape [], expected [rows]"),
        ({"user": torch.ones(2, 1).long()}, "context input 'user' has shape [2, 1], expected [rows]"),
        ({"user": [1, 2]}, "context input 'user' is list, expected a tensor: torch.tensor(x)"),
        ({"user": np.ones(2)}, "context input 'user' is ndarray, expected a tensor: torch.from_numpy(x)"),
        ({"user": torch.ones(2, device="meta").long()}, "context input 'user' is on the meta device and has no values"),
        ({"hour": torch.ones(2, 3).double()}, "context input 'hour' has dtype torch.float64, expected torch.float32"),
        ({"hour": torch.ones(2, 3).long()}, "context input 'hour' has dtype torch.int64, expected torch.float32"),
        ({"hour": torch.ones(3)}, "context input 'hour' has shape [3], expected [rows, 3]"),
        ({"X": torch.ones(2, 4)}, "context input 'X' has shape [2, 4], expected [rows, 2]"),
        ({"hour": torch.ones(1, 3)}, "the context inputs have different row counts (user: 2, hour: 1, X: 2)"),
    ],
)
def test_what_is_wrong_is_said(inputs, changed, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        inputs.accept("context", context(2, **changed))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_integers_of_another_width_become_the_example_s(inputs, dtype):
    given = context(2, user=torch.arange(2, dtype=dtype))
    assert inputs.accept("context", given) == 2
    assert given["user"].dtype == torch.int64 and given["user"].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.uint64])
def test_a_number_that_does_not_fit_the_example_s_dtype_is_refused(dtype):
    spec = InputSpec("item", (), torch.int8, "candidate")
    narrow = Inputs(replace(interface(), inputs={"item": spec}), torch.float32, CPU)
    given = {"item": torch.tensor([1, 127], dtype=dtype)}
    assert narrow.accept("candidate", given) == 2 and given["item"].dtype == torch.int8
    with pytest.raises(InputError, match=r"^candidate input 'item' has numbers that do not fit torch\.int8, which"):
        narrow.accept("candidate", {"item": torch.tensor([1, 128], dtype=dtype)})


def test_a_model_that_moved_takes_its_new_dtype():
    moved = Inputs(interface(), torch.float64, CPU)
    assert moved.accept("context", context(2, hour=torch.ones(2, 3).double(), X=torch.ones(2, 2).double())) == 2
    with pytest.raises(InputError, match=r"'hour' has dtype torch\.float32, expected torch\.float64"):
        moved.accept("context", context(2))


# -- made-up rows


def test_made_up_rows_are_zeros_or_the_example_s(inputs):
    for side in ("context", "candidate"):
        made = inputs.made_up(side, 5)
        assert inputs.accept(side, made) == 5 and not any(t.any() for t in made.values())
    example = {spec.name: torch.arange(3 * torch.Size(spec.shape).numel()).reshape(3, *spec.shape) for spec in SPECS}
    known = Inputs(interface(example), torch.float64, CPU)
    assert known.made_up("context", 4)["X"].tolist() == [[1, 3], [5, 7], [9, 11], [1, 3]]
    assert known.made_up("candidate", 2)["X"].tolist() == [[0, 2], [4, 6]]
    assert known.made_up("context", 2)["hour"].dtype == torch.float64


# -- blocks


@pytest.mark.parametrize("of", [list, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
def test_blocks_of_several_requests(of):
    blocks = blocks_of(of([0, 3, 3, 5]), 3, 5)
    assert blocks.offsets.tolist() == [0, 3, 3, 5] and blocks.owner.tolist() == [0, 0, 0, 2, 2]
    assert blocks_of(of([0]), 0, 0).owner.tolist() == []


def test_one_request_has_no_blocks():
    assert blocks_of(None, 1, 5) is None and blocks_of([0, 5], 1, 5) is None


@pytest.mark.parametrize(
    ("offsets", "requests", "message"),
    [
        (None, 2, "the context has 2 rows; pass request_offsets with 3 boundaries"),
        ([0, 2.5, 5], 2, "request_offsets are torch.float32, expected whole numbers"),
        ("abc", 2, "request_offsets are no numbers: new(): invalid data type 'str'"),
        (
            None,
            5,
            "the context has 5 rows; pass request_offsets with 6 boundaries. Of one request, give one row of "
            "context, x[:1]",
        ),
        (None, 0, "the context has 0 rows; pass request_offsets with 1 boundaries"),
        ([0, 5], 2, "request_offsets has shape [2], expected [3] for 2 requests"),
        ([0, 4], 1, "request_offsets must rise from 0 to 5 (the candidate rows), got [0, 4]"),
        ([1, 2, 5], 2, "request_offsets must rise from 0 to 5 (the candidate rows), got [1, 2, 5]"),
        ([0, 6, 5], 2, "request_offsets must rise from 0 to 5 (the candidate rows), got [0, 6, 5]"),
    ],
)
def test_blocks_that_do_not_fit(offsets, requests, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        blocks_of(offsets, requests, 5)


def test_the_signature_is_the_interface_s(inputs):
    assert isinstance(inputs.interface.arguments.signature, inspect.Signature)
    with pytest.raises(InputError, match="do not fit the model's signature"):
        inputs.of_call((), {"user": torch.ones(1)})
