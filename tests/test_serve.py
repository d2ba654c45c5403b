"""A real server, in processes of its own: both protocols, every refusal by its reason, and no mixed-up score."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import serving
import torch
import tritonclient.http
from rankhoist_client import v2
from serving import ITEMS, Served, inputs, rank_body, scores

import rankhoist

LIMITS = ["--max-body-bytes", 400_000, "--max-candidates", 5000, "--cache-bytes", 300_000, "--batch-up-to", 100]


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return serving.hoisted_ranker()


@pytest.fixture(scope="module")
def packed() -> rankhoist.HoistedModel:
    return serving.hoisted_packed()


@pytest.fixture(scope="module")
def server(hoisted, packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    hoisted.save(folder / "ranker.rankhoist")
    packed.save(folder / "packed.rankhoist")
    with serving.serving(folder / "ranker.rankhoist", folder / "packed.rankhoist", *LIMITS) as served:
        yield served


def close(actual, expected) -> None:
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def arrays(given: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in given.items()}


# -- the JSON protocol


def test_rank_gives_scores_of_every_output_and_the_order(server: Served, hoisted):
    given = inputs(1, 20)
    expected = scores(hoisted, given)
    answer = server.call("/v1/models/ranker/rank", rank_body(given)).json
    close(answer["scores"]["click"], expected["click"])
    close(answer["scores"]["buy"], expected["buy"][:, 0])
    assert answer["order"] == np.argsort(-expected["click"], kind="stable").tolist()
    assert re.fullmatch("[0-9a-f]{12}", answer["version"])


def test_top_k_gives_the_best_first_by_the_output_asked_for(server: Served, hoisted):
    given = inputs(1, 20)
    expected = scores(hoisted, given)["buy"][:, 0]
    answer = server.call("/v1/models/ranker/rank", rank_body(given, top_k=3, output="buy")).json
    assert answer["order"] == np.argsort(-expected, kind="stable")[:3].tolist()
    close(answer["scores"]["buy"], np.sort(expected)[::-1][:3])
    assert len(answer["scores"]["click"]) == 3


def test_candidates_as_rows_and_context_in_lists(server: Served):
    body = rank_body(inputs(1, 6))
    columns = body["candidates"]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    listed = {"context": {name: [value] for name, value in body["context"].items()}, "candidates": rows}
    assert server.call("/v1/models/ranker/rank", listed).body == server.call("/v1/models/ranker/rank", body).body


def test_no_candidates_no_scores(server: Served):
    body = rank_body(inputs(1, 0))
    answer = server.call("/v1/models/ranker/rank", body).json
    assert server.call("/v1/models/ranker/rank", body | {"candidates": []}).json == answer
    assert answer["scores"] == {"click": [], "buy": []} and answer["order"] == []


def test_packed_inputs_come_in_two_parts(server: Served, packed):
    context, candidates = torch.tensor([[3.0]]), torch.tensor([[0.5, 4.0], [-0.1, 19.0]])  # one column is no id
    body = {"context": {"X.context": [3.0]}, "candidates": {"X.candidate": candidates.tolist()}}
    expected = packed(rankhoist.Split(context, candidates))[:, 0].numpy()
    close(server.call("/v1/models/packed/rank", body).json["scores"], expected)


# -- the protocol v2


@pytest.mark.parametrize("binary_inputs", [True, False])
@pytest.mark.parametrize("binary_outputs", [True, False])
def test_the_official_client(server: Served, hoisted, binary_inputs: bool, binary_outputs: bool):
    given = inputs(1, 30, seed=1)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("ranker")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
        version = client.get_model_metadata("ranker")["versions"][0]
        assert client.is_model_ready("ranker", version)
        sent = []
        for name, tensor in given.items():
            entry = tritonclient.http.InferInput(name, list(tensor.shape), v2.datatype_of(tensor.numpy()))
            entry.set_data_from_numpy(tensor.numpy(), binary_data=binary_inputs)
            sent.append(entry)
        wanted = [tritonclient.http.InferRequestedOutput("buy", binary_data=binary_outputs)]
        result = client.infer("ranker", sent, outputs=wanted, request_id="r7", model_version=version)
        assert result.get_response()["id"] == "r7" and result.get_response()["model_version"] == version
        close(result.as_numpy("buy"), scores(hoisted, given)["buy"])
        assert result.as_numpy("click") is None
        close(client.infer("ranker", sent).as_numpy("click"), scores(hoisted, given)["click"])
        with pytest.raises(tritonclient.utils.InferenceServerException, match="'mood' is missing"):
            client.infer("ranker", [entry for entry in sent if entry.name() != "mood"])


def test_metadata_names_features_with_dtypes_and_shapes(server: Served):
    found = server.call("/v2/models/ranker").json
    shapes = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in found["inputs"]}
    assert shapes["user"] == ("INT64", [-1]) and shapes["tags"] == ("INT64", [-1, 5])
    assert [(o["name"], o["shape"]) for o in found["outputs"]] == [("click", [-1]), ("buy", [-1, 1])]
    names = {entry["name"] for entry in server.call("/v2/models/packed").json["inputs"]}
    assert names == {"X.context", "X.candidate", "request_offsets"}


def test_several_requests_in_one(server: Served, hoisted):
    given, offsets = inputs(3, 12, seed=2), [0, 5, 5, 12]
    made = server.outputs("ranker", arrays(given) | {"request_offsets": np.array(offsets)})
    close(made["click"], scores(hoisted, given, offsets)["click"])


def test_tensors_that_are_not_aligned(server: Served, hoisted):
    given = inputs(1, 9, seed=3)
    body, length = v2.write_request(arrays(given))
    header = body[:length].rstrip()
    header += b" " * ((3 - len(header)) % 8)
    answer = server.call("/v2/models/ranker/infer", header + body[length:], {v2.HEADER_LENGTH: str(len(header))})
    found = {key.lower(): value for key, value in answer.headers.items()}
    close(
        v2.read_response(answer.body, found[v2.HEADER_LENGTH]).tensors["click"].array, scores(hoisted, given)["click"]
    )


# -- no mixed-up score


@pytest.mark.parametrize("size", [1, 7, 300])
def test_concurrent_requests_get_their_own_scores(server: Served, hoisted, size: int):
    """Of sizes below and above that which is scored together."""

    def ask(seed: int) -> None:
        given = inputs(1, size + seed % 5, seed)
        made = server.outputs("ranker", arrays(given))
        for name, expected in scores(hoisted, given).items():
            close(made[name], expected)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(80)))


def test_requests_are_scored_together(server: Served):
    """The test before this one is about nothing otherwise. Whether two meet is chance, on a machine with other work."""

    def counted(which: str) -> float:
        text = server.call("/metrics").body.decode()
        return float(re.search(rf'rankhoist_batch_requests_{which}{{model="ranker"}} (\S+)', text)[1])

    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            list(pool.map(lambda seed: server.outputs("ranker", arrays(inputs(1, 7, seed))), range(80)))
            if counted("sum") > counted("count"):
                return
    pytest.fail("each of 1600 requests was scored alone")


# -- refusals


def changed(**changes) -> dict:
    """A request of the JSON protocol with some of its features changed; `None` removes one."""
    body = rank_body(inputs(1, 4))
    for name, value in changes.items():
        side = body["context"] if name in serving.CONTEXT else body["candidates"]
        side[name] = value
        if value is None:
            del side[name]
    return body


REFUSED = {
    "missing context": (changed(user=None), "missing_input", "user", "INT64 [R]"),
    "missing candidate": (changed(tags=None), "missing_input", "tags", "INT64 [N, 5]"),
    "unknown": (changed() | {"context": {"usr": 1}}, "unknown_input", "usr", "user, mood"),
    "wrong side": (changed() | {"context": {"item": 1}}, "unknown_input", "item", "candidate feature"),
    "fractions for ids": (changed(item=[1, 2.5, 3, 4]), "dtype", "item", "row 1 has the number 2.5"),
    "text": (changed(price=[[1, 2], ["a", 1], [1, 2], [1, 2]]), "dtype", "price", "row 1 has the text 'a'"),
    "true": (changed(item=[1, True, 3, 4]), "dtype", "item", "row 1 has true"),
    "null": (changed(price=[[1, 2], [None, 1], [1, 2], [1, 2]]), "dtype", "price", "row 1 has null"),
    "text for an id": (changed(user="x"), "dtype", "user", "the text 'x'"),
    "huge id": (changed(item=[1, 2, 3, 2**63]), "dtype", "item", "out of its range"),
    "ragged list": (changed(tags=[[1] * 5, [1] * 5, [1] * 4, [1] * 5]), "ragged", "tags", "row 2 has 4 values"),
    "wide list": (changed(tags=[[1] * 6] * 4), "shape", "tags", "[5]"),
    "flat list": (changed(tags=[1, 2, 3, 4]), "shape", "tags", "[5]"),
    "ragged columns": (changed(item=[1, 2, 3]), "ragged", "tags", "has 4 rows, expected 3"),
    "two contexts": (changed(user=[1, 2]), "shape", "user", "expected 1"),
    "overflow": (changed(mood=[1e300, 0, 0]), "not_finite", "mood", "infinity in row 0"),
    "id too large": (
        changed(item=[1, 2, ITEMS, 4]),
        "out_of_vocabulary",
        "item",
        f"in row 2, expected 0 to {ITEMS - 1}",
    ),
    "negative id": (changed(tags=[[0, 0, 0, 0, -1]] * 4), "out_of_vocabulary", "tags", "id -1 in row 0"),
    "context id": (changed(user=50), "out_of_vocabulary", "user", "expected 0 to 49"),
    "not an object": ([1, 2], "malformed", None, "no object"),
    "no candidates": ({"context": {}}, "malformed", None, "'candidates'"),
    "unknown key": (changed() | {"topk": 3}, "malformed", None, "top_k"),
    "top_k": (changed() | {"top_k": 0}, "parameter", None, "top_k"),
    "output": (changed() | {"output": "view"}, "unknown_output", None, "click"),
    "timeout 0": (changed() | {"timeout_ms": 0}, "parameter", None, "timeout"),
    "timeout false": (changed() | {"timeout_ms": False}, "parameter", None, "timeout"),
    "timeout true": (changed() | {"timeout_ms": True}, "parameter", None, "timeout"),
    "timeout of no text": (changed() | {"timeout_ms": ""}, "parameter", None, "timeout"),
    "context_key": (changed() | {"context_key": 7}, "parameter", None, "context_key"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_rank_request_says_why(server: Served, case: str):
    assert_refused(server, "/v1/models/ranker/rank", *REFUSED[case])


def assert_refused(server: Served, path: str, body: Any, reason: str, about: str | None, message: str) -> None:
    """Why, which input it is about, and words of the message."""
    answer = server.call(path, body)
    assert (answer.status, answer.json["reason"], answer.json.get("input")) == (400, reason, about), answer.json
    assert message in answer.json["error"]


def test_rows_that_differ_in_features(server: Served):
    body = {"context": {"user": 1, "mood": [0, 0, 0]}, "candidates": [{"item": 1}, {"itm": 1}]}
    answer = server.call("/v1/models/ranker/rank", body)
    assert (answer.status, answer.json["reason"]) == (400, "ragged")


def spoiled(name: str, /, **changes) -> bytes:
    """A request of the protocol v2 in JSON, with one of its inputs changed."""
    given = {
        n: {"name": n, "datatype": v2.datatype_of(t.numpy()), "shape": list(t.shape), "data": t.flatten().tolist()}
        for n, t in inputs(1, 4).items()
    }
    given[name] = given.get(name, {}) | changes
    return json.dumps({"inputs": list(given.values())}).encode()


SPOILED = {
    "dtype": (spoiled("item", datatype="INT32"), "dtype", "item", "expected INT64"),
    "unknown dtype": (spoiled("item", datatype="TEXT"), "dtype", "item", "INT64"),
    "texts": (spoiled("item", datatype="BYTES", data=list("abcd")), "dtype", "item", "expected INT64"),
    "no texts": (spoiled("item", datatype="BYTES"), "dtype", "item", "something else than texts"),
    "shape": (spoiled("tags", shape=[5, 4]), "shape", "tags", "expected INT64 [N, 5]"),
    "size": (spoiled("item", shape=[5]), "shape", "item", "has 4 values"),
    "negative size": (spoiled("item", shape=[-1]), "shape", "item", "-1"),
    "huge size": (spoiled("item", shape=[2**62, 2**62]), "shape", "item", "expected up to 8 sizes"),
    "huge and empty": (spoiled("item", shape=[*[2**31 - 1] * 3, 0], data=[]), "shape", "item", "less than 2**31"),
    "rows": (spoiled("item", shape=[3], data=[1, 2, 3]), "ragged", "tags", "has 4 rows"),
    "more inputs": (spoiled("x", name="x", datatype="INT64", shape=[1], data=[1]), "unknown_input", "x", "user"),
    "twice": (spoiled("x", name="item", datatype="INT64", shape=[1], data=[1]), "malformed", "item", "twice"),
    "binary beyond the end": (
        spoiled("item", parameters={"binary_data_size": 32}), "malformed", "item", "only 0 more"
    ),
    "binary of another size": (
        spoiled("item", parameters={"binary_data_size": 31}), "shape", "item", "has 32"
    ),
    "shared memory": (spoiled("item", parameters={"shared_memory_region": "x"}), "parameter", "item", "shared_memory"),
    "two requests": (spoiled("user", shape=[2], data=[1, 2]), "ragged", "mood", "expected 2"),
    "no name": (spoiled("item", name=None), "malformed", None, "no name"),
    "no JSON": (b"{", "malformed", None, "no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_refused_v2_request_says_why(server: Served, case: str):
    assert_refused(server, "/v2/models/ranker/infer", *SPOILED[case])


def test_a_refusal_quotes_little_of_a_long_name(server: Served):
    name = "a" * 100_000
    for path, body in (("rank", changed() | {"context": {name: 1}}), ("infer", spoiled(name, name=name))):
        answer = server.call(f"/v{1 if path == 'rank' else 2}/models/ranker/{path}", body)
        assert answer.status == 400 and len(answer.body) < 2000 and answer.json["error"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(server: Served, value: float):
    given = arrays(inputs(1, 4))
    given["price"][2, 1] = value
    answer = server.infer("ranker", given)
    assert (answer.status, answer.json["reason"], answer.json["input"]) == (400, "not_finite", "price")
    assert "in row 2" in answer.json["error"]


def test_ids_in_packed_columns_are_checked(server: Served):
    body = {"context": {"X.context": [3.0]}, "candidates": {"X.candidate": [[0.5, 4.0], [100.0, 20.0]]}}
    answer = server.call("/v1/models/packed/rank", body)
    assert (answer.status, answer.json["reason"]) == (400, "out_of_vocabulary")
    assert "'X.candidate' has id 20.0 in row 1, expected 0 to 19" in answer.json["error"]


@pytest.mark.parametrize(
    ("offsets", "reason"),
    [(None, "missing_input"), ([0, 4], "shape"), ([0, 5, 4], "shape"), ([1, 2, 4], "shape"), ([0, 2, 3], "shape")],
)
def test_offsets_are_checked(server: Served, offsets, reason: str):
    given = arrays(inputs(2, 4)) | ({} if offsets is None else {"request_offsets": np.array(offsets)})
    answer = server.infer("ranker", given)
    assert (answer.status, answer.json["reason"], answer.json["input"]) == (400, reason, "request_offsets")


def test_header_lengths_that_do_not_fit(server: Served):
    body, _ = v2.write_request(arrays(inputs(1, 4)))
    for length in ("-1", "999999", "x", "3", ""):
        answer = server.call("/v2/models/ranker/infer", body, {v2.HEADER_LENGTH: length})
        assert (answer.status, answer.json["reason"]) == (400, "malformed"), length


def test_limits(server: Served):
    answer = server.infer("ranker", arrays(inputs(1, 5001)))
    assert (answer.status, answer.json["reason"]) == (413, "too_large")
    assert "5001 candidates" in answer.json["error"]
    given = arrays(inputs(1025, 0)) | {"request_offsets": np.zeros(1026, np.int64)}
    answer = server.infer("ranker", given)
    assert (answer.status, answer.json["reason"]) == (413, "too_large")
    assert "1025 context rows, the most are 1024" in answer.json["error"]
    answer = server.call("/v1/models/ranker/rank", b"[" * 400_001)
    assert (answer.status, answer.json["reason"]) == (413, "too_large")


def test_a_connection_ends_where_a_body_was_not_read(server: Served):
    """Else the client would ask again on a connection that the server is about to close."""
    for path, body, status, closes in (
        ("/v1/models/ranker/rank", "[" * 400_001, 413, True),
        ("/v1/models/other/rank", "{}", 404, True),
        ("/v1/models/ranker/rank", "[", 400, False),
        ("/v1/models/ranker/rank", json.dumps(rank_body(inputs(1, 2))), 200, False),
    ):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection") == "close") == (status, closes), path


def test_a_chunked_body_is_limited_too(server: Served):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/models/ranker/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(7):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/models/other/rank", b"{}", 404),
        ("/v2/models/ranker/versions/1/infer", b"{}", 404),
        ("/v2/models/ranker/infer", None, 405),
        ("/v2/health/live", b"", 405),
        ("/nothing", None, 404),
        ("/v2/repository/models/ranker/load", b"{}", 403),
    ],
)
def test_routes_that_there_are_not(server: Served, path: str, body, status: int):
    answer = server.call(path, body)
    assert answer.status == status and answer.json["error"]


def test_compressed_bodies_are_refused(server: Served):
    answer = server.call("/v1/models/ranker/rank", b"x", {"Content-Encoding": "gzip"})
    assert (answer.status, answer.json["reason"]) == (415, "encoding")


# -- states and deadlines


def counters(server: Served, name: str) -> float:
    return float(re.search(rf'{name}{{model="ranker"}} (\S+)', server.call("/metrics").body.decode())[1])


def test_a_context_key_reuses_the_state(server: Served, hoisted):
    first, hits = inputs(1, 10, seed=4), counters(server, "rankhoist_state_cache_hits_total")
    page = inputs(1, 6, seed=5) | {name: first[name] for name in serving.CONTEXT}
    for given in (first, page):
        made = server.call("/v1/models/ranker/rank", rank_body(given, context_key="u4")).json
        close(made["scores"]["click"], scores(hoisted, given)["click"])
    assert counters(server, "rankhoist_state_cache_hits_total") == hits + 1
    assert 0 < counters(server, "rankhoist_state_cache_bytes") <= 300_000


def test_a_context_key_with_another_context_is_an_error(server: Served):
    assert server.infer("ranker", arrays(inputs(1, 3, seed=6)), context_key="u6").status == 200
    answer = server.infer("ranker", arrays(inputs(1, 3, seed=7)), context_key="u6")
    assert (answer.status, answer.json["reason"]) == (409, "context_conflict")


@pytest.mark.parametrize("value", ["soon", "-1", "nan", ""])
def test_deadlines_are_numbers(server: Served, value: str):
    answer = server.call("/v1/models/ranker/rank", rank_body(inputs(1, 3)), {"x-request-timeout-ms": value})
    assert (answer.status, answer.json["reason"]) == (400, "parameter")


def test_a_deadline_that_passed(server: Served):
    answer = server.infer("ranker", arrays(inputs(1, 3)), timeout=0.001)  # microseconds
    assert (answer.status, answer.json["reason"]) == (503, "deadline")
    assert answer.headers["retry-after"] == "1"


def test_metrics_name_every_stage(server: Served):
    for seed in range(11):
        server.call("/v1/models/ranker/rank", rank_body(inputs(1, 3, seed=seed)))
    server.call("/v1/models/ranker/rank", {"context": 3})
    text = server.call("/metrics").body.decode()
    for stage in ("parse", "queue", "context", "candidate", "encode"):
        count = re.search(rf'rankhoist_stage_seconds_count{{model="ranker",stage="{stage}"}} (\S+)', text)
        assert float(count[1]) > 10, stage
    assert re.search(r'rankhoist_requests_total{model="ranker",protocol="rank",status="400"} (\S+)', text)
    assert "rankhoist_workers_ready 1.0" in text


def test_logs_are_json(server: Served):
    assert len(server.lines) > 3
    assert all({"time", "level", "event", "pid"} <= line.keys() for line in server.lines)
