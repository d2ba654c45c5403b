"""Axes that vary: one hoisted model for histories of all lengths, context work once per request."""

from __future__ import annotations

from pathlib import Path

import pytest
import sympy
import torch
from helpers import LEVELS, assert_equal
from lengthy import ALONE, NOT_EMPTY, ROWS, TOGETHER, WIDTH, Reader, check, reader, rows_of
from torch import Tensor, nn

import rankhoist
from rankhoist import HoistedModel
from rankhoist.capture import capture
from rankhoist.compiler.algebra.infer import Operand, inferred
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.lengths import Length, sized, usual
from rankhoist.compiler.graph.node import Rate, aten
from rankhoist.errors import (
    BackendError,
    CaptureError,
    ExportError,
    InputError,
    VocabularyError,
)

LARGE = ("encoded", "heads", "behind")  # of many operators


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    """A target attention over a history of up to 60."""
    context, candidate = rows_of(9, ROWS)
    dynamic = {"history": {1: (0, 60)}}
    return rankhoist.hoist(reader("activation_unit"), context | candidate, context=["history"], dynamic=dynamic)


@pytest.mark.parametrize("name", ALONE)
def test_what_reads_a_history_alone_is_computed_once_per_request(name: str):
    lowest = int(name in NOT_EMPTY)
    levels = [Level.LINEAR] if name in LARGE else [Level.REQUEST, Level.FULL]
    for made in check(reader(name), {"history": {1: (lowest, 60)}}, (lowest, 1, 2, 3, 17, 50), levels=levels):
        pairs = [n.work for n in made.plan.nodes if n.rate is Rate.PAIR]
        assert sum(w.multiply_adds for w in pairs) <= 2 * WIDTH, "the last layer is all that is left"
        assert sum(w.elements for w in pairs) <= 4 * WIDTH, "and nothing as long as a history"


@pytest.mark.parametrize("name", TOGETHER)
def test_what_a_candidate_reads_of_a_history_of_any_length(name: str):
    levels = [Level.FULL] if name in LARGE else LEVELS
    made = check(reader(name), {"history": 1}, (0, 1, 2, 3, 17, 50), levels=levels)
    if name == "activation_unit":
        layers = [n for n in made[-1].plan.nodes if n.work.multiply_adds and n.rate is Rate.PAIR]
        whole = 9 * 4 * WIDTH * 5 + 9 * 5 + 9 * WIDTH + 2 * WIDTH  # of the layers as they were written
        assert sum(n.work.multiply_adds for n in layers) < whole / 2


