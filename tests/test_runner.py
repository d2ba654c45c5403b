"""What was exported is called like the hoisted model: in all its ways, with its checks, its messages and its results.

The stages are those of `torch.export` as they are: what compiles them or runs them elsewhere is for `test_backends.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

from rankhoist import HoistedModel, Split, hoist
from rankhoist.compiler.targets.exported import Call, Exported
from rankhoist.errors import BackendError, InputError
from rankhoist.runtime import Runner, export
from rankhoist.runtime.inputs import Inputs

USERS, ITEMS, D = 40, 60, 8
N = 7


def write(stage: Exported, path: Path) -> None:
    torch.export.save(stage.program, path)


def load(path: Path) -> Call:
    program = torch.export.load(path).module()
    return lambda inputs: program(*inputs)


def exported(hoisted: HoistedModel, folder: Path, several: bool = True) -> Runner:
    inputs = Inputs(hoisted.interface, hoisted.dtype, hoisted.device)
    source = export.Source(inputs, hoisted.stages, hoisted.weights, hoisted.vocabulary)
    export.write(folder, source, several, ".pt2", write)
    return Runner(folder, load)


# -- models, and all ways to call them


class Plain(nn.Module):
    """By position or by name; results with and without rows, and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, D), nn.Embedding(ITEMS, D)
        self.top, self.scale = nn.Linear(2 * D + 3, 2), nn.Parameter(torch.tensor(2.0))

    def forward(self, user: Tensor, item: Tensor, *, hour: Tensor) -> dict[str, Any]:
        x = torch.relu(self.top(torch.cat([self.user(user), self.item(item), hour], 1)))
        return {"version": 3, "scores": x[:, 0], "hidden": (x, hour), "scale": self.scale}


class Features(nn.Module):
    """One dict of features."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(2 * D, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.top(torch.cat([x["user"], x["item"]], 1)).squeeze(1)


class Nested(nn.Module):
    """Containers of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(3 * D, 1)

    def forward(self, context: dict[str, list[Tensor]], item: Tensor) -> Tensor:
        return torch.sigmoid(self.top(torch.cat([*context["history"], item], 1)))


