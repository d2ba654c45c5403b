"""ONNX files of several exporters: hoisted and equal to what ONNX Runtime makes of them, or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from rankhoist import hoist, verify
from rankhoist.capture.onnx import Session, read
from rankhoist.cli import main
from rankhoist.errors import CaptureError, InputError, UnsupportedModelError
from rankhoist.verify.batches import Batch
from rankhoist.verify.original import by_torch
from rankhoist.verify.term_by_term import TermByTerm

T = 5
USERS, ITEMS = 50, 70


class Fields(nn.Module):
    """Tables, a bag, pairwise products, a norm and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.layers = nn.Sequential(nn.Linear(24, 32), nn.PReLU(), nn.LayerNorm(32), nn.Linear(32, 1))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        fields = torch.stack([self.users(user), self.items(item), self.items(history).mean(1)], 1)
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(pairs + self.layers(fields.flatten(1))).squeeze(1)


class Target(nn.Module):
    """Target attention over a history with its padding masked, whose shapes a file computes."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, 8)
        self.attention = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
        self.out = nn.Linear(16, 1)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        own, keys = self.items(item), self.items(history)
        query = own[:, None].expand(-1, history.shape[1], -1)
        scores = self.attention(torch.cat([query, keys, query - keys, query * keys], -1))
        weights = scores.masked_fill((history == 0)[..., None], -1e9).softmax(1)
        return self.out(torch.cat([(weights * keys).sum(1), own], 1))


class Steps(nn.Module):
    """Cross layers, a recurrent layer over what the user did, batch norm, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(20, 20) for _ in range(2))
        self.gru, self.lstm = nn.GRU(4, 8, batch_first=True), nn.LSTM(4, 8, batch_first=True, bidirectional=True)
        self.norm, self.out = nn.BatchNorm1d(44), nn.Linear(44, 2)

    def forward(self, user: Tensor, item: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
        x = first = torch.cat([user, item], 1)
        for layer in self.cross:
            x = first * layer(x) + x
        _, state = self.gru(steps)
        both, _ = self.lstm(steps)
        made = self.out(self.norm(torch.cat([x, state[-1], both[:, -1]], 1)))
        return torch.chunk(torch.tanh(made), 2, 1)


class Attention(nn.Module):
    """A transformer over history and target."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 1)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        return self.out(self.encoder(self.items(torch.cat([history, item[:, None]], 1)))[:, -1])


def ids(many: int, *shape: int) -> Tensor:
    return torch.randint(0, many, shape)


INPUTS = {
    Fields: lambda: {"user": ids(USERS, 3), "item": ids(ITEMS, 3), "history": ids(ITEMS, 3, T)},
    Target: lambda: {"item": ids(ITEMS, 3), "history": ids(ITEMS, 3, T)},
    Steps: lambda: {"user": torch.randn(3, 12), "item": torch.randn(3, 8), "steps": torch.randn(3, T, 4)},
    Attention: lambda: {"item": ids(ITEMS, 3), "history": ids(ITEMS, 3, T)},
}


def exported(kind: type[nn.Module], opset: int, path: Path) -> Path:
    """A file of PyTorch's exporter; opsets before 18 are those of the one for TorchScript."""
    torch.manual_seed(1)
    model, rows = kind().eval(), INPUTS[kind]()
    given = {"input_names": list(rows), "opset_version": opset, "dynamo": opset >= 18}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if opset >= 18:
            given["dynamic_shapes"] = tuple({0: torch.export.Dim("rows")} for _ in rows)
            torch.onnx.export(model, tuple(rows.values()), path, verbose=False, **given)
        else:
            axes = {name: {0: "rows"} for name in rows}
            torch.onnx.export(model, tuple(rows.values()), path, dynamic_axes=axes, **given)
    return path


def classic(kind: str, opset: int, path: Path) -> Path:
    """A file of skl2onnx: the domain of classic learners, and text for labels nowhere."""
    rows = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
    if kind == "layers":
        model = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(16, 8), max_iter=5))
        target, options = rows[:, 0], None
    else:
        model, target, options = LogisticRegression(), (rows[:, 0] * 2).round().astype(int), {"zipmap": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = to_onnx(model.fit(rows, target), rows[:1], target_opset=opset, options=options)
    path.write_bytes(made.SerializeToString())
    return path


FILES = [
    (Fields, 13),
    (Fields, 18),
    (Target, 13),
    (Target, 23),
    (Steps, 17),
    (Steps, 20),
    (Attention, 17),
    (Attention, 23),
]


@pytest.mark.parametrize(("kind", "opset"), FILES, ids=lambda x: getattr(x, "__name__", x))
def test_a_file_of_pytorch_is_hoisted_and_equal_to_onnx_runtime(kind: type[nn.Module], opset: int, tmp_path: Path):
    path = exported(kind, opset, tmp_path / "ranker.onnx")
    hoisted = hoist(path, None, context=["[uhs]*"])
    certificate = verify(hoisted, path, candidates=[1, 7], requests=[1, 3])
    assert certificate.passed, str(certificate)
    total = hoisted.report().total()
    assert total.after.multiply_adds < total.before.multiply_adds


@pytest.mark.parametrize(("kind", "opset"), [("layers", 13), ("layers", 22), ("classes", 18)])
def test_a_file_of_a_classic_learner_is_hoisted_and_equal(kind: str, opset: int, tmp_path: Path):
    path = classic(kind, opset, tmp_path / "ranker.onnx")
    hoisted = hoist(path, None, context={"X": range(6)})
    assert verify(hoisted, path, candidates=[1, 7], requests=[1, 3]).passed


def test_a_call_takes_the_dict_of_inputs_and_gives_outputs_by_name(tmp_path: Path):
    path = exported(Steps, 18, tmp_path / "ranker.onnx")
    hoisted, rows = hoist(path, None, context=["user", "steps"]), INPUTS[Steps]()
    given = {"user": rows["user"][:1], "item": rows["item"], "steps": rows["steps"][:1]}
    expected = Session(path)({k: v.expand(3, *v.shape[1:]) for k, v in given.items()})
    made = hoisted(given)
    assert list(made) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value)


