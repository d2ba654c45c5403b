"""Backends and exports give the eager model's scores, compile once whatever the row counts, and say what is missing.

Spelling for compilers is checked on every model without compiling; the ordinary run compiles and exports one model
that uses every kernel, the slow one all of them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal, kept, repeated
from torch import Tensor, nn
from torch._dynamo.eval_frame import TorchPatcher
from torch._dynamo.utils import counters
from torch.distributions import Distribution

from rankhoist import HoistedModel, Split, hoist, verify
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.emit.traceable import slots_of, traceable
from rankhoist.compiler.graph.operators import anew
from rankhoist.compiler.plan import Plans, Range, Ranges, Way
from rankhoist.compiler.targets.backends import Compiled
from rankhoist.errors import BackendError, VocabularyError
from rankhoist.runtime import load_onnx, load_package

USERS, ITEMS, D = 40, 60, 8
COUNTS = [1, 2, 7, 100, 1000]
RAGGED = [[0, 3, 3, 7], [0, 0, 1], [0, 20, 60, 100], [0, 1, 2, 3, 4, 5]]


# -- models


class Crossed(nn.Module):
    """Ids; every layer multiplies context and candidate columns; two outputs and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 2 * D), nn.Embedding(ITEMS, D)
        self.layers = nn.ModuleList(nn.Linear(3 * D, 3 * D) for _ in range(2))
        self.top = nn.Linear(3 * D, 1)

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Any]:
        first = x = torch.cat([self.user(user), self.item(item)], 1)
        for layer in self.layers:
            x = first * layer(x) + x
        return {"click": torch.sigmoid(self.top(x).squeeze(1)), "hidden": x, "version": 3}


