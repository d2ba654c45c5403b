"""Jagged inputs in exported forms: bags of any size, empty ones, and ids outside of their tables."""

from __future__ import annotations

import pytest
import torch
from bagged import DOUBLE, IDS, SIZES, Pooled, Weighted, bags, ends, starts
from helpers import assert_equal
from test_runner import exported
from torch import Tensor

import rankhoist
from rankhoist.compiler.emit import pooled
from rankhoist.errors import BackendError, VocabularyError
from rankhoist.runtime import load_onnx, load_package

PRICE = torch.linspace(-1, 1, len(SIZES), dtype=DOUBLE).unsqueeze(1)
OFFSETS = [0, 4, 4, len(SIZES)]


def hoisted_bags(level: str = "full") -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    tags, words = bags(SIZES, True), bags(SIZES, seed=3)
    example = tags.values[0], starts(tags.lengths), words.values[0], starts(words.lengths), PRICE, tags.values[1]
    jagged = {"tags": "tag_offsets", "strengths": "tag_offsets", "words": "word_offsets"}
    return rankhoist.hoist(Weighted().eval(), example, context=["tags"], jagged=jagged, level=level)


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoisted_bags()


def check(form: rankhoist.runtime.Runner, hoisted: rankhoist.HoistedModel, several: bool = True) -> None:
    """Called like the hoisted model, with the same scores and refusals."""
    words = bags(SIZES, seed=2)
    for sizes, offsets in (((7,), None), ((0,), None), ((4, 0, 3), OFFSETS))[: 2 + several]:
        context = [bags(sizes, True, seed=1)]
        want = hoisted.score(hoisted.prepare(context), [words, PRICE], offsets)
        assert_equal(form.score(form.prepare(context), [words, PRICE], offsets), want)
    state = form.prepare(context := [bags((3,), True)])
    for few in (0, 1):  # also where no candidate has a value
        want = hoisted.score(hoisted.prepare(context), [words[:few], PRICE[:few]])
        assert_equal(form.score(state, [words[:few], PRICE[:few]]), want)
    wrong = bags(SIZES, seed=2)
    wrong.values[0][5] = IDS
    with pytest.raises(VocabularyError, match="input 'words' has id 40 in row 2, expected 0 to 39"):
        form.score(state, [wrong, PRICE])
    wrong = bags((3,), True)
    wrong.values[0][1] = -1
    with pytest.raises(VocabularyError, match="input 'tags' has id -1 in row 0, expected 0 to 39"):
        form.prepare([wrong])


def test_an_exported_program(hoisted: rankhoist.HoistedModel, tmp_path):
    check(exported(hoisted, tmp_path), hoisted)


def test_onnx(hoisted: rankhoist.HoistedModel, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    hoisted.export_onnx(tmp_path, several=True)
    check(load_onnx(tmp_path), hoisted)


def test_a_package(hoisted: rankhoist.HoistedModel, tmp_path):
    hoisted.package(tmp_path)
    check(load_package(tmp_path), hoisted, several=False)


def test_bags_that_are_computed_with_once_per_candidate_are_refused(tmp_path):
    with pytest.raises(BackendError, match="bags of a request that are computed with once per candidate"):
        exported(hoisted_bags("expand"), tmp_path)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("cut", [starts, ends])
def test_pooling_without_a_loop_over_bags(mode: str, padding: int | None, cut):
    model = torch.nn.EmbeddingBag(IDS, 5, mode=mode, padding_idx=padding, include_last_offset=cut is ends, dtype=DOUBLE)
    last = IDS - 1 if padding == -1 else padding

    def made(ids: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        number = ["sum", "mean", "max"].index(mode)
        (found,) = pooled.embedding_bag(model.weight, ids, offsets, False, number, False, weights, cut is ends, padding)
        return found

    for sizes in (SIZES, (0, 0, 2), (3, 0), (0,)):
        given = bags(sizes, True)
        ids = given.values[0].clone()
        ids[: len(ids) // 2] = last if last is not None else 0  # a bag of nothing but padding
        weights = given.values[1] if mode == "sum" else None
        offsets = cut(given.lengths)
        assert_equal(made(ids, offsets, weights), model(ids, offsets, weights))


def test_a_model_of_one_mode_each(tmp_path):
    """The maximum, and a mean without padding, with the other way to cut."""
    model = Pooled("max", include_last_offset=True, padding_idx=2).eval()
    given = bags(SIZES)
    example = given.values[0], ends(given.lengths), given.values[0], ends(given.lengths), PRICE
    hoisted = rankhoist.hoist(
        model, example, context=["tags"], jagged={"tags": "tag_offsets", "words": "word_offsets"}
    )  # fmt: skip
    form = exported(hoisted, tmp_path, several=False)
    words, context = bags(SIZES, seed=5), [bags((6,))]
    want = hoisted.score(hoisted.prepare(context), [words, PRICE])
    assert_equal(form.score(form.prepare(context), [words, PRICE]), want)
