"""Hoisted models in files: what is loaded is what was saved, and a file that is not whole or not honest is refused."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import Function
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import build
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rankhoist
from rankhoist import ArtifactError, HoistedModel, Split, hoist, load, verify
from rankhoist.errors import VerificationError, WeightsError
from rankhoist.hoist import hoist_program
from rankhoist.runtime import container
from rankhoist.runtime.graph_json import function, to_data, to_graph
from rankhoist.runtime.tensor_file import from_bytes, to_bytes
from rankhoist.verify import Certificate

OFFSETS = [0, 4, 4, 11]
ADVICE = "damaged or incomplete: copy it again"


class Ranker(nn.Module):
    """Embeddings, a cross layer, a norm, an index, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 24), nn.Embedding(30, 8)
        self.cross, self.hidden = nn.Linear(35, 35), nn.Linear(35, 6)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.norm.running_mean.normal_()
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.user(user), self.item(item), dense], 1)
        x = x * self.cross(x) + x
        h = torch.relu(self.norm(self.hidden(x)))[:, self.order]
        return {"logit": self.out(h).squeeze(1), "hidden": h}


class Tied(nn.Module):
    """One table under two names, and weights that are views of another's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.item.weight = self.user.weight
        whole = torch.randn(16, 5)
        self.top = nn.Linear(16, 5, bias=False)
        self.top.weight = nn.Parameter(whole.t())
        self.register_buffer("scale", whole[3])
        self.shift = torch.rand(5)  # in no state dict

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.top(torch.cat([self.user(user), self.item(item)], 1))
        return x * self.scale + self.shift, [x.sum(1), x.argmax(1)]


class Nested(nn.Module):
    """Inputs in dicts, one with a default; norms and pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.top = nn.LayerNorm(12), nn.Linear(12, 3)
        self.pairs = torch.triu_indices(3, 3, 1)

    def forward(self, user: dict[str, Tensor], item: dict[str, Tensor], unused: None = None) -> Tensor:
        x = torch.cat([user["age"], user["taste"], item["price"]], 1)
        fields = x.reshape(-1, 3, 4)
        dots = fields @ fields.mT
        return self.top(self.norm(x)) + dots[:, self.pairs[0], self.pairs[1]] + dots.softmax(-1)[:, 0]