class Several(nn.Module):
    """Two histories, one of them with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(40, WIDTH), nn.Linear(2 * WIDTH, 1)
        self.double().eval()

    def forward(self, history: Tensor, mask: Tensor, other: Tensor, item: Tensor) -> Tensor:
        pooled = (self.table(history) * mask[..., None]).sum(1) + self.table(other).amax(1)
        return self.top(torch.cat([pooled, self.table(item)], 1)).squeeze(1)


def of_several(length: int, requests: int = 1, seed: int = 0, other: int | None = None) -> tuple[dict, dict]:
    """Rows of its inputs; the other history is longer."""
    context, candidate = rows_of(length, requests, seed)
    context["mask"] = torch.rand(requests, length, dtype=torch.float64)
    context["other"] = rows_of(length + 4 if other is None else other, requests, seed + 1)[0]["history"]
    return context, candidate


@pytest.mark.parametrize("dynamic", [
    {"history": 1, "mask": 1, "other": 1},
    {"history": {1: "T"}, "mask": {1: "T"}, "other": {1: (2, 90)}},
    {"history": {1: torch.export.Dim("T", min=1, max=90)}, "mask": {1: torch.export.Dim("T", min=1, max=90)},
     "other": {1: None}},
], ids=["found", "named", "dims"])  # fmt: skip
def test_inputs_of_the_same_length_are_one(dynamic: dict):
    model = Several()
    (made,) = check(model, dynamic, (1, 2, 30), levels=[Level.LINEAR], sides=of_several)
    history, mask, other, _ = made.interface.inputs.values()
    assert history.varying[0].length == mask.varying[0].length != other.varying[0].length
    context, candidate = of_several(3)
    with pytest.raises(InputError, match="axis 1 of 'history': 3, axis 1 of 'mask': 2"):
        made(**context | {"mask": context["mask"][:, :2]}, **candidate)


def test_a_call_outside_the_bounds_is_refused(hoisted: HoistedModel):
    context, candidate = rows_of(61)
    with pytest.raises(InputError, match=r"'history' has shape \[1, 61\], expected \[rows, 0..60\]"):
        hoisted(**context, **candidate)
    assert len(hoisted(**rows_of(60)[0], **candidate)) == ROWS


def test_an_id_outside_of_its_table_is_named_at_any_length(hoisted: HoistedModel):
    context, candidate = rows_of(5)
    context["history"][0, 3] = 40
    with pytest.raises(VocabularyError, match="input 'history' has id 40 in row 0, expected 0 to 39"):
        hoisted(**context, **candidate)


def test_files_and_verify_take_all_lengths(hoisted: HoistedModel, tmp_path: Path):
    model = reader("activation_unit")
    assert rankhoist.verify(hoisted, model, trials=1).passed
    hoisted.save(tmp_path / "any.rankhoist")
    loaded = rankhoist.load(tmp_path / "any.rankhoist")
    assert loaded.interface.inputs["history"].varying == hoisted.interface.inputs["history"].varying
    for length in (1, 13):
        context, candidate = rows_of(length)
        want = model(context["history"].expand(ROWS, -1), candidate["item"])
        assert_equal(loaded(**context, **candidate), want, f"length {length}")


def test_a_program_that_is_exported_already_keeps_its_axes():
    model, rows = reader("masked"), torch.export.Dim("rows", min=2, max=999)
    context, candidate = rows_of(9, ROWS)
    axes = {"history": {0: rows, 1: torch.export.Dim("length", min=2, max=30)}, "item": {0: rows}}
    program = torch.export.export(model, (), context | candidate, dynamic_shapes=axes)
    made = rankhoist.hoist(program, None, context=["history"])
    (axis,) = made.interface.inputs["history"].varying
    assert (axis.axis, axis.low, axis.high) == (1, 2, 30)
    context, candidate = rows_of(30)
    assert_equal(made(**context, **candidate), model(context["history"].expand(ROWS, -1), candidate["item"]))


def test_bounds_of_the_model_are_found_or_said():
    context, candidate = rows_of(9, ROWS)
    model, rows = (
        Reader(lambda h, q, ids, places: (h + places.weight[: ids.shape[1]]).sum(1), places=nn.Embedding(60, WIDTH)),
        context | candidate,
    )
    program = capture(model, rows, ["history"], dynamic={"history": 1})
    assert program.interface.inputs["history"].varying[0].high == 60, "it has 60 places"
    with pytest.raises(ExportError, match=r"does not take all lengths of history\[1\]"):
        capture(model, rows, ["history"], dynamic={"history": {1: (0, 99)}})


@pytest.mark.parametrize("least", [1, 2])
def test_what_is_done_otherwise_with_a_short_history_is_not_taken_for_it(least: int):
    class Branches(nn.Module):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            return history.sum(1) * item * (1 if history.shape[1] >= least else 3) + 1

    class Same(Branches):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            return super().forward(history, item) if history.shape[1] >= least else history.sum(1) * item + 1

    rows = {"history": torch.randn(4, 3), "item": torch.randn(4)}
    with_other = {"history": rows["history"] + 1, "item": rows["item"]}
    hoisted = rankhoist.hoist(Branches().eval(), with_other, context=["history"], dynamic={"history": 1})
    expected = 2 if least == 2 else 0  # of no position, both are 1
    assert hoisted.interface.inputs["history"].varying[0].low == expected
    if expected:
        with pytest.raises(InputError, match=r"has shape \[1, 1\], expected \[rows, 2..\]"):
            hoisted(torch.randn(1, 1), rows["item"])
    same = rankhoist.hoist(Same().eval(), rows, context=["history"], dynamic={"history": 1})
    assert same.interface.inputs["history"].varying[0].low == 0


@pytest.mark.parametrize(("dynamic", "how", "error", "words"), [
    ({"past": 1}, {}, InputError, "dynamic names 'past', which is no tensor"),
    ({"history": 0}, {}, InputError, "axis 0 of input 'history' .* cannot vary"),
    ({"history": {1: (5, 2)}}, {}, InputError, r"dynamic says \(5, 2\) of axis 1"),
    ({"history": {1: (4, 9)}}, {}, InputError, "the example has length 3 along axis 1 of input 'history'"),
    ({"item": 1}, {}, CaptureError, "axis 1 of input 'item' varies, and the input is candidate"),
    ({"history": 1}, {"item": ["item"]}, CaptureError, "a store of items cannot have yet"),
])  # fmt: skip
def test_other_uses_are_refused_by_name(dynamic: dict, how: dict, error: type, words: str):
    class Sums(nn.Module):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            return history.sum(1) * item.sum(1)

    rows = {"history": torch.randn(4, 3), "item": torch.randn(4, 5)}
    with pytest.raises(error, match=words):
        rankhoist.hoist(Sums().eval(), rows, context=["history"], dynamic=dynamic, **how)


def test_what_needs_one_size_refuses_by_name(hoisted: HoistedModel, tmp_path: Path):
    for backend in ("inductor", "onnx"):
        with pytest.raises(BackendError, match=f"'{backend}' takes no axis that varies, as axis 1 of 'history' does"):
            hoisted.to_backend(backend)


# -- sizes that vary


def test_lengths_are_exact_or_decline():
    length = program_length()
    assert length + 1 - 1 == length and length * 8 // 8 == length and (2 * length) // length == 2
    assert length != 9 and usual(length * 3) == 27 and 8 < length < 10
    assert length * 4 % 4 == 0 and sized(length.expr - length.expr, length.at) == 0
    for wrong in (
        lambda: int(length), lambda: range(length), lambda: 1.0 / length, lambda: length * 0.5, lambda: length // 2,
        lambda: -1 % length, lambda: length**2,
    ):  # fmt: skip
        with pytest.raises(Decline):
            wrong()


def test_what_an_operator_makes_of_a_length_is_found_by_several():
    x = Operand(((1, True), (program_length(), False), (4, False)), torch.float64)
    joined, _ = inferred(aten.cat.default, [[x, x], 1], {})
    assert joined.shape == ((1, True), (2 * program_length(), False), (4, False))
    folded, _ = inferred(aten.flatten.using_ints, [x, 1], {})
    assert folded.shape == ((1, True), (4 * program_length(), False))
    with pytest.raises(Decline, match="makes sizes"):  # of every two positions: no multiple of the length
        inferred(aten.max_pool1d.default, [Operand(((1, True), (4, False), (program_length(), False)), x.dtype), 2], {})


def program_length() -> Length:
    """A length of 9 in the example."""
    symbol = sympy.Symbol("s1", integer=True, positive=True)
    return Length(symbol, {symbol: 9})