# -- what is refused


def graph(nodes: list[onnx.NodeProto], sizes: list[int | str], constants: dict[str, np.ndarray], path: Path) -> Path:
    """A file with the inputs `u` and `i` of these sizes and the output `y`."""
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "ui"]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])]
    weights = [numpy_helper.from_array(x, name) for name, x in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "ranker", given, made, weights), opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)
    ])  # fmt: skip
    model.ir_version = 9
    onnx.save(model, path)
    return path


def test_operators_that_are_not_read_are_named(tmp_path: Path):
    trees = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["t"], "trees", domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0],
        nodes_nodeids=[0], nodes_featureids=[0], nodes_values=[0.0], nodes_modes=["LEAF"], nodes_truenodeids=[0],
        nodes_falsenodeids=[0], target_treeids=[0], target_nodeids=[0], target_ids=[0], target_weights=[1.0],
    )  # fmt: skip
    nodes = [helper.make_node("Add", ["u", "i"], ["x"]), trees, helper.make_node("Add", ["t", "t"], ["y"])]
    path = graph(nodes, ["rows", 4], {}, tmp_path / "trees.onnx")
    with pytest.raises(UnsupportedModelError, match=r"ai\.onnx\.ml\.TreeEnsembleRegressor \(node 'trees'\)"):
        hoist(path, None, context=["u"])
    nodes = [
        helper.make_node("Add", ["u", "i"], ["x"]),
        helper.make_node("Hardmax", ["x"], ["h"], "hard"),
        helper.make_node("Add", ["h", "h"], ["y"]),
    ]
    with pytest.raises(UnsupportedModelError, match=r"Hardmax \(node 'hard'\)"):
        hoist(graph(nodes, ["rows", 4], {}, tmp_path / "hard.onnx"), None, context=["u"])


def test_an_attribute_that_is_not_read_is_named(tmp_path: Path):
    last = helper.make_node("CumSum", ["x", "axis"], ["y"], "sums", reverse=1)
    nodes = [helper.make_node("Add", ["u", "i"], ["x"]), last]
    path = graph(nodes, ["rows", 4], {"axis": np.array(1)}, tmp_path / "sums.onnx")
    with pytest.raises(UnsupportedModelError, match=r"CumSum \(sums\) sums exclusively or in reverse"):
        hoist(path, None, context=["u"])


def test_rows_that_are_a_fixed_number_and_sizes_that_are_open_are_explained(tmp_path: Path):
    nodes = [helper.make_node("Add", ["u", "i"], ["y"])]
    with pytest.raises(CaptureError, match=r"input 'u' of the file has shape \[1, 4\].*dynamic batch axis"):
        hoist(graph(nodes, [1, 4], {}, tmp_path / "fixed.onnx"), None, context=["u"])
    path = graph(nodes, ["rows", "width"], {}, tmp_path / "open.onnx")
    with pytest.raises(CaptureError, match=r"input 'u' of the file has shape \[rows, width\]: pass an example"):
        hoist(path, None, context=["u"])
    rows = torch.randn(3, 4)
    assert hoist(path, {"u": rows, "i": rows}, context=["u"])({"u": rows[:1], "i": rows}).shape == (3, 4)
    with pytest.raises(InputError, match="the ONNX file has the inputs u, i; the example has u"):
        hoist(path, {"u": rows}, context=["u"])


def test_what_is_no_onnx_file_is_said(tmp_path: Path):
    path = tmp_path / "ranker.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CaptureError, match=r"ranker\.onnx is not a readable ONNX file"):
        hoist(path, None, context=["u"])


