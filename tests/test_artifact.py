"""Hoisted models in files: what is loaded is what was saved; what cannot be saved is refused."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from artifacts import (
    CASES,
    OFFSETS,
    assert_scores_alike,
    forge,
    identical,
    made,
    members,
    nested,
    ranker_inputs,
    saved_ranker,
)
from helpers import Function
from random_models import build
from torch import Tensor, nn

import rankhoist
from rankhoist import ArtifactError, HoistedModel, hoist, load, verify
from rankhoist.errors import VerificationError, WeightsError
from rankhoist.hoist import hoist_program
from rankhoist.runtime import container
from rankhoist.runtime.tensor_file import PIECE, from_stream, to_pieces
from rankhoist.verify import Certificate


@pytest.fixture
def hoisted() -> HoistedModel:
    return made("ranker")[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.rankhoist").write_bytes(saved_ranker())
    return tmp_path / "model.rankhoist"


# -- what is loaded is what was saved


def test_a_model_is_pickled_as_its_file(hoisted: HoistedModel):
    """For workers of another process; a shallow copy is no file, and shares its weights."""
    sent = pickle.loads(pickle.dumps(hoisted))
    assert sent.program is None and sent.backend == "eager"
    assert_scores_alike(sent, hoisted, ranker_inputs)
    moved = pickle.loads(pickle.dumps(copy.deepcopy(hoisted).double().to_backend("inductor")))
    assert (moved.backend, moved.dtype) == ("inductor", torch.float64)
    shared = copy.copy(hoisted)
    assert shared.program is hoisted.program and shared._weights is hoisted._weights


@pytest.mark.parametrize("name", CASES)
def test_scores_and_report_survive(tmp_path, name):
    _, hoisted = made(name)
    hoisted.save(tmp_path / "x", example=True)
    loaded = load(tmp_path / "x")
    assert_scores_alike(hoisted, loaded, CASES[name][1])
    assert loaded.report() == hoisted.report() and str(loaded.report()) == str(hoisted.report())
    assert loaded.plans.ranges == hoisted.plans.ranges
    assert (loaded.level, loaded.dtype, repr(loaded)) == (hoisted.level, hoisted.dtype, repr(hoisted))
    for one, other in zip(loaded.plans.plans, hoisted.plans.plans, strict=True):
        assert (one.level, one.asked, one.workload, one.cost) == (other.level, other.asked, other.workload, other.cost)
    assert identical(loaded.example, hoisted.example)
    kept = {n: t for n, t in hoisted.state_dict().items() if "num_batches" not in n}
    assert identical(dict(loaded.state_dict()), kept)
    assert loaded.program is None


def test_the_ranker_has_several_plans(hoisted, path):
    """Otherwise the test above says nothing about ranges."""
    assert len(load(path).stages.variants) > 1


def test_a_loaded_model_is_saved_again(tmp_path):
    for name in CASES:
        _, hoisted = made(name)
        hoisted.save(tmp_path / "one")
        load(tmp_path / "one").save(tmp_path / "two")
        one, two = members(tmp_path / "one"), members(tmp_path / "two")
        assert all(one[member] == two[member] for member in container.MEMBERS), name


def test_prepare_and_score(hoisted, path):
    user, dense, item = ranker_inputs(1, 9)
    one, other = (m.score(m.prepare({"user": user, "dense": dense}), [item]) for m in (hoisted, load(path)))
    assert identical(one, other)


def test_keywords_and_errors_of_a_call_are_the_same(tmp_path):
    user, item = nested(1, 4)
    hoisted = made("nested")[1]
    hoisted.save(tmp_path / "x")
    loaded = load(tmp_path / "x")
    assert identical(loaded(user=user, item=item, unused=None), hoisted(user, item))
    for call in (lambda m: m(user), lambda m: m(item, item), lambda m: m(user, {"price": item["price"].double()})):
        messages = []
        for model in (hoisted, loaded):
            with pytest.raises(rankhoist.RankhoistError) as raised:
                call(model)
            messages.append(str(raised.value).split("signature")[0])
        assert messages[0] == messages[1]


def test_weights_are_updated_in_a_loaded_model(hoisted, path):
    loaded, new = load(path), copy.deepcopy(hoisted)
    state = {k: v * 1.5 if v.is_floating_point() else v for k, v in made("ranker")[0].state_dict().items()}
    for model in (loaded, new):
        model.update_weights(state)
    assert_scores_alike(loaded, new, ranker_inputs)
    assert not identical(loaded(*ranker_inputs(1, 3)), load(path)(*ranker_inputs(1, 3)))
    with pytest.raises(WeightsError, match="'order' decides what is computed"):
        loaded.update_weights(state | {"order": torch.arange(6)})


def test_a_loaded_model_is_copied_and_moved(hoisted, path):
    def double(r: int, n: int) -> tuple[Any, ...]:
        user, dense, item = ranker_inputs(r, n)
        return user, dense.double(), item

    loaded = load(path)
    assert_scores_alike(copy.deepcopy(loaded), hoisted, ranker_inputs)
    assert_scores_alike(copy.deepcopy(loaded).double(), copy.deepcopy(hoisted).double(), double)
    assert loaded.dtype == torch.float32


def test_a_moved_model_is_saved_as_it_is(hoisted, tmp_path):
    moved = copy.deepcopy(hoisted).double()
    moved.save(tmp_path / "x")
    loaded = load(tmp_path / "x")
    assert loaded.dtype == torch.float64
    assert_scores_alike(loaded.float(), copy.deepcopy(moved).float(), ranker_inputs)


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    _, hoisted = made("tied")
    hoisted.save(tmp_path / "x")
    assert len(members(tmp_path / "x")["weights.safetensors"]) < 2 * 20 * 8 * 4 + 1500
    state = load(tmp_path / "x").state_dict()
    assert state["user.weight"] is state["item.weight"] and state["scale"].untyped_storage().nbytes() == 20
    assert state["top.weight"].stride() == (1, 5)


def test_tensors_of_every_kind_survive():
    base = torch.randn(4, 6)
    tensors = {
        "a": base, "b": base, "c": base.t(), "d": base[1:3, ::2], "e": base[0], "empty": torch.empty(0, 3),
        "also_empty": torch.empty(3, 0), "number": torch.tensor(2.5), "parameter": nn.Parameter(base),
        "expanded": torch.tensor([1]).expand(5), "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        **{str(t): base.mul(3).to(t) for t in (torch.bool, torch.int8, torch.half, torch.cfloat, torch.cdouble)},
        "conjugate": torch.randn(3, 2, dtype=torch.cdouble).t().conj(), "imaginary": torch.tensor(2j),
        "negative": torch.randn(3, dtype=torch.cfloat).conj().imag, "no_complex": torch.empty(2, 0, dtype=torch.cfloat),
    }  # fmt: skip
    pieces, table = to_pieces(tensors)
    data = b"".join(pieces)
    assert safetensors.torch.load(data).keys() == {line["stored"] for line in table.values()}
    read = from_stream(io.BytesIO(data), len(data), table)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read["a"] is read["b"] is read["parameter"] and read["a"] is not read["c"]


def test_pairs_that_are_no_complex_numbers_are_refused():
    pieces, table = to_pieces({"x": torch.ones(3, 2, dtype=torch.float64), "y": torch.ones(2, 3)})
    data = b"".join(pieces)
    for name, dtype in (("x", "complex64"), ("y", "complex64")):
        with pytest.raises(ArtifactError, match=f"tensor '{name}' has no pairs of torch.float32"):
            from_stream(io.BytesIO(data), len(data), {**table, name: table[name] | {"dtype": dtype}})


def turned(c: Tensor, k: Tensor, by: Tensor) -> Tensor:
    """Positions as turns of the complex plane."""
    x = torch.view_as_complex(torch.stack([c, k], 1).unflatten(2, (2, 2))) * by
    return torch.view_as_real(x).flatten(1).cumsum(1)


def test_a_model_with_complex_numbers_is_saved(tmp_path):
    model = Function(turned, by=torch.polar(torch.ones(2, 2).double(), torch.rand(2, 2).double())).eval()
    c, k = torch.randn(1, 4).double(), torch.randn(7, 4).double()
    hoist(model, (c.expand(7, -1), k), context=["context"]).save(tmp_path / "turned.rankhoist")
    loaded = load(tmp_path / "turned.rankhoist")
    torch.testing.assert_close(loaded(c, k), model(c.expand(7, -1), k))


def test_a_loaded_model_is_verified(hoisted, path):
    certificate = verify(load(path), made("ranker")[0], candidates=[1, 7])
    assert certificate.passed and "no captured graph" in certificate.note
    wrong = load(path)
    wrong.update_weights({k: v + 0.01 if v.is_floating_point() else v for k, v in wrong.state_dict().items()})
    assert not verify(wrong, made("ranker")[0], candidates=[7]).passed


def test_a_model_that_is_not_double_is_verified_before_it_is_saved(tmp_path):
    weight = torch.randn(4, 2)
    model = Function(lambda c, k: (c.float() + k.float()) @ weight).eval()
    hoisted = hoist(model, (torch.randn(3, 4), torch.randn(3, 4)), context=["context"])
    assert verify(hoisted, model, candidates=[3]).passed
    hoisted.save(tmp_path / "x")
    wrong = nn.Module()
    wrong.forward = lambda context, candidate: F.linear(context + candidate, weight.t())
    with pytest.raises(VerificationError, match=r"raises RuntimeError.*no captured graph.*before it is saved"):
        verify(load(tmp_path / "x"), wrong.eval(), candidates=[3])


def test_a_certificate_is_kept(hoisted, tmp_path):
    certificate = verify(hoisted, made("ranker")[0], candidates=[2])
    hoisted.save(tmp_path / "x", certificate)
    stored = json.loads(members(tmp_path / "x")["model.json"])["certificate"]
    assert Certificate.from_json(json.dumps(stored)) == certificate
    assert hoisted.certificate is None

    def kept(model: HoistedModel, other: Certificate | None = None) -> Any:
        model.save(tmp_path / "again", other)
        return json.loads(members(tmp_path / "again")["model.json"])["certificate"]

    loaded = load(tmp_path / "x")
    assert kept(loaded) == kept(copy.deepcopy(loaded)) == kept(loaded.float()) == stored
    newer = verify(hoisted, made("ranker")[0], candidates=[3])
    assert kept(loaded, newer) == newer.to_dict() != stored
    assert kept(load(tmp_path / "x").double()) is None
    loaded.update_weights({k: v * 2 if v.is_floating_point() else v for k, v in loaded.state_dict().items()})
    assert kept(loaded) is None


def test_a_certificate_is_an_object_or_nothing(path):
    forge(path, "model.json", lambda data: data.update(certificate="passed"))
    with pytest.raises(ArtifactError, match="'passed' where dict is expected"):
        load(path)


def test_another_process_with_another_profile_scores_the_same(hoisted, path, tmp_path):
    given = ranker_inputs(3, 11)
    torch.save((given, hoisted(*given, request_offsets=OFFSETS)), tmp_path / "expected.pt")
    code = (
        "import torch, rankhoist\n"
        "given, expected = torch.load('expected.pt')\n"
        f"scores = rankhoist.load('{path.name}')(*given, request_offsets={OFFSETS})\n"
        "assert all(torch.equal(scores[k], expected[k]) for k in expected)\n"
    )
    profile = tmp_path / "profile.json"
    profile.write_text("{}")  # whoever reads it fails
    environment = os.environ | {"RANKHOIST_PROFILE": str(profile)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)


@pytest.mark.parametrize("seed", range(6))
def test_random_models_survive(seed, tmp_path):
    model = build(random.Random(seed).randint)
    hoisted = hoist_program(model.program)
    hoisted.save(tmp_path / "x")
    given = model.call(model.context, model.candidate)
    offsets = [0, 2, 2, len(next(iter(model.candidate.values())))]
    one, other = (m(**given, request_offsets=offsets) for m in (hoisted, load(tmp_path / "x")))
    assert identical(one, other)


# -- what cannot be saved


def test_a_file_is_written_whole_or_not_at_all(hoisted, path, monkeypatch):
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"model\.rankhoist cannot be written: No space left"):
        hoisted.save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(ArtifactError, match="cannot be written: No such file"):
        hoisted.save(path.parent / "nowhere" / "x")


def test_neither_saving_nor_loading_holds_a_weight_twice(tmp_path, monkeypatch):
    """A table is read piece by piece, into its own memory, and written from where it lies."""
    table = nn.EmbeddingBag(PIECE // 32, 24).eval()  # three pieces
    ids, weight = torch.randint(0, 9, (4, 2)), torch.rand(4, 1)
    hoisted = hoist(Weighted(table).eval(), (ids, weight), context=["ids"])
    hoisted.save(tmp_path / "x")
    read, largest = zipfile.ZipExtFile.read, []
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda f, n=-1: largest.append(len(d := read(f, n))) or d)
    again = rankhoist.load(tmp_path / "x")
    assert max(largest) <= PIECE < 4 * table.weight.numel()
    assert to_pieces({"table": table.weight})[0][1].obj.ctypes.data == table.weight.data_ptr()
    assert torch.equal(again(ids[:1], weight), hoisted(ids[:1], weight))


class Weighted(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids, weight):
        return self.table(ids) * weight
