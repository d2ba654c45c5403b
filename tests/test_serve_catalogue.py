"""A server with a catalogue: requests name items by their ids, items come while they are scored, no answer is mixed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rankhoist_client
import serving
import torch
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError
from scoring import arrow
from serving import ITEMS, TAGS, USERS, Served, inputs

import rankhoist
from rankhoist.cli import main
from rankhoist.serve.asgi import Asgi
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import _skips

OF_ITEM = ("item", "tags")
IDS = [f"sku-{i}" for i in range(100)]


def hoisted_ranker(scale: float = 1.0) -> rankhoist.HoistedModel:
    model = serving.Ranker(scale).eval()
    return rankhoist.hoist(model, inputs(8, 8), context=list(serving.CONTEXT), item=list(OF_ITEM))


def items(count: int, seed: int = 5) -> dict[str, torch.Tensor]:
    given = inputs(1, count, seed)
    return {name: given[name] for name in OF_ITEM}


def write(path: Path, ids: list[Any], given: dict[str, torch.Tensor]) -> Path:
    pq.write_table(pa.table({"sku": pa.array(ids), **{n: arrow(x) for n, x in given.items()}}), path)
    return path


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoisted_ranker()


@pytest.fixture(scope="module")
def folder(hoisted, tmp_path_factory) -> Path:
    """An artifact; items in a file, with texts as ids; and a catalogue in a folder, with numbers."""
    folder = tmp_path_factory.mktemp("catalogue")
    hoisted.save(folder / "ranker.rankhoist")
    hoisted.save(folder / "numbers.rankhoist")
    write(folder / "items.parquet", IDS, items(100))
    hoisted.catalogue(items(100), ids=torch.arange(100) * 7, path=folder / "store")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    models = [folder / "ranker.rankhoist", folder / "numbers.rankhoist"]
    catalogues = [f"ranker={folder / 'items.parquet'}", f"numbers={folder / 'store'}"]
    flags = ["--item-id", "sku", "--put-items", "--workers", 2, "--grpc-port", 0, "--max-candidates", 1000]
    with serving.serving(*models, "--catalogue", *catalogues, *flags) as served:
        yield served


class Asked:
    """A request for some items, and what the model says of it."""

    def __init__(self, hoisted, given: dict[str, torch.Tensor], rows: list[int], requests: int = 1, seed: int = 0):
        own = inputs(requests, len(rows), seed)
        self.context = {n: own[n] for n in serving.CONTEXT}
        self.price = own["price"]
        whole = {**own, **{n: x[rows] for n, x in given.items()}}
        self.offsets = None if requests == 1 else [len(rows) * i // requests for i in range(requests + 1)]
        self.expected = serving.scores(hoisted, whole, self.offsets)

    def body(self, ids: list[Any], **more: Any) -> dict[str, Any]:
        context = {n: x[0].tolist() for n, x in self.context.items()}
        return {"context": context, "candidates": {"sku": ids, "price": self.price.tolist()}, **more}

    def tensors(self, ids: Any) -> dict[str, np.ndarray]:
        offsets = {} if self.offsets is None else {"request_offsets": np.array(self.offsets)}
        return {**{n: x.numpy() for n, x in self.context.items()}, "sku": np.array(ids), "price": self.price.numpy(),
                **offsets}  # fmt: skip


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(actual, dtype=np.float64), expected, rtol=2e-5, atol=2e-6)


def test_candidates_are_named_by_their_ids(server: Served, hoisted):
    rows = [5, 99, 0, 5, 17]
    asked = Asked(hoisted, items(100), rows)
    answer = server.call("/v1/models/ranker/rank", asked.body([IDS[i] for i in rows]))
    assert answer.status == 200, answer.body
    close(answer.json["scores"]["click"], asked.expected["click"])
    asked_in_numbers = [7 * i for i in rows]
    close(server.outputs("ranker", asked.tensors([IDS[i] for i in rows]))["buy"], asked.expected["buy"])
    close(server.outputs("numbers", asked.tensors(asked_in_numbers))["buy"], asked.expected["buy"])
    answer = server.call("/v1/models/numbers/rank", asked.body(asked_in_numbers, context_key="a"))
    close(answer.json["scores"]["click"], asked.expected["click"])
    again = server.call("/v1/models/numbers/rank", asked.body(asked_in_numbers, context_key="a"))
    assert again.json == answer.json


def test_several_requests_and_both_clients(server: Served, hoisted):
    rows = list(range(20, 31))
    asked = Asked(hoisted, items(100), rows, requests=3)
    ids = [IDS[i] for i in rows]
    close(server.outputs("ranker", asked.tensors(ids))["click"], asked.expected["click"])
    one = Asked(hoisted, items(100), rows)
    for protocol in ("binary", "json"):
        with rankhoist_client.Client(f"http://127.0.0.1:{server.port}", protocol=protocol) as client:
            context = {n: x.numpy() if protocol == "binary" else x[0].tolist() for n, x in one.context.items()}
            found = client.rank("ranker", context, {"sku": ids, "price": one.price.numpy()}, output="click")
            close(found.outputs["click"], one.expected["click"])


def test_grpc_takes_ids_as_texts(server: Served, hoisted):
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    rows = [3, 1, 4]
    asked = Asked(hoisted, items(100), rows)
    given = asked.tensors([IDS[i] for i in rows])
    (line,) = server.wait_for("serving")
    tensors = []
    for name, x in given.items():
        array = x.astype(object) if name == "sku" else x
        datatype = "BYTES" if name == "sku" else v2.datatype_of(x)
        tensors.append(grpc.InferInput(name, list(x.shape), datatype).set_data_from_numpy(array))
    with grpc.InferenceServerClient(f"127.0.0.1:{line['grpc_port']}") as client:
        close(client.infer("ranker", tensors).as_numpy("click"), asked.expected["click"])


def test_unknown_ids_are_named_or_skipped(server: Served, hoisted):
    rows = [5, 6, 7]
    asked = Asked(hoisted, items(100), rows)
    ids = ["sku-5", "nothing", "sku-7"]
    refused = server.call("/v1/models/ranker/rank", asked.body(ids))
    assert (refused.status, refused.json["reason"], refused.json["input"]) == (400, "unknown_item", "sku")
    assert "'nothing'" in refused.json["error"] and "sku-5" not in refused.json["error"]
    answer = server.call("/v1/models/ranker/rank", asked.body(ids, unknown_ids="skip"))
    expected = np.where([True, False, True], asked.expected["click"], np.nan)
    close(answer.json["scores"]["click"], expected)
    assert answer.json["scores"]["click"][1] is None and answer.json["order"][-1] == 1
    several = Asked(hoisted, items(100), rows, requests=3)
    found = server.outputs("ranker", several.tensors(ids), unknown_ids="skip")["buy"]
    close(found[:, 0], np.where([True, False, True], several.expected["buy"][:, 0], np.nan))
    none = server.call("/v1/models/ranker/rank", asked.body(["x" * 100_000, "y", "z"], unknown_ids="skip"))
    assert none.json["scores"]["click"] == [None] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sku": [5, 6, 7]}, "dtype"), ({"item": [1, 2, 3]}, "unknown_input"), ({"sku": ["sku-1"]}, "ragged"),
        ({"sku": [["sku-1"]] * 3}, "dtype"), ({"sku": "sku-1"}, "shape"),
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_is_refused_by_name(server: Served, hoisted, change: dict[str, Any], reason: str):
    body = Asked(hoisted, items(100), [5, 6, 7]).body(IDS[:3])
    body["candidates"] |= change
    answer = server.call("/v1/models/ranker/rank", body)
    assert (answer.status, answer.json["reason"]) == (400, reason), answer.body
    assert answer.json["input"] in (*change, "price")


def test_unknown_ids_are_no_option_without_a_catalogue():
    with pytest.raises(RequestError, match="plain has none"):
        _skips(ServedModel("plain", "1", serving.hoisted_ranker()), "skip")


def test_the_description_of_a_catalogue_is_what_the_server_answers(server: Served):
    document = server.call("/openapi.json").json
    for name in ("ranker", "numbers"):
        for route in (f"/v1/models/{name}/rank", f"/v2/models/{name}/infer"):
            content = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]
            schema = {**content["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(content["example"])
            assert server.call(route, content["example"]).status == 200
    assert "/v1/models/numbers/items" not in document["paths"]  # a folder that the server reads
    put = document["paths"]["/v1/models/ranker/items"]["put"]
    content = put["requestBody"]["content"]["application/json"]
    jsonschema.Draft202012Validator({**content["schema"], "components": document["components"]}).validate(
        content["example"]
    )
    answer = server.call("/v1/models/ranker/items", content["example"], method="PUT")
    assert answer.status == 200 and answer.json["items"] == 1, answer.body
    page = server.call("/", headers={"accept": "text/html"}).body.decode()
    assert "items in its catalogue" in page and "named by sku" in page
    metadata = {x["name"]: x for x in server.call("/v2/models/ranker").json["inputs"]}
    assert metadata["sku"]["parameters"] == {"side": "candidate", "names": "items"} and "item" not in metadata


def metric(server: Served, name: str, model: str = "ranker") -> float:
    text = server.call("/metrics").body.decode()
    return float(next(x.split()[-1] for x in text.splitlines() if x.startswith(f'{name}{{model="{model}"}}')))


def put(server: Served, ids: list[Any], given: dict[str, torch.Tensor]) -> Any:
    body = {"items": {"sku": ids, **{n: x.tolist() for n, x in given.items()}}}
    return server.call("/v1/models/ranker/items", body, method="PUT")


def test_items_that_are_put_are_seen_whole_by_all_workers(server: Served, hoisted):
    """While they are put, each answer is that of one state of the items; after the answer to a put, of the newest."""
    two = [items(100, seed) for seed in (5, 6)]
    rows = list(range(0, 100, 9))
    asked = [Asked(hoisted, given, rows) for given in two]
    body, stop, wrong, count = asked[0].body([IDS[i] for i in rows]), threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            scores = np.array(server.call("/v1/models/ranker/rank", body).json["scores"]["click"])
            if not any(np.allclose(scores, a.expected["click"], rtol=2e-5, atol=2e-6) for a in asked):
                wrong.append(scores)
            count[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    edition = metric(server, "rankhoist_catalogue_edition")
    for thread in threads:
        thread.start()
    for k in range(1, 9):
        answer = put(server, IDS, two[k % 2])
        assert answer.status == 200 and answer.json["edition"] == edition + k, answer.body
        for _ in range(4):  # whichever worker answers
            scores = server.call("/v1/models/ranker/rank", body).json["scores"]["click"]
            close(scores, asked[k % 2].expected["click"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and count[0] > 20
    assert metric(server, "rankhoist_catalogue_edition") == edition + 8
    assert metric(server, "rankhoist_catalogue_items") >= 100
    assert metric(server, "rankhoist_catalogue_changed_timestamp_seconds") > 1e9


def test_new_items_are_scored_by_a_worker_that_starts_later_too(server: Served, hoisted):
    new = items(3, seed=9)
    assert put(server, ["a much longer name than sku-99", "b", "c"], new).status == 200
    ready = len(server.wait_for("worker ready"))
    server.workers()[0].kill()
    (late,) = server.wait_for("worker ready", count=ready + 1)[ready:]
    asked = Asked(hoisted, new, [0, 1, 2])
    for worker in server.workers():
        if worker.pid != late["worker"]:
            worker.suspend()  # for the other to answer
            body = asked.body(["a much longer name than sku-99", "b", "c"])
            try:
                answer = server.call("/v1/models/ranker/rank", body, patience=15)
            except TimeoutError:  # the suspended worker may have taken one connection already
                answer = server.call("/v1/models/ranker/rank", body)
            finally:
                worker.resume()
    close(answer.json["scores"]["click"], asked.expected["click"])


def test_items_that_are_wrong_are_refused(server: Served):
    def refused(ids: list[Any], given: dict[str, Any], name: str = "ranker") -> tuple[int, str]:
        body = {"items": {"sku": ids, **given}}
        answer = server.call(f"/v1/models/{name}/items", body, method="PUT")
        return answer.status, answer.json["reason"]

    good = {n: x.tolist() for n, x in items(2).items()}
    assert refused(["a", "a"], good) == (400, "malformed")
    assert refused([1, 2], good) == (400, "dtype")
    assert refused(["a"], good) == (400, "ragged")
    assert refused(["a", "b"], {"item": good["item"]}) == (400, "missing_input")
    assert refused(["a", "b"], good | {"item": [0, ITEMS]}) == (400, "out_of_vocabulary")
    assert refused(["a", "b"], good | {"tags": [[TAGS] * 5] * 2}) == (400, "out_of_vocabulary")
    assert refused(["a"] * 1001, {n: x[:1] * 1001 for n, x in good.items()}) == (413, "too_large")
    assert refused(["a", "b" * 257], good) == (413, "too_large")
    assert refused([1, 2], good, "numbers") == (403, "forbidden")
    assert refused([1], good, "nobody") == (404, "not_found")
    assert server.call("/v1/models/ranker/items", {"more": 1}, method="PUT").status == 400
    assert server.call("/v1/models/ranker/items").status == 405


def test_a_new_version_and_new_items_replace_the_old_ones(hoisted, folder: Path, tmp_path: Path):
    """By SIGHUP, without a request that fails: other weights, then other items."""
    hoisted.save(tmp_path / "ranker.rankhoist")
    write(tmp_path / "items.parquet", IDS, items(100))
    rows, ids = [4, 5, 6], ["sku-4", "sku-5", "sku-6"]
    flags = ["--item-id", "sku"]
    with serving.serving(tmp_path / "ranker.rankhoist", "--catalogue", tmp_path / "items.parquet", *flags) as served:
        body, failed, stop = Asked(hoisted, items(100), rows).body(ids), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = served.call("/v1/models/ranker/rank", body)
                failed.extend([answer.body] if answer.status != 200 else [])

        thread = threading.Thread(target=ask)
        thread.start()
        other = hoisted_ranker(2.0)
        other.save(tmp_path / "ranker.rankhoist")
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("model reloaded")
        scores = served.call("/v1/models/ranker/rank", body).json["scores"]["click"]
        close(scores, Asked(other, items(100), rows).expected["click"])
        write(tmp_path / "items.parquet", IDS, items(100, seed=8))
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("model reloaded", count=2)
        scores = served.call("/v1/models/ranker/rank", body).json["scores"]["click"]
        close(scores, Asked(other, items(100, seed=8), rows).expected["click"])
        stop.set()
        thread.join()
        assert not failed
        assert put(served, ["a"], items(1)).json["reason"] == "forbidden"  # without --put-items
        assert "/v1/models/ranker/items" not in served.call("/openapi.json").json["paths"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--catalogue", "{folder}/items.parquet"], "no column 'item_id'"),
        (["--catalogue", "{folder}/nothing.parquet", "--item-id", "sku"], "no Parquet file is there"),
        (["--catalogue", "other={folder}/items.parquet"], "no such model"),
        (["--catalogue", "{folder}/items.parquet", "--item-id", "price"], "no column 'price'"),
        (["--catalogue", "{folder}/store", "--item-id", "price"], "as an input of the model is"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_catalogue_is_said_at_the_start(folder: Path, capfd, arguments: list[str], said: str):
    given = [text.format(folder=folder) for text in arguments]
    assert main(["serve", str(folder / "ranker.rankhoist"), "--port", "0", *given]) != 0
    assert said in capfd.readouterr().err


def test_an_app_of_asgi_has_a_catalogue_too(folder: Path):
    settings = {"catalogues": {"ranker": folder / "items.parquet"}, "item_id": "sku", "catalogue_dtype": "int8"}
    app = Asgi({"ranker": folder / "ranker.rankhoist"}, **settings)
    model = app.service.models["ranker"]
    assert model.items.store.dtype == torch.int8
    assert model.items is not None and len(model.items.store) == len(IDS)
    assert set(model.signature.features) == {"sku", "user", "mood", "price"} and USERS > 0
    app.service.compute.close()
