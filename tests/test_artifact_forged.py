"""Files that somebody made up, with right checksums: they are data, and what is not honest is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts import ADVICE, forge, members, saved_ranker
from torch import nn

from rankhoist import ArtifactError, load
from rankhoist.runtime import container
from rankhoist.runtime.graph_json import function, to_data, to_graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.rankhoist").write_bytes(saved_ranker())
    return tmp_path / "model.rankhoist"


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
        ("model.json", lambda data: data["plans"].pop(), "which there is not"),
        ("model.json", lambda data: data["plans"].clear(), "use a plan that there is not"),
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


def tensor(first: int, last: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


HEADERS = {
    "more than there is": ({"x": tensor(0, 4 * HUGE, [HUGE])}, "do not fill the file"),
    "less than there is": ({"x": tensor(0, 4, [1])}, "do not fill the file"),
    "more than its place": ({"x": tensor(0, 8, [HUGE])}, "'x' does not fill its place"),
    "over each other": ({"x": tensor(0, 8, [2]), "y": tensor(0, 8, [2])}, "'y' does not fill its place"),
    "a hole": ({"x": tensor(4, 8, [1])}, "'x' does not fill its place"),
    "below zero": ({"x": tensor(0, 8, [-2])}, "negative number in 'shape'"),
    "no number": ({"x": tensor(0, 8, [2.0])}, "2.0 where int is expected"),
    "no dtype": ({"x": tensor(0, 8, [2], "F31")}, "KeyError: 'F31'"),
    "no tensors": (["x"], "cannot be loaded"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_wrong_of_its_file(path, monkeypatch, name):
    """It is refused before memory is taken for any tensor."""
    header, message = HEADERS[name]
    contents = members(path)
    del contents["manifest.json"]
    data = json.dumps(header).encode()
    contents["weights.safetensors"] = len(data).to_bytes(8, "little") + data + bytes(8)
    container.write(path, contents)
    monkeypatch.setattr("rankhoist.runtime.tensor_file.torch.empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(ArtifactError, match=message):
        load(path)


def test_a_header_that_is_longer_than_its_file(path):
    contents = members(path)
    del contents["manifest.json"]
    contents["weights.safetensors"] = HUGE.to_bytes(8, "little")
    container.write(path, contents)
    with pytest.raises(ArtifactError, match="a header that is longer than the file"):
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