def test_sums_of_a_file_are_added_term_by_term_in_its_graph(tmp_path: Path):
    """Verification asks how far its sums may round; ONNX Runtime adds them as it does."""
    weight = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    nodes = [helper.make_node("Concat", ["u", "i"], ["x"], axis=1), helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = graph(nodes, ["rows", 1000], {"w": weight}, tmp_path / "wide.onnx")
    u, i = torch.randn(1, 1000).sign(), torch.randn(3, 1000).sign()
    hoisted = hoist(path, {"u": u, "i": i[:1]}, context=["u"])
    with TermByTerm():
        (found,) = by_torch(Session(path), hoisted)(Batch({"u": u}, {"i": i}, (0, 3))).leaves
    ends = (torch.cat([u.expand(3, -1), i], 1)[..., None] * torch.from_numpy(weight)).numpy().cumsum(1)[:, -1]
    assert torch.equal(found, torch.from_numpy(ends))


# -- operators one by one

X = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
SLICE, ONOFF = ["x", "from", "to", "axes", "steps"], np.array([-1, 2], np.float32)
ONE = {
    "backwards": ("Slice", SLICE, {}, {"from": [-1], "to": [-100], "axes": [1], "steps": [-1]}),
    "backwards to a place": ("Slice", SLICE, {}, {"from": [3], "to": [0], "axes": [1], "steps": [-2]}),
    "integers divided": ("Div", ["k", "three"], {}, {"three": 3}),
    "padded": ("Pad", ["x", "pads"], {}, {"pads": [0, 1, 0, 2]}),
    "filled": ("Pad", ["x", "pads", "ten"], {}, {"pads": [0, 1, 0, 0]}),
    "squared": ("Pow", ["x", "two"], {}, {"two": np.array(2, np.float32)}),
    "clipped": ("Clip", ["x", "low", "ten"], {}, {"low": np.array(-0.5, np.float32)}),
    "one hot": ("OneHot", ["column", "depth", "onoff"], {"axis": -1}, {"depth": 5, "onoff": ONOFF}),
    "selu": ("Selu", ["x"], {}, {}),
    "hard": ("HardSigmoid", ["x"], {"alpha": 0.3}, {}),
    "thresholded": ("ThresholdedRelu", ["x"], {"alpha": 0.5}, {}),
    "softplus": ("Softplus", ["x"], {}, {}),
    "elu": ("Elu", ["x"], {"alpha": 0.7}, {}),
    "largest": ("ArgMax", ["x"], {"axis": 1, "keepdims": 0}, {}),
    "squares": ("ReduceSumSquare", ["x"], {"axes": [-1]}, {}),
    "exponents": ("ReduceLogSumExp", ["x"], {"axes": [1], "keepdims": 0}, {}),
    "triangle": ("Trilu", ["x"], {"upper": 0}, {}),
    "modulo": ("Mod", ["k", "three"], {}, {"three": 3}),
    "gathered": ("GatherElements", ["x", "places"], {"axis": 1}, {"places": np.array([[0, -1], [1, 2]] * 3)}),
    "tiled": ("Tile", ["x", "times"], {}, {"times": [1, 2]}),
    "norm": ("LayerNormalization", ["x", "w"], {"axis": 1, "epsilon": 1e-3}, {"w": np.array([1, 2, 3, 4], np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_an_operator_computes_what_onnx_runtime_does(name: str, tmp_path: Path):
    path, rows = single(name, tmp_path), {"u": torch.from_numpy(X), "i": torch.from_numpy(X[::-1].copy())}
    torch.testing.assert_close(read(path)(rows), Session(path)(rows), rtol=1e-6, atol=1e-6)
    if name != "gathered":  # by places of six rows
        any_rows = {side: {0: torch.export.Dim("rows")} for side in rows}
        made = torch.export.export(read(path), (rows,), dynamic_shapes=(any_rows,)).module()
        torch.testing.assert_close(made(rows), Session(path)(rows), rtol=1e-6, atol=1e-6)


def single(name: str, folder: Path) -> Path:
    """The operator on `x = u + i`, on its whole numbers `k`, or on its first column as ids."""
    operator, inputs, attributes, constants = ONE[name]
    arrays = {n: np.asarray(v) for n, v in constants.items()} | {"zero": np.array(0), "ten": np.array(10, np.float32)}
    nodes = [
        helper.make_node("Add", ["u", "i"], ["x"]),
        helper.make_node("Mul", ["x", "ten"], ["large"]),
        helper.make_node("Cast", ["large"], ["k"], to=TensorProto.INT64),
        helper.make_node("Gather", ["k", "zero"], ["column"], axis=1),
        helper.make_node(operator, inputs, ["made"], **attributes),
        helper.make_node("Cast", ["made"], ["floating"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floating"], ["y"]),
    ]
    return graph(nodes, ["rows", 4], arrays, folder / "one.onnx")


# -- the command


def test_the_command_hoists_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = exported(Target, 18, tmp_path / "ranker.onnx"), tmp_path / "ranker.rankhoist"
    assert main(["hoist", str(path), "--context", "history", "--out", str(out)]) == 0
    assert "passed" in capsys.readouterr().out
    assert out.exists()
