"""gRPC: the official client, scores as over HTTP bit for bit, refusals by their code, limits, several workers."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import serving
import torch
import tritonclient.grpc
from rankhoist_client import Client, v2
from serving import Served, inputs
from torch import nn
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import rankhoist
from rankhoist import cli
from rankhoist.serve.grpc_messages import FIELDS, MESSAGES, SERVICE

LIMIT = 300_000


class Half(nn.Module):
    """Ids beside numbers, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.top = nn.Embedding(40, 4), nn.Linear(7, 2)

    def forward(self, user, item, price):
        return self.top(torch.cat([user, self.table(item), price], 1))


def hoisted_half() -> rankhoist.HoistedModel:
    example = (torch.randn(4, 2).bfloat16(), torch.arange(4), torch.randn(4, 1).bfloat16())
    return rankhoist.hoist(Half().bfloat16().eval(), example, context=["user"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    serving.hoisted_ranker().save(folder / "ranker.rankhoist")
    hoisted_half().save(folder / "half.rankhoist")
    paths = [folder / "ranker.rankhoist", folder / "half.rankhoist"]
    with serving.serving(*paths, "--grpc-port", 0, "--max-body-bytes", LIMIT, "--body-seconds", 2) as served:
        yield served


def port(server: Served) -> int:
    found: int = server.wait_for("serving")[0]["grpc_port"]
    return found


@pytest.fixture
def client(server: Served) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port(server)}") as client:
        yield client


@pytest.fixture
def channel(server: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port(server)}") as channel:
        yield channel


def arrays(given: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in given.items()}


def sent(given: dict[str, np.ndarray]) -> list[tritonclient.grpc.InferInput]:
    made = []
    for name, array in given.items():
        entry = tritonclient.grpc.InferInput(name, list(array.shape), v2.datatype_of(array))
        made.append(entry.set_data_from_numpy(array))
    return made


def request(given: dict[str, np.ndarray], name: str = "ranker") -> Any:
    """A message of ours, to be broken."""
    entries = [{"name": n, "datatype": v2.datatype_of(x), "shape": x.shape} for n, x in given.items()]
    raw = [x.tobytes() for x in given.values()]
    return MESSAGES["ModelInferRequest"](model_name=name, inputs=entries, raw_input_contents=raw)


def refused(channel: grpc.Channel, message: Any, method: str = "ModelInfer") -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and text."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(grpc.RpcError) as found:
        channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=30)
    error = found.value
    return error.code(), dict(error.trailing_metadata() or ()).get("reason", ""), error.details()


# -- the protocol


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_the_official_one(name: str):
    def fields(message: Any) -> list[tuple[Any, ...]]:
        return [
            (f.name, f.number, f.type, f.is_repeated, f.message_type and f.message_type.GetOptions().map_entry,
             f.containing_oneof and f.containing_oneof.name, f.message_type and fields(f.message_type))
            for f in message.fields
        ]  # fmt: skip

    messages = service_pb2.DESCRIPTOR.message_types_by_name.values()
    official = {inner.name: inner for message in messages for inner in (message, *message.nested_types)}
    assert fields(MESSAGES[name].DESCRIPTOR) == fields(official[name])


def test_the_official_client_reads_what_there_is(server: Served, client: tritonclient.grpc.InferenceServerClient):
    assert client.is_server_live() and client.is_server_ready()
    version = server.call("/").json["models"]["ranker"]
    assert client.is_model_ready("ranker") and client.is_model_ready("ranker", version)
    assert not client.is_model_ready("nobody") and not client.is_model_ready("ranker", "7")
    assert list(client.get_server_metadata().extensions) == server.call("/v2").json["extensions"]
    about, expected = client.get_model_metadata("ranker", as_json=True), server.call("/v2/models/ranker").json
    assert about["versions"] == [version]
    for ours, theirs in zip(expected["inputs"] + expected["outputs"], about["inputs"] + about["outputs"], strict=True):
        assert [str(n) for n in ours["shape"]] == theirs["shape"]
        assert (ours["name"], ours["datatype"]) == (theirs["name"], theirs["datatype"])
    listed = {model.name: model.state for model in client.get_model_repository_index().models}
    assert listed == {"ranker": "READY", "half": "READY"}


@pytest.mark.parametrize("rows", [1, 30, 1000, 0])
def test_scores_are_those_of_http_bit_for_bit(server: Served, client, rows: int):
    given = arrays(inputs(1, rows, seed=rows))
    expected = server.outputs("ranker", given)
    result = client.infer("ranker", sent(given), request_id="r7")
    assert result.get_response().id == "r7"
    for name, scores in expected.items():
        found = result.as_numpy(name)
        assert found.dtype == scores.dtype and found.shape == scores.shape and found.tobytes() == scores.tobytes()