class Packed(nn.Module):
    """One matrix whose columns are of both kinds, and a candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(20, D), nn.Linear(2 * D + 2, 1)

    def forward(self, X: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.cat([self.table(X[:, 0].long()), self.table(item), X[:, 1:]], 1))


@dataclass(frozen=True)
class Case:
    """`calls` are (args, kwargs) of R and N rows; `halves` the same rows by name, context and candidate."""

    model: Callable[[], nn.Module]
    context: Any
    example: Any
    calls: Callable[[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]]
    halves: Callable[[int, int], tuple[dict[str, Any], dict[str, Any]]]


def rows(count: int, *shape: int) -> Tensor:
    return torch.linspace(-1, 1, count * torch.Size(shape).numel()).reshape(count, *shape)


def ids(count: int, most: int) -> Tensor:
    return torch.arange(count) * 7 % most


def plain(r: int, n: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    user, item, hour = ids(r, USERS), ids(n, ITEMS), rows(r, 3)
    given: dict[str, Any] = {"user": user, "item": item, "hour": hour}
    return [((user, item), {"hour": hour}), ((), given), ((user.int(), item.int()), {"hour": hour})]


def packed(r: int, n: int) -> tuple[Split, Tensor]:
    return Split(torch.stack([ids(r, 20).float(), torch.ones(r)], 1), rows(n, 1)), ids(n, 20)


CASES = {
    "plain": Case(
        Plain,
        ["user", "hour"],
        {"user": ids(5, USERS), "item": ids(5, ITEMS), "hour": rows(5, 3)},
        plain,
        lambda r, n: ({"user": ids(r, USERS), "hour": rows(r, 3)}, {"item": ids(n, ITEMS)}),
    ),
    "features": Case(
        Features,
        ["user"],
        ({"user": rows(5, D), "item": rows(5, D)},),
        lambda r, n: [
            (({"user": rows(r, D), "item": rows(n, D)},), {}),
            ((), {"item": rows(n, D), "user": rows(r, D)}),
            ((), {"x": {"user": rows(r, D), "item": rows(n, D)}}),
        ],
        lambda r, n: ({"user": rows(r, D)}, {"item": rows(n, D)}),
    ),
    "nested": Case(
        Nested,
        ["history.*"],
        ({"history": [rows(5, D), rows(5, D)]}, rows(5, D)),
        lambda r, n: [(({"history": [rows(r, D), 2 * rows(r, D)]}, rows(n, D)), {})],
        lambda r, n: ({"history.0": rows(r, D), "history.1": 2 * rows(r, D)}, {"item": rows(n, D)}),
    ),
    "packed": Case(
        Packed,
        {"X": [0, 1]},
        (rows(5, 3).abs(), ids(5, 20)),
        lambda r, n: [(packed(r, n), {}), ((), dict(zip(("X", "item"), packed(r, n), strict=True)))],
        lambda r, n: ({"X": packed(r, n)[0].context}, {"X": packed(r, n)[0].candidate, "item": packed(r, n)[1]}),
    ),
}
BLOCKS = [[0, N], [0, 0], [0, 1], [0, 3, 3, N], [0, 0, 0], [0]]


@dataclass(frozen=True)
class Pair:
    """A hoisted model, and what was exported of it."""

    case: Case
    hoisted: HoistedModel
    runner: Runner


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        hoisted = hoist(case.model().eval(), case.example, context=case.context, level="linear")
        made[name] = Pair(case, hoisted, exported(hoisted, tmp_path_factory.mktemp(name)))
    return made


every = pytest.mark.parametrize("name", CASES)
ragged = pytest.mark.parametrize("offsets", BLOCKS, ids=str)


@every
@ragged
def test_every_way_of_calling_gives_the_same(pairs, name, offsets):
    """Also without a candidate, and without a request."""
    pair = pairs[name]
    for args, kwargs in pair.case.calls(len(offsets) - 1, offsets[-1]):
        expected = pair.hoisted(*args, request_offsets=offsets, **kwargs)
        assert_equal(pair.runner(*args, request_offsets=offsets, **kwargs), expected)
        assert_equal(pair.runner(*args, request_offsets=torch.tensor(offsets), **kwargs), expected)


@every
@ragged
def test_the_halves_give_the_same(pairs, name, offsets):
    """By name and in order."""
    pair = pairs[name]
    context, candidate = pair.case.halves(len(offsets) - 1, offsets[-1])
    expected = pair.hoisted.score(pair.hoisted.prepare(context), candidate, offsets)
    for first, second in ((context, candidate), ([*context.values()], [*candidate.values()])):
        state = pair.runner.prepare(first, candidates=offsets[-1])
        assert state.requests == len(offsets) - 1 and state.bytes > 0
        assert_equal(pair.runner.score(state, second, offsets), expected)
        assert_equal(pair.runner.score(state, second, request_offsets=offsets), expected)


@every
def test_results_are_of_the_same_dtypes_and_shapes(pairs, name):
    pair = pairs[name]
    for n in (0, 1, N):
        args, kwargs = pair.case.calls(1, n)[0]
        made, expected = (torch.utils._pytree.tree_flatten(m(*args, **kwargs)) for m in (pair.runner, pair.hoisted))
        assert made[1] == expected[1]
        for a, b in zip(made[0], expected[0], strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape) if isinstance(b, Tensor) else a == b


def test_it_computes_no_gradients(pairs):
    args, kwargs = CASES["plain"].calls(1, N)[0]
    assert not pairs["plain"].runner(*args, **kwargs)["scores"].requires_grad


# -- wrong calls

USER, ITEM, HOUR = ids(2, USERS), ids(4, ITEMS), rows(2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(USER, ITEM, hour=HOUR),
        lambda m: m(USER, ITEM, hour=HOUR, request_offsets=[0, 4]),
        lambda m: m(USER, ITEM, hour=HOUR, request_offsets=[0, 5, 4]),
        lambda m: m(USER, ITEM, hour=HOUR, request_offsets=[1, 2, 4]),
        lambda m: m(USER[:1], ITEM, hour=HOUR, request_offsets=[0, 4]),
        lambda m: m(USER[:1], ITEM, hour=HOUR[:1, :2]),
        lambda m: m(USER[:1], ITEM, hour=HOUR[:1].double()),
        lambda m: m(USER[:1], ITEM.float(), hour=HOUR[:1]),
        lambda m: m(USER[:1], ITEM > 3, hour=HOUR[:1]),
        lambda m: m(USER[:1], [1, 2], hour=HOUR[:1]),
        lambda m: m(USER[:1], ITEM[0], hour=HOUR[:1]),
        lambda m: m(Split(USER, USER), ITEM, hour=HOUR[:1]),
        lambda m: m.prepare({"user": USER}),
        lambda m: m.prepare([USER]),
        lambda m: m.prepare({"user": USER, "hour": HOUR[:1]}),
        lambda m: m.score(m.prepare([USER[:1], HOUR[:1]]), [ITEM, ITEM]),
        lambda m: m.score(m.prepare([USER[:1], HOUR[:1]]), {"page": ITEM}),
        lambda m: m.score(m.prepare([USER, HOUR]), [ITEM]),
        lambda m: m.score(m.prepare([USER, HOUR]), [ITEM], [0, 3, 5]),
    ],
)
def test_a_wrong_call_is_told_the_same(pairs, call: Callable[[Any], Any]):
    with pytest.raises(InputError) as expected:
        call(pairs["plain"].hoisted)
    with pytest.raises(InputError, match=f"^{re.escape(str(expected.value))}$"):
        call(pairs["plain"].runner)


@pytest.mark.parametrize("given", [{}, {"hour": HOUR, "page": HOUR}])
def test_arguments_fit_the_signature(pairs, given: dict[str, Tensor]):
    """Whose types only the hoisted model knows."""
    for model in (pairs["plain"].hoisted, pairs["plain"].runner):
        with pytest.raises(
            InputError, match=r"do not fit the model's signature \(user.*, item.*, \*, hour.*\).*: (mi|got)"
        ):
            model(USER, ITEM, **given)


def test_a_packed_input_is_given_in_two_parts(pairs):
    for model in (pairs["packed"].hoisted, pairs["packed"].runner):
        with pytest.raises(
            InputError, match=r"'X' is given as rankhoist.Split\(context=\[R, 2\], candidate=\[N, 1\]\)"
        ):
            model(rows(N, 3), ids(N, 20))


def test_several_requests_need_their_stage(pairs, tmp_path):
    runner = exported(pairs["features"].hoisted, tmp_path, several=False)
    args, kwargs = CASES["features"].calls(3, N)[0]
    with pytest.raises(InputError, match="3 requests per call need an export with several=True"):
        runner(*args, request_offsets=[0, 3, 3, N], **kwargs)


# -- manifests


@pytest.fixture
def folder(pairs, tmp_path: Path) -> Path:
    exported(pairs["features"].hoisted, tmp_path, several=False)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 6}, "it has format 6, and this version reads 5: upgrade rankhoist, or export it again"),
        ({"format": 2}, "it has format 2, and this version reads 5: export it again"),
        ({"format": None}, "it has None where int is expected"),
        ({"inputs": []}, "it takes 2 tensors and lists 0 inputs"),
        ({"stages": {"request": {"file": 3}}}, "it has 3 where str is expected"),
        ({"constant_results": {"x": 1}}, "invalid literal"),
        ({"dtype": "float33"}, "where a dtype is expected"),
    ],
)
def test_a_manifest_that_is_not_read_is_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BackendError, match=rf"holds no readable manifest\.json, export it again: .*{message}"):
        Runner(folder, load)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(BackendError, match=r"elsewhere holds no readable manifest\.json"):
        Runner(tmp_path / "elsewhere", load)


def test_a_manifest_describes_the_call(folder):
    about = json.loads((folder / "manifest.json").read_text())
    assert [(i["name"], i["role"], i["dtype"], i["shape"]) for i in about["inputs"]] == [
        ("user", "context", "float32", [D]),
        ("item", "candidate", "float32", [D]),
    ]
    assert [p["name"] for p in about["parameters"]] == ["x"] and about["result"] == "*"
    assert about["stages"]["request"] == {
        "file": "request.pt2",
        "inputs": ["user"],
        "outputs": ["state.0"],
        "row_axes": [0],
        "guards": [],
    }


def test_a_call_that_no_manifest_describes_is_refused(tmp_path):
    class Odd(Features):
        def forward(self, x: dict[str, Tensor]) -> Any:
            return torch.return_types.max((super().forward(x), x["item"]))

    hoisted = hoist(Odd().eval(), CASES["features"].example, context=["user"])
    with pytest.raises(BackendError, match="cannot export the model: ArtifactError: the model returns max"):
        exported(hoisted, tmp_path / "new")
    assert not (tmp_path / "new").exists()