class Packed(nn.Module):
    """One matrix with columns of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(50, 4), nn.Linear(10, 1)

    def forward(self, X: Tensor) -> Tensor:
        return self.top(torch.cat([self.table(X[:, 0].long()), self.table(X[:, 2].long()), X[:, 1::2]], 1))


def ids(count: int, rows: int) -> Tensor:
    return torch.randint(0, count, (rows,))


def ranker_inputs(r: int, n: int) -> tuple[Any, ...]:
    return ids(20, r), torch.randn(r, 3), ids(30, n)


def low(r: int, n: int) -> tuple[Any, ...]:
    return torch.randn(r, 6).bfloat16(), torch.randn(n, 2).bfloat16()


def nested(r: int, n: int) -> tuple[Any, ...]:
    return {"age": torch.randn(r, 1), "taste": torch.randn(r, 7)}, {"price": torch.randn(n, 4)}


def rounding(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(F.linear(torch.cat([c, k], 1), w)).masked_fill(k[:, :1] > 0, float("-inf")).float()


# model, inputs of (context rows, candidate rows), context
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Any, ...]], Any]] = {
    "ranker": (Ranker, ranker_inputs, ["user", "dense"]),
    "tied": (Tied, lambda r, n: (ids(20, r), ids(20, n)), ["user"]),
    "nested": (Nested, nested, ["age", "taste"]),
    "packed": (Packed, lambda r, n: (Split(torch.rand(r, 2), torch.rand(n, 2)),), {"X": [0, 1]}),
    "bfloat16": (lambda: Function(rounding, w=torch.randn(4, 8).bfloat16()), low, ["context"]),
}


def whole(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.cat([x.context, x.candidate], 1) if isinstance(x, Split) else x for x in inputs)


@cache
def made(name: str) -> tuple[nn.Module, HoistedModel]:
    """The model of a case, and what it is hoisted to."""
    torch.manual_seed(0)
    build_model, inputs, context = CASES[name]
    model = build_model().eval()
    return model, hoist(model, whole(inputs(5, 5)), context=context)


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    return made("ranker")[1]


@pytest.fixture(scope="module")
def saved(hoisted: HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "model.rankhoist"
    hoisted.save(path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, saved: bytes) -> Path:
    (tmp_path / "model.rankhoist").write_bytes(saved)
    return tmp_path / "model.rankhoist"


def identical(a: Any, b: Any) -> bool:
    """The same structure, and tensors equal bit for bit."""
    left, right = pytree.tree_flatten(a), pytree.tree_flatten(b)
    pairs = zip(left[0], right[0], strict=True)
    return left[1] == right[1] and all(
        type(x) is type(y) and (x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, Tensor) else x == y)
        for x, y in pairs
    )


def assert_scores_alike(one: HoistedModel, other: HoistedModel, inputs: Callable[[int, int], tuple[Any, ...]]) -> None:
    """For one request and for three, with a few candidates and with many."""
    for count in (0, 1, 7, 300, 3000):
        given = inputs(1, count)
        assert identical(one(*given), other(*given)), count
    given = inputs(3, 11)
    assert identical(one(*given, request_offsets=OFFSETS), other(*given, request_offsets=OFFSETS))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip with these members, whatever they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def forge(path: Path, member: str, change: Callable[[Any], Any]) -> None:
    """Change the data of a JSON member in place, with right checksums."""
    contents = members(path)
    del contents[container.MANIFEST]
    data = json.loads(contents[member])
    change(data)
    container.write(path, contents | {member: json.dumps(data).encode()})


# -- what is loaded is what was saved


@pytest.mark.parametrize("name", CASES)
def test_scores_and_report_survive(tmp_path, name):
    _, hoisted = made(name)
    hoisted.save(tmp_path / "x")
    loaded = load(tmp_path / "x")
    assert_scores_alike(hoisted, loaded, CASES[name][1])
    assert loaded.report() == hoisted.report() and str(loaded.report()) == str(hoisted.report())
    assert loaded.plans.ranges == hoisted.plans.ranges
    assert (loaded.level, loaded.dtype, repr(loaded)) == (hoisted.level, hoisted.dtype, repr(hoisted))
    for one, other in zip(loaded.plans.plans, hoisted.plans.plans, strict=True):
        assert (one.level, one.asked, one.workload, one.cost) == (other.level, other.asked, other.workload, other.cost)
    assert identical(loaded.example, hoisted.example)
    assert identical(loaded.state_dict(), hoisted.state_dict())
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
    with pytest.raises(WeightsError, match="'order' selects positions"):
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
        **{str(t): base.mul(3).to(t) for t in (torch.bool, torch.int8, torch.half)},
    }  # fmt: skip
    data, table = to_bytes(tensors)
    read = from_bytes(data, table)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read["a"] is read["b"] is read["parameter"] and read["a"] is not read["c"]


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


class Result(NamedTuple):
    score: Tensor


def test_results_that_a_file_cannot_hold_are_refused(tmp_path):
    model = Function(lambda c, k: Result(c + k)).eval()
    hoisted = hoist(model, (torch.randn(3, 4), torch.randn(3, 4)), context=["context"])
    with pytest.raises(ArtifactError, match="cannot be saved: the model returns Result"):
        hoisted.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


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


# -- damage


def test_files_that_are_no_artifacts(tmp_path):
    (tmp_path / "text").write_text("hello")
    rewrite(tmp_path / "zip", {"hello.txt": b"hello"})
    for name, message in (
        ("none", "No such file"),
        ("", "Is a directory"),
        ("text", "no artifact"),
        ("zip", "no manifest"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load(tmp_path / name)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(path, saved, share):
    path.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(ArtifactError, match=rf"model\.rankhoist .*{ADVICE}"):
        load(path)


@pytest.mark.parametrize("member", [container.MANIFEST, *container.MEMBERS])
def test_a_flipped_byte_in_every_member(path, saved, member):
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    start = info.header_offset + 30 + len(member)
    for position in (start, start + info.file_size // 2, start + info.file_size - 1):
        path.write_bytes(saved[:position] + bytes([saved[position] ^ 1]) + saved[position + 1 :])
        with pytest.raises(ArtifactError, match=ADVICE):
            load(path)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_damage_is_noticed_or_harmless(path, saved, hoisted, data):
    damaged = bytearray(saved)
    last_parts = st.integers(len(saved) - 600, len(saved) - 1)  # the zip's directory, where nothing has a checksum
    positions = st.one_of(st.integers(0, len(saved) - 1), last_parts)
    for position in data.draw(st.lists(positions, min_size=1, max_size=3)):
        damaged[position] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        loaded = load(path)
    except ArtifactError:
        return
    given = ranker_inputs(1, 20)
    assert identical(loaded(*given), hoisted(*given))


@pytest.mark.parametrize("member", container.MEMBERS)
def test_a_wrong_checksum(path, member):
    contents = members(path)
    contents[member] = contents[member].replace(b"0", b"1", 1)
    rewrite(path, contents)
    with pytest.raises(ArtifactError, match=f"the checksum of {member} is wrong"):
        load(path)


@pytest.mark.parametrize("missing", ["format", "members", "date", "versions"])
def test_a_manifest_that_lacks_something(path, missing):
    contents = members(path)
    manifest = json.loads(contents["manifest.json"])
    del manifest[missing]
    rewrite(path, contents | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ArtifactError, match=f"it lacks '{missing}'"):
        load(path)


def test_a_newer_format_names_both_versions(path):
    contents = members(path)
    manifest = json.loads(contents["manifest.json"])
    newer = {"format": 2, "versions": {"rankhoist": "9.1"}, "members": {}, "date": manifest["date"]}
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", json.dumps(newer))
            archive.writestr("unheard.of", b"0" * 1000, packed)
        with pytest.raises(ArtifactError, match=r"format 2, written by rankhoist '9\.1'; this is rankhoist .*Upgrade"):
            load(path)


@pytest.mark.parametrize("name", ["extra.py", "../outside", "/tmp/outside", "model.json/x"])
def test_other_members_are_refused(path, name):
    rewrite(path, members(path) | {name: b"import os"})
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_are_there_once(path):
    contents = members(path)
    missing = {k: v for k, v in contents.items() if k != "stages.json"}
    rewrite(path, missing)
    with pytest.raises(ArtifactError, match=r"not those of an artifact: 'stages\.json'"):
        load(path)
    rewrite(path, contents)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("stages.json", contents["stages.json"])
    with pytest.raises(ArtifactError, match="not those of an artifact"):
        load(path)


def test_compressed_members_are_refused(path):
    rewrite(path, members(path), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="is not stored as an artifact stores it"):
        load(path)


# -- files that somebody made up


def candidate_nodes(data: Any) -> list[Any]:
    return data["variants"][0]["candidate"]["nodes"]


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "aten.__class__", "aten.__class__.mro", "aten.linear", "aten.linear.nothing",
        "aten.from_file.default", "aten.save.default", "aten.manual_seed.default", "aten.set_.source_Storage",
        "aten.resize_.default", "aten.equal.default",
        "aten._cufft_clear_plan_cache.default", "aten.linear.default.__call__", "kernels._flat", "kernels.torch",
        "aten._reshape_alias.default", "aten._sparse_csr_tensor_unsafe.default", "aten._unsafe_masked_index.default",
        "aten._nested_view_from_buffer.default", "aten.sparse_csr_tensor.crow_col_value_size",
        "aten._convert_indices_from_csr_to_coo.default", "aten.segment_reduce.default",
        "aten.max_pool2d_with_indices_backward.default", "aten._foobar.default",
        "kernels.F", "operator.attrgetter", "operator.methodcaller", "torch.load", "prims.device_put.default", "",
    ],
)  # fmt: skip
def test_only_operators_are_called(path, target):
    with pytest.raises(ArtifactError, match="which is no operator"):
        function(target)
    forge(path, "stages.json", lambda data: candidate_nodes(data)[0].update(call=target))
    with pytest.raises(ArtifactError, match="which is no operator"):
        load(path)


@pytest.mark.parametrize(
    "name",
    ["x; import os", "x\nimport os", "a b", "import", "None", "1x", "", "x=1", "*x", "__import__('os')", "ﬁ", "a.b"],
)
def test_names_of_nodes_are_identifiers(path, name):
    where: list[Callable[[Any], Any]] = [
        lambda data: candidate_nodes(data)[0].update(name=name),
        lambda data: candidate_nodes(data)[0].update(kwargs={name: 1}),
        lambda data: data["variants"][0]["request"]["inputs"].__setitem__(3, name),
    ]
    original = path.read_bytes()
    for change in where:
        path.write_bytes(original)
        forge(path, "stages.json", change)
        with pytest.raises(ArtifactError, match="where a name is expected"):
            load(path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"node": "nobody"}, "means nothing here"),
        ({"code": "1"}, "means nothing here"),
        ({"node": "a", "dtype": "b"}, "an argument of no kind"),
        ({}, "an argument of no kind"),
        ({"dtype": "load"}, "where a dtype is expected"),
        ({"dtype": "__dict__"}, "where a dtype is expected"),
        ({"device": "cpu') or print('x"}, "where a device is expected"),
        ({"layout": "load"}, "means nothing here"),
        ({"layout": "sparse_csr"}, "means nothing here"),
        ({"memory_format": "float32"}, "means nothing here"),
        ({"number": "__import__('os')"}, "means nothing here"),
        ({"tuple": 3}, "where list is expected"),
    ],
)
def test_arguments_are_data(path, argument, message):
    forge(path, "stages.json", lambda data: candidate_nodes(data)[0]["args"].append(argument))
    with pytest.raises(ArtifactError, match=message):
        load(path)


def test_strings_in_arguments_stay_strings(tmp_path):
    """fx writes arguments into the code that it generates."""
    text = "'); open('made', 'w'); ('\\\"\n\x00"
    node = {"name": "x", "call": "aten.einsum.default", "args": [text, []], "kwargs": {}}
    graph = to_graph({"inputs": [], "nodes": [node], "outputs": [{"node": "x"}]})
    module = torch.fx.GraphModule(nn.Module(), graph)
    with pytest.raises(RuntimeError):
        module()
    assert to_data(graph)["nodes"][0]["args"][0] == text and not Path("made").exists()


HUGE = 2**50


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        (
            "model.json",
            lambda data: next(iter(data["tensors"].values())).update(shape=[HUGE]),
            "where its table says float32 [1125",
        ),
        ("model.json", lambda data: next(iter(data["tensors"].values())).update(shape=[-1, 4]), "negative number"),
        (
            "model.json",
            lambda data: next(iter(data["tensors"].values())).update(dtype="float64"),
            "where its table says float64",
        ),
        (
            "model.json",
            lambda data: next(iter(data["tensors"].values())).update(stored="nothing"),
            "not those that its table lists",
        ),
        ("model.json", lambda data: next(iter(data["tensors"].values())).update(order=[0, 9]), "axes in the order"),
        ("model.json", lambda data: data["tensors"].popitem(), "not those that its table lists"),
        ("model.json", lambda data: data["inputs"][1].update(shape=[HUGE]), "its example does not fit input 'dense'"),
        (
            "model.json",
            lambda data: data["inputs"][1].update(shape=[HUGE], role="packed", columns=[0]),
            "columns that do not fit",
        ),
        ("model.json", lambda data: data["inputs"][1].update(role="server"), "is 'server'"),
        ("model.json", lambda data: data["inputs"].pop(), "takes 3 tensors and lists 2"),
        ("model.json", lambda data: data["parameters"][0].update(name="x; import os"), "not a valid parameter name"),
        ("model.json", lambda data: data["parameters"][0].update(kind="empty"), "a parameter of kind 'empty'"),
        ("model.json", lambda data: data.update(call={"os.system": ["*", "*", "*"]}), "a container 'os.system'"),
        ("model.json", lambda data: data.update(result=["*"]), "a list where dict"),
        ("model.json", lambda data: data.update(result={"tuple": ["*"]}), "another number of values"),
        ("model.json", lambda data: data["state"].update(x="nothing"), "names weights that it does not hold"),
        ("model.json", lambda data: data["pinned"].append("nothing"), "names weights that it does not hold"),
        ("model.json", lambda data: data["plans"].pop(), "use a plan that there is not"),
        ("model.json", lambda data: data["plans"][0].update(level="__class__"), "a level '__class__'"),
        ("model.json", lambda data: data["plans"][0].update(requests=0), "requests=0"),
        (
            "model.json",
            lambda data: data["ranges"][0]["candidates"][0].__setitem__(1, 99),
            "use a plan that there is not",
        ),
        ("model.json", lambda data: data["ranges"][0].update(candidates=[]), "its ranges do not rise"),
        ("model.json", lambda data: data["report"].pop("workload"), "'workload'"),
        ("model.json", lambda data: data.update(dtype=None), "None where str"),
        ("model.json", lambda data: data.update(dtype=float("inf")), "Infinity for a number"),
        ("stages.json", lambda data: data["folded"].append(HUGE), "another number of values"),
        ("stages.json", lambda data: data["variants"][0]["state"].append(1), "another number of values"),
        (
            "stages.json",
            lambda data: data["variants"][0]["candidate"]["leaves"].__setitem__(0, "nothing"),
            "a value that there is not",
        ),
        (
            "stages.json",
            lambda data: data["variants"][0]["candidate"]["passed"].__setitem__(0, HUGE),
            "a value that there is not",
        ),
        ("stages.json", lambda data: data["variants"][0]["candidate"]["outputs"].pop(), "another number of values"),
        (
            "stages.json",
            lambda data: data["variants"][0]["candidate"]["inputs"].append("more"),
            "another number of values",
        ),
        (
            "stages.json",
            lambda data: candidate_nodes(data).append(candidate_nodes(data)[0]),
            "two nodes of a graph are called",
        ),
        (
            "stages.json",
            lambda data: candidate_nodes(data)[0].update(args=[{"node": "linear_99"}]),
            "means nothing here",
        ),
        ("stages.json", lambda data: data["variants"].pop(), "plans and graphs for"),
        ("stages.json", lambda data: data.clear(), "it lacks 'variants'"),
    ],
)
def test_a_file_that_contradicts_itself(path, member, change, message):
    forge(path, member, change)
    with pytest.raises(ArtifactError, match=re.escape(message)) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path} cannot be loaded: ") and ADVICE in str(raised.value)


def test_a_header_that_asks_for_more_than_there_is(path):
    contents = members(path)
    del contents["manifest.json"]
    header = json.dumps({"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode()
    contents["weights.safetensors"] = len(header).to_bytes(8, "little") + header
    container.write(path, contents)
    with pytest.raises(ArtifactError, match="SafetensorError"):
        load(path)


def grown(*nodes: dict[str, Any]) -> Callable[[Any], None]:
    """More nodes in the weights stage, of which nobody reads the results."""
    return lambda data: data["weights"]["nodes"].extend({"kwargs": {}, **node} for node in nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        [{"name": "a", "call": "aten.full.default", "args": [[2**36], 0.0]}],
        [{"name": "a", "call": "aten.zeros.default", "args": [[2**36]], "kwargs": {"device": {"device": "cuda:0"}}}],
        [{"name": f"a{i}", "call": "aten.full.default", "args": [[2**26], 0.0]} for i in range(8)],
        [  # a view of much, copied
            {"name": "a", "call": "aten.full.default", "args": [[2], 0.0]},
            {"name": "b", "call": "aten.expand.default", "args": [{"node": "a"}, [2**35, 2]]},
            {"name": "c", "call": "aten.reshape.default", "args": [{"node": "b"}, [2**36]]},
        ],
        [  # small results, and much on the way
            {"name": "a", "call": "aten.full.default", "args": [[2**18], 0.0]},
            {"name": "b", "call": "aten.expand.default", "args": [{"node": "a"}, [2**18, 2**18]]},
            {"name": "c", "call": "aten.einsum.default", "args": ["i,j,ij->", [{"node": x} for x in "aab"]]},
        ],
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_small_file_may_not_ask_for_all_memory(path, nodes, inference):
    forge(path, "stages.json", grown(*nodes))
    with torch.inference_mode(inference), pytest.raises(ArtifactError, match=r"bytes of its weights .* are allowed"):
        load(path)


def test_results_of_a_size_that_nobody_knows_are_refused(path):
    ones = {"name": "a", "call": "aten.full.default", "args": [[9], 2**60]}
    forge(
        path,
        "stages.json",
        grown(ones, {"name": "b", "call": "aten.repeat_interleave.Tensor", "args": [{"node": "a"}]}),
    )
    with pytest.raises(ArtifactError, match="sizes of what it makes of its weights are unknown"):
        load(path)


def test_much_that_its_weights_explain_is_loaded(path):
    """Within the bound, whatever the views are of."""
    table = {"name": "a", "call": "aten.full.default", "args": [[2**20], 0.0]}
    views = [{"name": f"v{i}", "call": "aten.select.int", "args": [{"node": "a"}, 0, i]} for i in range(300)]
    forge(path, "stages.json", grown(table, *views))
    load(path)


def test_depth_is_an_error_and_not_a_crash(path):
    contents = members(path)
    del contents["manifest.json"]
    for deep in (b"[" * 10**6, b'{"tuple":[' * 10**5):
        container.write(path, contents | {"stages.json": deep})
        with pytest.raises(ArtifactError):
            load(path)