def test_one_output_several_requests(server: Served, client):
    given = arrays(inputs(3, 12, seed=2)) | {"request_offsets": np.array([0, 5, 5, 12])}
    result = client.infer("ranker", sent(given), outputs=[tritonclient.grpc.InferRequestedOutput("buy")])
    assert [output.name for output in result.get_response().outputs] == ["buy"]
    np.testing.assert_array_equal(result.as_numpy("buy"), server.outputs("ranker", given)["buy"])


@pytest.mark.parametrize("rows", [5, 0])
def test_bfloat16_on_both(server: Served, client, rows: int):
    draw = np.random.default_rng(0)
    given = {
        "user": draw.standard_normal((1, 2)).astype(ml_dtypes.bfloat16), "item": np.arange(rows),
        "price": draw.standard_normal((rows, 1)).astype(ml_dtypes.bfloat16),
    }  # fmt: skip
    found = client.infer("half", sent(given)).as_numpy("scores")
    assert found.dtype == ml_dtypes.bfloat16 and found.shape == (rows, 2)
    assert found.tobytes() == server.outputs("half", given)["scores"].tobytes()
    declared = {n: v2.bfloat16(x.astype(np.float32)) if n != "item" else x for n, x in given.items()}
    with Client(f"http://127.0.0.1:{server.port}") as http:
        for sent_as in (given, declared):
            ranking = http.rank("half", {"user": sent_as.pop("user")}, sent_as)
            np.testing.assert_array_equal(ranking.scores, found.astype(np.float32))


def test_contents_that_are_not_raw(server: Served, channel: grpc.Channel):
    given = arrays(inputs(1, 4))
    message = request(given)
    del message.raw_input_contents[:]
    for entry, values in zip(message.inputs, given.values(), strict=True):
        field = {"INT64": "int64_contents", "FP32": "fp32_contents"}[entry.datatype]
        getattr(entry.contents, field).extend(values.reshape(-1).tolist())
    answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(message.SerializeToString())
    (click, _) = MESSAGES["ModelInferResponse"].FromString(answer).raw_output_contents
    assert click == server.outputs("ranker", given)["click"].tobytes()


def test_a_context_key_reuses_the_state(server: Served, client):
    given = arrays(inputs(1, 8, seed=5))
    for _ in range(2):
        client.infer("ranker", sent(given), parameters={"context_key": "grpc-1"})
    text = server.call("/metrics").body.decode()
    assert 'rankhoist_state_cache_hits_total{model="ranker"} 1.0' in text
    assert 'rankhoist_requests_total{model="ranker",protocol="grpc",status="200"}' in text
    given["mood"] += 1
    with pytest.raises(InferenceServerException, match="another context") as found:
        client.infer("ranker", sent(given), parameters={"context_key": "grpc-1"})
    assert found.value.status() == "StatusCode.FAILED_PRECONDITION"


def test_deadlines(server: Served, client, channel: grpc.Channel):
    with pytest.raises(InferenceServerException, match="the deadline passed"):
        client.infer("ranker", sent(arrays(inputs(1, 8))), timeout=1)  # microseconds
    over = threading.Event()

    def late() -> Iterator[bytes]:
        over.wait(60)
        yield b""

    with pytest.raises(grpc.RpcError) as found:
        channel.stream_unary(f"/{SERVICE}/ModelInfer")(late(), timeout=0.2)
    assert found.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    for _ in range(100):  # who is gone has no place
        if "rankhoist_queue_length 0.0" in server.call("/metrics").body.decode():
            break
        time.sleep(0.01)
    over.set()
    assert "rankhoist_queue_length 0.0" in server.call("/metrics").body.decode()


# -- refusals


def broken(change: Callable[[Any], object]) -> Any:
    message = request(arrays(inputs(1, 4)))
    change(message)
    return message


def text(value: str) -> Any:
    return MESSAGES["InferParameter"](string_param=value)


def drop(message: Any) -> None:
    message.inputs.pop()
    message.raw_input_contents.pop()


def drop_all(message: Any) -> None:
    message.ClearField("inputs")
    message.ClearField("raw_input_contents")


def add(message: Any) -> None:
    message.inputs.add(name="x", datatype="BOOL", shape=[0])
    message.raw_input_contents.append(b"")


def raw(place: int, data: bytes) -> Callable[[Any], object]:
    return lambda m: m.raw_input_contents.__setitem__(place, data)


def rows(count: int) -> Callable[[Any], object]:
    return lambda m: m.inputs[2].shape.__setitem__(0, count)


def datatype(name: str) -> Callable[[Any], object]:
    return lambda m: setattr(m.inputs[0], "datatype", name)


