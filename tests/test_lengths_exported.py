"""Exported forms of models with axes that vary: one file for histories of all lengths, of one event and more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_equal
from lengthy import IDS, WIDTH, Reader, attended, attends, hoisted_attends, reader, rows_of
from test_jagged_exported import hoisted_bags
from test_runner import exported
from test_triton import Triton
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import BackendError, ExportWarning, InputError, VocabularyError
from rankhoist.runtime import Runner, load_onnx, load_package
from rankhoist.runtime.triton import to_triton

SIZES = ((1, 1), (2, 30), (17, 3), (50, 2))  # of the history, and of the other
OFFSETS = [0, 3, 3, 7]


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoisted_attends()


def check(form: Runner, several: bool = True) -> None:
    """Called like the hoisted model, with the scores of the original and the same refusals."""
    for sizes in SIZES:
        for offsets in (None, OFFSETS)[: 1 + several]:
            context, candidates = attends(*sizes, requests=1 if offsets is None else 3)
            got = form.score(form.prepare(context), candidates, offsets)
            for name, want in attended(context, candidates, offsets).items():
                assert_equal(got[name], want, f"{name}, lengths {sizes}, {offsets}")
    context, candidates = attends(5, 2)
    state = form.prepare(context)
    with pytest.raises(InputError, match=r"'matches' has shape \[7, 51\], expected \[rows, 1..50\]"):
        form.score(state, candidates | {"matches": torch.zeros(7, 51, dtype=torch.float64)})
    context["history"][0, 4] = IDS
    with pytest.raises(VocabularyError, match="input 'history' has id 40 in row 0, expected 0 to 39"):
        form.prepare(context)


def test_an_exported_program(hoisted: rankhoist.HoistedModel, tmp_path: Path):
    check(exported(hoisted, tmp_path))


def test_onnx(hoisted: rankhoist.HoistedModel, tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    with pytest.warns(ExportWarning, match="takes one position and more of other; the hoisted model takes none"):
        hoisted.export_onnx(tmp_path, several=True)
    form = load_onnx(tmp_path)
    check(form)
    with pytest.raises(InputError, match=r"'other' has shape \[1, 0\], expected \[rows, 1..30\]"):
        form.prepare(attends(5, 0)[0])
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for file in ("request", "candidate")
        for value in onnx.load(tmp_path / f"{file}.onnx").graph.input
    }
    assert shapes["history"] == shapes["times"] == ["requests", "axis_1_of_history"]
    assert shapes["other"] == ["requests", "axis_1_of_other"] and shapes["matches"] == ["rows", "axis_1_of_history"]


@pytest.mark.slow
def test_a_package(hoisted: rankhoist.HoistedModel, tmp_path: Path):
    hoisted.package(tmp_path, several=True)
    check(load_package(tmp_path))


def test_a_repository_of_triton(hoisted: rankhoist.HoistedModel, tmp_path: Path):
    to_triton(hoisted, tmp_path, "any")
    triton = Triton(tmp_path)
    assert {i.name: list(i.dims) for i in triton.configs["any"].input} == {
        "history": [1, -1], "times": [1, -1], "other": [1, -1], "item": [-1], "matches": [-1, -1],
    }  # fmt: skip
    for sizes in SIZES:
        context, candidates = attends(*sizes)
        made = triton.infer("any", {n: x.numpy() for n, x in (context | candidates).items()})
        for name, want in attended(context, candidates).items():
            assert_equal(torch.from_numpy(made[name]), want, f"{name}, lengths {sizes}")
    assert all(triton.warm_up(f"any_{stage}") for stage in ("request", "candidate"))


def began(h: Tensor, q: Tensor, ids: Tensor, first: nn.Embedding) -> Tensor:
    """A token before the history: one state is longer by one."""
    tokens = torch.cat([first.weight.expand(len(h), 1, WIDTH), h], 1)
    return ((tokens * q[:, None]).sum(2).softmax(1)[:, None] @ tokens).squeeze(1)


def test_states_that_are_longer_than_their_histories(tmp_path: Path):
    torch.manual_seed(0)
    model = Reader(began, first=nn.Embedding(1, WIDTH))
    context, candidate = rows_of(9, 7)
    made = rankhoist.hoist(model, context | candidate, context=["history"], dynamic={"history": 1}, level="request")
    form = exported(made, tmp_path)
    assert any(t.shape[-1] == 6 or t.shape[1] == 6 for t in form.prepare(rows_of(5)[0]).tensors.values() if t.dim() > 1)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(OFFSETS).diff())
    for length in (1, 2, 40):
        context, candidate = rows_of(length, 3)
        want = model(context["history"][owner], candidate["item"]).detach()
        assert_equal(form.score(form.prepare(context), candidate, OFFSETS), want, f"length {length}")


class Twice(Reader):
    """Two tasks one above the other, `[2, rows]`, and weights over the history read twice, `[rows, 2 T]`."""

    def forward(self, history: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        h, q = self.table(history).repeat(1, 2, 1), self.table(item)
        weights = (h * q[:, None]).sum(2).softmax(1)
        return torch.stack([weights.amax(1), q.sum(1)]), weights


def test_rows_on_another_axis_and_lengths_that_are_more(tmp_path: Path):
    model = Twice(began)
    context, candidate = rows_of(9, 7)
    made = rankhoist.hoist(model, context | candidate, context=["history"], dynamic={"history": 1}, level="request")
    form = exported(made, tmp_path)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(OFFSETS).diff())
    for length, rows in ((2, 7), (40, 7), (3, 0)):
        context, candidate = rows_of(length, 3)[0], {"item": rows_of(length, 7)[1]["item"][:rows]}
        want = model(context["history"][owner[:rows]], candidate["item"])
        got = form.score(form.prepare(context), candidate, OFFSETS if rows else [0, 0, 0, 0])
        for ours, theirs in zip(got, want, strict=True):
            assert ours.shape == theirs.shape
            assert_equal(ours, theirs.detach(), f"length {length}")


def test_what_is_not_exported_for_any_length_is_refused_by_name(tmp_path: Path):
    context, candidate = rows_of(9, 7)
    model, dynamic = reader("last_of_gru"), {"history": {1: (1, 60)}}
    made = rankhoist.hoist(model, context | candidate, context=["history"], dynamic=dynamic, level="request")
    with pytest.raises(BackendError, match=r"cannot export request: [\s\S]*axis_1_of_history"):
        made.export_onnx(tmp_path)
    with pytest.raises(BackendError, match="Triton's takes no jagged input, as 'tags' is"):
        to_triton(hoisted_bags(), tmp_path, "bags")