class First(nn.Module):
    """A linear layer over a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(3 * D, 16), nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(torch.cat([item, user], 1))))


class Pairs(nn.Module):
    """Dot products of all pairs of fields, and a layer over them."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(10, 1)
        self.register_buffer("at", torch.triu_indices(5, 5, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        fields = torch.cat([user, item], 1)
        products = torch.bmm(fields, fields.transpose(1, 2))
        return self.out(products[:, self.at[0], self.at[1]])


class Unit(nn.Module):
    """A history read by each candidate: a layer over [q, k, q - k, q * k], softmax, weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(4 * D, 12), nn.Linear(12, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        q = item.unsqueeze(1).expand(-1, user.shape[1], -1)
        weights = self.score(torch.sigmoid(self.hidden(torch.cat([q, user, q - user, q * user], -1))))
        return (torch.softmax(weights, 1) * user).sum(1)


class Heads(nn.Module):
    """Candidate tokens attend to context tokens in two heads: one matrix per request and head."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        keys, queries = (x.unflatten(2, (2, D // 2)).transpose(1, 2) for x in (user, item))
        weights = torch.softmax(torch.matmul(queries, keys.transpose(2, 3)), -1)
        return torch.matmul(weights, keys).transpose(1, 2).flatten(2)


class Packed(nn.Module):
    """One matrix of ids and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, D), nn.Linear(2 * D + 2, 2)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        ids = X[:, :2].long()
        x = self.out(torch.cat([self.table(ids[:, 0]), X[:, 2:], self.table(ids[:, 1])], 1))
        return x[:, 0], torch.tanh(x[:, 1])


@dataclass(frozen=True)
class Case:
    """A model with what draws rows of both sides; the context of a packed one is columns 0 and 3."""

    model: Callable[[], nn.Module]
    user: Callable[[int], Tensor]
    item: Callable[[int], Tensor]
    packed: bool = False

    def make(self) -> tuple[nn.Module, HoistedModel]:
        """The model and the plan that keeps every form: it uses the algebra most."""
        model, hoisted = _made(self)
        return model, HoistedModel(hoisted.program, hoisted.plan)

    def whole(self, user: Tensor, item: Tensor) -> tuple[Tensor, ...]:
        """What the original takes."""
        return (torch.stack([user[:, 0], item[:, 0], item[:, 1], user[:, 1]], 1),) if self.packed else (user, item)

    def call(self, hoisted: HoistedModel, user: Tensor, item: Tensor, offsets: list[int]) -> Any:
        given = (Split(user, item),) if self.packed else (user, item)
        return hoisted(*given, request_offsets=offsets)

    def run(self, runner: Any, user: Tensor, item: Tensor, offsets: list[int]) -> Any:
        """The same through `prepare` and `score`."""
        names = ("X", "X") if self.packed else ("user", "item")
        return runner.score(runner.prepare({names[0]: user}), {names[1]: item}, offsets)


@functools.cache
def _made(case: Case) -> tuple[nn.Module, HoistedModel]:
    torch.manual_seed(0)
    model = case.model().eval()
    rows = case.whole(case.user(5), case.item(5))
    return model, kept(capture(model, rows, {"X": [0, 3]} if case.packed else ["user"]))


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape)


def ids(count: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(0, count, (rows,))


def mixed(rows: int) -> Tensor:
    return torch.stack([torch.randint(0, 20, (rows,)).float(), torch.randn(rows)], 1)


CASES = {
    "crossed": Case(Crossed, ids(USERS), ids(ITEMS)),
    "first": Case(First, numbers(2 * D), numbers(D)),
    "pairs": Case(Pairs, numbers(3, D), numbers(2, D)),
    "unit": Case(Unit, numbers(6, D), numbers(D)),
    "heads": Case(Heads, numbers(6, D), numbers(3, D)),
    "packed": Case(Packed, mixed, mixed, packed=True),
}
every = pytest.mark.parametrize("name", CASES)


def check(case: Case, model: nn.Module, call: Callable[..., Any], counts: list[int] = COUNTS) -> None:
    """The original's scores, for one request and for several."""
    for offsets in [*([0, n] for n in counts), *RAGGED]:
        user, item = case.user(len(offsets) - 1), case.item(offsets[-1])
        expected = model(*case.whole(repeated(user, offsets), item))
        assert_equal(call(user, item, offsets), expected, f"offsets {offsets}")


# -- spelling


@every
def test_the_spelling_for_compilers_computes_the_same(name):
    case = CASES[name]
    model, hoisted = case.make()
    stage = hoisted.stages.variants[0].candidate
    spelled = {several: traceable(stage, several) for several in (False, True)}

    def run(rows: int, owner: Tensor | None, offsets: Tensor | None, *given: Tensor) -> Any:
        one = spelled[owner is not None]
        about = {"owner": owner, "slots": None if offsets is None else slots_of(offsets)}
        return one.module(*(about[a] for a in one.arguments), *given)

    stage.run = run
    check(case, model, lambda *given: case.call(hoisted, *given))


def test_every_kernel_of_ragged_requests_is_spelled_by_blocks():
    used = {
        anew(n.target) for c in CASES.values() for n in c.make()[1].stages.variants[0].candidate.module.graph.nodes
        if "offsets" in str(n.args) or "owner" in str(n.args)
    }  # fmt: skip
    names = {t.__name__ for t in used}
    assert {"request_linear", "request_linear_from", "request_linear_onto", "request_matmul", "linear_from"} <= names


def test_a_block_of_one_row_is_padded():
    assert slots_of(torch.tensor([0, 1, 1, 2])).tolist() == [[0, 1], [1, 1], [1, 1]]


# -- inductor


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_inductor_compiles_once_for_all_row_counts(monkeypatch: pytest.MonkeyPatch):
    """Also after an update of the weights, and for inputs that are parts of larger tensors. The process keeps its
    checks of distributions, which torch.compile switches off once.
    """
    TorchPatcher.patch.cache_clear()
    monkeypatch.setattr(Distribution, "_validate_args", True)
    case = CASES["crossed"]
    model, hoisted = case.make()
    before = graphs()
    hoisted.to_backend("inductor").warm_up(candidates=[100], requests=[1, 3])
    assert graphs() == before + 3, "the request stage for one request and for several, the candidate stage for one"
    check(case, model, lambda *given: case.call(hoisted, *given), [0, *COUNTS, 64, 2048, 5000])
    user, item = torch.arange(6)[::2], torch.arange(40)[::2]
    assert_equal(hoisted(user[1:2], item), model(user[1:2].expand(20), item))
    torch.manual_seed(1)
    other = Crossed().eval()
    hoisted.update_weights(other.state_dict())
    check(case, other, lambda *given: case.call(hoisted, *given), [7])
    assert graphs() == before + 3, "something was compiled anew"
    assert Distribution._validate_args


@pytest.mark.slow
@every
def test_inductor_is_equal(name):
    case = CASES[name]
    model, hoisted = case.make()
    hoisted.to_backend("inductor").warm_up(requests=[1, 3])
    before = graphs()
    check(case, model, lambda *given: case.call(hoisted, *given))
    assert graphs() == before, "something was compiled anew"
    assert verify(hoisted, model, seed=1).passed


@pytest.mark.parametrize(("name", "compiled"), [("crossed", {False}), ("first", {False, True})])
def test_products_with_matrices_of_several_requests_run_eagerly(name, compiled, monkeypatch):
    """The loop over requests was measured to be faster than padded blocks."""
    case = CASES[name]
    model, hoisted = case.make()
    stage, state = hoisted.stages.variants[0].candidate, hoisted.stages.variants[0].state
    monkeypatch.setattr(torch, "compile", lambda module, fullgraph: module)
    stage.run = run = Compiled(stage, state)
    check(case, model, lambda *given: case.call(hoisted, *given))
    assert set(run._made) == compiled


def test_a_warm_up_compiles_every_plan(monkeypatch):
    """Whatever numbers of candidates come later; the plans of other numbers of requests only on demand."""
    case = CASES["crossed"]
    _, hoisted = case.make()
    one, two, three = (dataclasses.replace(hoisted.plan, level=level) for level in list(Level)[-3:])
    ranges = Ranges((1, 8), ((Range(0, Way(1)), Range(2, Way(0)), Range(40, Way(1))), (Range(0, Way(2)),)))
    hoisted = HoistedModel(hoisted.program, Plans((one, two, three), ranges)).to_backend("inductor")
    monkeypatch.setattr(torch, "compile", lambda module, fullgraph: module)

    def made() -> list[tuple[set[bool], set[bool]]]:
        return [(set(v.request.run._made), set(v.candidate.run._made)) for v in hoisted.stages.variants]

    hoisted.warm_up()
    assert made() == [({False}, {False}), ({False}, {False}), (set(), set())]
    for count in (0, 1, 2, 39, 40, 5000):
        case.call(hoisted, case.user(1), case.item(count), [0, count])
    assert made() == [({False}, {False}), ({False}, {False}), (set(), set())]
    hoisted.warm_up(requests=[8])
    assert made()[2] == ({True}, set()), "matrices of several requests are met eagerly"


def test_the_backend_stays_when_the_model_moves():
    _, hoisted = CASES["first"].make()
    assert hoisted.backend == "eager"
    moved = copy.deepcopy(hoisted.to_backend("inductor")).double()
    for model in (hoisted, moved):
        assert model.backend == "inductor"
        assert all(isinstance(s.run, Compiled) for v in model.stages.variants for s in (v.request, v.candidate))
    assert not isinstance(hoisted.to_backend("eager").stages.variants[0].candidate.run, Compiled)


def test_unknown_backend():
    rows = (torch.randn(4, 2 * D), torch.randn(4, D))
    with pytest.raises(BackendError, match="unknown backend 'tvm'; backends are eager, inductor"):
        hoist(First().eval(), rows, context=["user"], backend="tvm")


WITHOUT_COMPILER = """
import torch
from torch import nn
from torch._inductor import config
import rankhoist

config.cpp.cxx, config.force_disable_caches = (None, "no-such-compiler"), True


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(9, 2)

    def forward(self, context, candidate):
        return torch.relu(self.top(torch.cat([context, candidate], 1)))


hoisted = rankhoist.hoist(
    Small().eval(), (torch.randn(4, 6), torch.randn(4, 3)), context=["context"], level="linear", backend="inductor"
)
try:
    hoisted.warm_up()
except rankhoist.errors.BackendError as error:
    print(error)
"""


def test_no_compiler():
    """In a process of its own: inductor remembers which compilers it found."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, timeout=200)
    assert "found no working C++ compiler; install one" in done.stdout and "apt install g++" in done.stdout, done.stderr


# -- exports


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory) -> Path:
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("onnx")
    CASES["crossed"].make()[1].export_onnx(folder, several=True)
    return folder


def test_onnx_is_equal(onnx_folder):
    pytest.importorskip("onnxruntime")
    case, runner = CASES["crossed"], load_onnx(onnx_folder)
    check(case, case.make()[0], lambda *given: case.run(runner, *given))
    check(case, case.make()[0], lambda *given: case.call(runner, *given), [0, *COUNTS])
    assert {p.name for p in onnx_folder.iterdir()} == {
        "request.onnx",
        "candidate.onnx",
        "several.onnx",
        "manifest.json",
    }


def test_onnx_runtime_as_a_backend():
    pytest.importorskip("onnxruntime")
    case = CASES["crossed"]
    model, hoisted = (copy.deepcopy(made) for made in case.make())
    hoisted.to_backend("onnx")
    check(case, model, lambda *given: case.call(hoisted, *given), [0, 1, 7])
    with torch.no_grad():
        model.top.weight.mul_(2.0)
    hoisted.update_weights(model.state_dict())
    check(case, model, lambda *given: case.run(hoisted, *given), [7])


def test_an_onnx_stage_knows_nothing_of_the_other_side(onnx_folder):
    onnx = pytest.importorskip("onnx")
    inputs = {n: [i.name for i in onnx.load(onnx_folder / f"{n}.onnx").graph.input] for n in ("request", "candidate")}
    assert inputs["request"] == ["user"] and "item" in inputs["candidate"] and "user" not in inputs["candidate"]


class Tables(nn.Module):
    """Three tables, read by one gather."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ITEMS, D) for _ in range(3))
        self.out = nn.Linear(4 * D, 2)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.out(torch.cat([user, *(table(item[:, i]) for i, table in enumerate(self.tables))], 1))


@pytest.mark.parametrize("how", ["eager", "inductor", "onnx"])
def test_an_id_that_its_own_table_lacks_is_an_error(how, tmp_path):
    """Never the row of another table, which lies beside it in the one that is read."""
    torch.manual_seed(0)
    model = Tables().eval()
    good = torch.randint(0, ITEMS, (7, 3))
    hoisted = hoist(model, (torch.randn(7, D), good), context=["user"], level="lookup")
    assert "read_tables" in str(hoisted.stages.variants[0].candidate.module.graph)
    if how == "onnx":
        pytest.importorskip("onnxruntime")
        hoisted.export_onnx(tmp_path)
        runner: Any = load_onnx(tmp_path)
    else:
        runner = hoisted.to_backend(how)
    user = torch.randn(1, D)
    state = runner.prepare({"user": user})
    assert_equal(runner.score(state, {"item": good}), model(user.expand(7, -1), good))
    for wrong in (-1, ITEMS):
        bad = good.clone()
        bad[5, 1] = wrong
        with pytest.raises(VocabularyError, match=f"input 'item' has id {wrong}.*, expected 0 to {ITEMS - 1}"):
            runner.score(state, {"item": bad})


def test_a_manifest_imports_nothing(onnx_folder, tmp_path, monkeypatch):
    """Whoever reads the result's structure with torch imports the modules that it names."""
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    about = json.loads((onnx_folder / "manifest.json").read_text())
    context = json.dumps([{"__enum__": True, "fqn": "planted:Kind", "name": "A"}])
    leaf = {"type": None, "context": None, "children_spec": []}
    planted = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": [leaf]}])
    for result in (planted, {"enum": []}, None):
        (tmp_path / "manifest.json").write_text(json.dumps(about | {"stages": {}, "result": result}))
        with pytest.raises(BackendError, match=r"holds no readable manifest\.json, export it again: it has"):
            load_onnx(tmp_path)


@pytest.mark.slow
@every
def test_onnx_is_equal_on_every_model(name, tmp_path):
    pytest.importorskip("onnxruntime")
    case = CASES[name]
    model, hoisted = case.make()
    hoisted.export_onnx(tmp_path, several=True)
    runner = load_onnx(tmp_path)
    check(case, model, lambda *given: case.run(runner, *given))


@pytest.mark.slow
@every
def test_packages_are_equal(name, tmp_path):
    case = CASES[name]
    model, hoisted = case.make()
    hoisted.package(tmp_path, several=True)
    runner = load_package(tmp_path)
    check(case, model, lambda *given: case.run(runner, *given))


def test_missing_extra(monkeypatch, tmp_path):
    _, hoisted = CASES["first"].make()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: hoisted.export_onnx(tmp_path), lambda: load_onnx(tmp_path)):
        with pytest.raises(BackendError, match=r"is not installed: pip install 'rankhoist\[onnx\]'"):
            call()


def test_what_cannot_be_exported_is_said(tmp_path):
    """A model whose scores do not depend on candidates has no candidate stage to export."""

    class Same(nn.Module):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return torch.tanh(user).sum(1)

    hoisted = hoist(Same().eval(), (torch.randn(3, 4), torch.randn(3, 2)), context=["user"])
    with pytest.raises(BackendError, match="the candidate stage reads no input"):
        hoisted.export_onnx(tmp_path)


def test_inputs_are_called_what_they_are_whatever_else_is_called_so(tmp_path):
    pytest.importorskip("onnxruntime")

    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            user = torch.cat([self.one(x["cat"]), x["relu"]], 1).relu()
            return torch.cat([user, self.one(torch.relu(self.two(x["linear"]) * x["weight_0"]))], 1)

    torch.manual_seed(0)
    model, rows = Names().eval(), {name: torch.randn(4, 3) for name in ("cat", "relu", "linear", "weight_0")}
    hoisted = hoist(model, (rows,), context=["cat", "relu"])
    hoisted.export_onnx(tmp_path)
    onnx, runner = pytest.importorskip("onnx"), load_onnx(tmp_path)
    assert [i.name for i in onnx.load(tmp_path / "request.onnx").graph.input] == ["cat", "relu"]
    one = {name: x[:1] if name in ("cat", "relu") else x for name, x in rows.items()}
    assert_equal(runner(one), model({name: x.expand(4, -1) for name, x in one.items()}))


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    class Odd(nn.Module):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return torch.special.bessel_j0(user) * item

    hoisted = hoist(Odd().eval(), (torch.randn(4, 3), torch.randn(4, 3)), context=["user"])
    with pytest.raises(BackendError, match=r"cannot export request.onnx: .*No ONNX function found for .*bessel_j0"):
        hoisted.export_onnx(tmp_path)


@pytest.mark.parametrize("name", ["crossed", "unit", "heads"])
def test_blocks_of_several_requests_are_compiled_where_they_are_padded(name, monkeypatch):
    """As a GPU has them, recorded in buckets: rows that pad a call read what is there."""
    case = CASES[name]
    model, hoisted = (copy.deepcopy(one).double() for one in case.make())
    monkeypatch.setattr(torch, "compile", lambda module, fullgraph: module)
    hoisted.to_backend("inductor-graphs")
    for offsets in ([0, 3, 3, 9], [0, 0, 30, 41], [0, 11, 12, 41], [0, 41, 41, 41]):
        user, item = case.user(3), case.item(offsets[-1])
        user, item = (x.double() if x.is_floating_point() else x for x in (user, item))
        got = case.call(hoisted, user, item, offsets)
        assert_equal(got, model(*case.whole(repeated(user, offsets), item)))
    assert hoisted.replay_counts.replayed >= 3
    assert any(True in v.candidate.run._made for v in hoisted.stages.variants), "compiled for several requests"
