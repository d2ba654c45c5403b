"""A model repository of Triton: its files hold to the schema, and its stages, run as they say, give the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import serving
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from serving import inputs, scores
from torch import nn
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import triton_to_np_dtype

import rankhoist
from rankhoist import cli
from rankhoist.errors import ArtifactError, BackendError
from rankhoist.runtime.datatypes import DATATYPES
from rankhoist.runtime.triton import to_triton

Arrays = dict[str, NDArray[Any]]


class Triton:
    """What Triton does with a repository: the highest version of every model, each tensor held to the configuration."""

    def __init__(self, repository: Path) -> None:
        self.configs = {p.parent.name: read(p) for p in repository.glob("*/config.pbtxt")}
        self.folders = {name: max((repository / name).glob("[0-9]*")) for name in self.configs}
        self.repository, self.calls = repository, []

    def infer(self, name: str, given: Arrays) -> Arrays:
        config = self.configs[name]
        self.calls.append(name)
        assert given.keys() == {i.name for i in config.input}
        check(config.input, given)
        made = self._steps(config, given) if config.platform == "ensemble" else self._run(name, config, given)
        check(config.output, made)
        return {output.name: made[output.name] for output in config.output}

    def warm_up(self, name: str) -> Arrays:
        (warm_up,) = self.configs[name].model_warmup
        given = {}
        for key, value in warm_up.inputs.items():
            data = (self.repository / name / "warmup" / value.input_data_file).read_bytes()
            given[key] = np.frombuffer(data, dtype_of(value.data_type)).reshape(value.dims)
        assert warm_up.batch_size == 1
        return self.infer(name, given)

    def _steps(self, config: Any, tensors: Arrays) -> Arrays:
        tensors = dict(tensors)
        for step in config.ensemble_scheduling.step:
            made = self.infer(step.model_name, {own: tensors[name] for own, name in step.input_map.items()})
            tensors |= {name: made[own] for own, name in step.output_map.items()}
        return tensors

    def _run(self, name: str, config: Any, given: Arrays) -> Arrays:
        assert config.backend == "onnxruntime"
        session = onnxruntime.InferenceSession(str(self.folders[name] / config.default_model_filename))
        names = [output.name for output in config.output]
        return dict(zip(names, session.run(names, given), strict=True))


def read(path: Path) -> Any:
    return text_format.Parse(path.read_text(), ModelConfig())


def dtype_of(number: int) -> Any:
    from tritonclient.grpc.model_config_pb2 import DataType

    return triton_to_np_dtype(DataType.Name(number).removeprefix("TYPE_"))


def check(described: Any, tensors: Arrays) -> None:
    for tensor in described:
        array = tensors[tensor.name]
        assert array.dtype == dtype_of(tensor.data_type), tensor
        assert len(tensor.dims) == array.ndim, tensor
        assert all(dim in (-1, size) for dim, size in zip(tensor.dims, array.shape, strict=True)), (tensor, array.shape)


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return serving.hoisted_ranker()


@pytest.fixture(scope="module")
def repository(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, written by the command and by the function."""
    folder = tmp_path_factory.mktemp("triton")
    hoisted.save(folder / "ranker.rankhoist")
    repository = folder / "repository"
    assert cli.main(["export", "triton", str(folder / "ranker.rankhoist"), str(repository)]) == 0
    to_triton(serving.hoisted_packed(), repository, "packed")
    return repository


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_an_ensemble_gives_the_scores(hoisted: rankhoist.HoistedModel, repository: Path, rows: int):
    given = inputs(1, rows, seed=rows)
    triton = Triton(repository)
    made = triton.infer("ranker", {name: t.numpy() for name, t in given.items()})
    assert triton.calls == ["ranker", "ranker_request", "ranker_candidate"]
    expected = scores(hoisted, given)
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, rtol=1e-5, atol=1e-6)


def test_a_packed_input_is_two(repository: Path):
    x = torch.rand(6, 2) * torch.tensor([1.0, 19.0])
    made = Triton(repository).infer("packed", {"X.context": np.float32([[3.0]]), "X.candidate": x.numpy()})
    packed = serving.hoisted_packed()
    expected = packed.score(packed.prepare([torch.tensor([[3.0]])]), [x])
    np.testing.assert_allclose(made["scores"], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_warm_ups_run_and_several_requests_do_not(repository: Path):
    triton = Triton(repository)
    for name in triton.configs:
        if triton.configs[name].platform != "ensemble":  # Triton warms up stages only
            assert all(np.isfinite(array).all() for array in triton.warm_up(name).values())
    with pytest.raises(AssertionError):
        triton.infer("ranker", {name: t.numpy() for name, t in inputs(2, 6).items()})


def test_configurations_are_those_of_the_stages(repository: Path):
    """Names, and what the ONNX models take; nothing of an ensemble is left without a use."""
    triton = Triton(repository)
    assert set(triton.configs) == {f"{m}{s}" for m in ("ranker", "packed") for s in ("", "_request", "_candidate")}
    for name, config in triton.configs.items():
        assert config.name == name and config.max_batch_size == 0
        if config.platform != "ensemble":
            graph = onnx.load(triton.folders[name] / config.default_model_filename).graph
            assert [i.name for i in config.input] == [i.name for i in graph.input]
            assert [o.name for o in config.output] == [o.name for o in graph.output]
            continue
        assert not config.model_warmup and not config.instance_group  # Triton refuses them
        made = [n for step in config.ensemble_scheduling.step for n in step.output_map.values()]
        used = [n for step in config.ensemble_scheduling.step for n in step.input_map.values()]
        assert set(used) == {i.name for i in config.input} | (set(made) - {o.name for o in config.output})


def test_a_later_version_lies_beside_the_first(repository: Path, tmp_path: Path):
    folder, later = tmp_path / "repository", serving.hoisted_ranker(-3.0)
    to_triton(serving.hoisted_ranker(), folder, "ranker")
    with pytest.raises(BackendError, match="has a version 1 already"):
        to_triton(later, folder, "ranker")
    to_triton(later, folder, "ranker", version=2)
    given = inputs(1, 5)
    made = Triton(folder).infer("ranker", {name: t.numpy() for name, t in given.items()})
    np.testing.assert_allclose(made["click"], scores(later, given)["click"], rtol=1e-5, atol=1e-6)
    assert (folder / "ranker_candidate" / "1" / "candidate.onnx").exists()


class Alone(nn.Module):
    """No context."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(3, 1)

    def forward(self, item):
        return self.top(item)


def test_what_is_no_ensemble_is_refused(hoisted, tmp_path: Path):
    alone = rankhoist.hoist(Alone().eval(), (torch.randn(4, 3),), context=[])
    with pytest.raises(BackendError, match="the request stage reads no input"):
        to_triton(alone, tmp_path, "alone")
    for name, version, message in (("../up", 1, "no name for a model"), ("ranker", 0, "version 0 is none")):
        with pytest.raises(BackendError, match=message):
            to_triton(hoisted, tmp_path, name, version)
    assert list(tmp_path.iterdir()) == []
    (taken := tmp_path / "taken").touch()
    with pytest.raises(ArtifactError, match="taken cannot be written: Not a directory"):
        to_triton(hoisted, taken, "ranker")


def test_every_type_is_one_of_the_schema():
    from tritonclient.grpc.model_config_pb2 import DataType

    assert {f"TYPE_{name}" for name in DATATYPES.values()} <= set(DataType.keys())