INVALID: dict[str, list[Any]] = {
    "malformed": [
        b"\xff\xff", b"\x0a\xff",
        lambda m: m.raw_input_contents.pop(),
        lambda m: m.raw_input_contents.append(b""),
        lambda m: setattr(m.inputs[0], "name", "item"),
        lambda m: m.inputs[0].contents.int64_contents.append(1),
    ],
    "missing_input": [drop, drop_all],
    "unknown_input": [add],
    "dtype": [*map(datatype, ("FP64", "TEXT", "", "\U0001f600"))],
    "shape": [
        *map(rows, (-1, 3, 2**31, 2**62)), lambda m: m.inputs[2].shape.extend([1] * 20), raw(0, b""), raw(2, b"123"),
        lambda m: m.ClearField("raw_input_contents"),
    ],
    "unknown_output": [lambda m: m.outputs.add(name="x")],
    "parameter": [
        lambda m: m.inputs[0].parameters["shared_memory_region"].CopyFrom(text("x")),
        lambda m: m.outputs.add(name="buy").parameters["classification"].CopyFrom(text("x")),
        lambda m: m.parameters["context_key"].CopyFrom(text("x" * 300)),
        lambda m: m.parameters["timeout"].CopyFrom(text("nan")),
    ],
    "out_of_vocabulary": [raw(0, b"\xff" * 8)],
    "not_finite": [raw(1, b"\xff" * 12)],
}  # fmt: skip


@pytest.mark.parametrize("reason", INVALID)
def test_what_is_malformed_is_an_invalid_argument(channel: grpc.Channel, reason: str):
    for change in INVALID[reason]:
        code, found, said = refused(channel, change if isinstance(change, bytes) else broken(change))
        assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, reason), said


def test_what_there_is_not(channel: grpc.Channel, client):
    assert refused(channel, request({}, "nobody"))[0] == grpc.StatusCode.NOT_FOUND
    assert refused(channel, b"", "ModelConfig")[0] == grpc.StatusCode.UNIMPLEMENTED
    assert refused(channel, request({}, "\U0001f600" * 9999))[2].isascii()
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="--admin") as found:
            change("ranker")
        assert found.value.status() == "StatusCode.PERMISSION_DENIED"


def test_a_message_that_is_too_large_or_compressed(channel: grpc.Channel):
    assert refused(channel, b"\0" * (LIMIT + 1))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(gzip.compress(bytes(10 * LIMIT))) < LIMIT
    with pytest.raises(grpc.RpcError) as found:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        call(bytes(10 * LIMIT), compression=grpc.Compression.Gzip, timeout=30)
    assert found.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_message_that_does_not_come(server: Served, channel: grpc.Channel):
    waits = threading.Event()

    def never() -> Iterator[bytes]:
        waits.wait(60)
        yield from ()

    start = time.monotonic()
    with pytest.raises(grpc.RpcError) as found:
        channel.stream_unary(f"/{SERVICE}/ModelInfer")(never(), timeout=30)
    waits.set()
    assert "did not come within 2 seconds" in found.value.details() and time.monotonic() - start < 20
    with pytest.raises(grpc.RpcError) as found:
        channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter(()), timeout=30)
    assert found.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "rankhoist_queue_length 0.0" in server.call("/metrics").body.decode()


# -- operation


def test_workers_share_the_port_and_load_new_versions(tmp_path):
    path = tmp_path / "ranker.rankhoist"
    serving.hoisted_ranker().save(path)
    given = arrays(inputs(1, 200))
    with serving.serving(path, "--grpc-port", 0, "--workers", 2, "--max-queue", 2, "--admin") as served:
        served.wait_for("worker ready", 2)
        address = f"127.0.0.1:{port(served)}"
        message = request(given).SerializeToString()

        def ask(_: int) -> str:
            options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            with grpc.insecure_channel(address, options) as own:
                try:
                    own.unary_unary(f"/{SERVICE}/ModelInfer")(message, timeout=60)
                    return "OK"
                except grpc.RpcError as error:
                    return error.code().name

        with ThreadPoolExecutor(16) as pool:
            codes = set(pool.map(ask, range(160)))
        assert "OK" in codes and codes <= {"OK", "RESOURCE_EXHAUSTED"}
        with tritonclient.grpc.InferenceServerClient(address) as client:
            old = client.infer("ranker", sent(given)).get_response().model_version
            serving.hoisted_ranker(2.0).save(path)
            client.load_model("ranker")
            result = client.infer("ranker", sent(given))
            assert result.get_response().model_version != old
            np.testing.assert_array_equal(result.as_numpy("click"), served.outputs("ranker", given)["click"])
            with pytest.raises(InferenceServerException, match="without parameters"):
                client.load_model("ranker", config="{}")
        with ThreadPoolExecutor(4) as pool:
            late = [pool.submit(ask, i) for i in range(4)]
            assert served.stop() == 0
        assert {answer.result() for answer in late} <= {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"}


def test_a_port_that_is_taken(server: Served, tmp_path, capsys):
    serving.hoisted_packed().save(tmp_path / "packed.rankhoist")
    code = cli.main(["serve", str(tmp_path / "packed.rankhoist"), "--port", "0", "--grpc-port", str(server.port)])
    assert code == 2 and f"cannot listen on 127.0.0.1:{server.port}" in capsys.readouterr().err
