"""The repository of models over both protocols: listed, loaded and unloaded by the official clients, under load."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import serving
import tritonclient.grpc
import tritonclient.http
from serving import Served, inputs, rank_body
from tritonclient.utils import InferenceServerException

from rankhoist import cli
from rankhoist.serve.config import Settings
from rankhoist.serve.loading import places

RANK = "/v1/models/ranker/rank"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, a folder of versions, and what is no model."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "ranker").mkdir()
    serving.hoisted_ranker().save(folder / "ranker" / "1.rankhoist")
    serving.hoisted_packed().save(folder / "packed.rankhoist")
    shutil.copy(folder / "packed.rankhoist", folder / "third.rankhoist")
    (folder / "broken.rankhoist").write_bytes(b"no model")
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("what is what")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    arguments = [folder / "ranker", "--repository", folder, "--max-models", 2, "--admin"]
    with serving.serving(*arguments, "--grpc-port", 0, "--workers", 2) as served:
        yield served


@pytest.fixture(scope="module", params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Served) -> Iterator[Any]:
    """The official one, over both."""
    if request.param == "http":
        made = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}")
    else:
        port = server.wait_for("serving")[0]["grpc_port"]
        made = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
    with made:
        yield made


def listed(client: Any) -> dict[str, str]:
    """Name -> state."""
    index = client.get_model_repository_index()
    if isinstance(index, list):
        return {model["name"]: model["state"] for model in index}
    return {model.name: model.state for model in index.models}


OFF = {"packed": "UNAVAILABLE", "third": "UNAVAILABLE", "broken": "UNAVAILABLE"}


def test_models_are_loaded_and_unloaded_by_name(client: Any, server: Served):
    assert listed(client) == {"ranker": "READY"} | OFF
    assert [m["name"] for m in server.call("/v2/repository/index", {"ready": True}).json] == ["ranker"]
    client.load_model("packed")
    assert listed(client) == {"ranker": "READY"} | OFF | {"packed": "READY"}
    assert client.is_model_ready("packed") and server.call("/v2/models/packed").status == 200
    with pytest.raises(InferenceServerException, match=r"as many as may be \(max_models\)"):
        client.load_model("third")
    client.unload_model("packed")
    client.unload_model("packed")  # as it should be already
    assert listed(client) == {"ranker": "READY"} | OFF
    assert server.call("/v2/models/packed").status == 404
    text = server.call("/metrics").body.decode()
    assert 'rankhoist_model_version{model="ranker"' in text and 'rankhoist_model_version{model="packed"' not in text


def test_what_cannot_be_loaded_is_refused(client: Any, server: Served):
    for name in ("nobody", "notes.txt", ".hidden", "%2e%2e"):
        with pytest.raises(InferenceServerException, match="there is no model"):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="broken"):
        client.load_model("broken")
    with pytest.raises(InferenceServerException, match="without parameters"):
        client.load_model("packed", config="{}")
    assert listed(client) == {"ranker": "READY"} | OFF and server.call("/readyz").status == 200


def test_requests_are_answered_while_models_come_and_go(server: Served):
    """Those for another model all; those for the model that goes with scores, or with 404 once it is gone."""
    body, stopping = rank_body(inputs(1, 50)), threading.Event()
    found: dict[str, list[int]] = {"ranker": [], "packed": []}
    packed = {"context": {"X.context": [3.0]}, "candidates": {"X.candidate": [[0.5, 3.0]] * 50}}

    def ask(name: str, sent: Any) -> None:
        while not stopping.is_set():
            found[name].append(server.call(f"/v1/models/{name}/rank", sent).status)

    threads = [threading.Thread(target=ask, args=pair) for pair in (("ranker", body), ("packed", packed))]
    for thread in threads:
        thread.start()
    for change in ("load", "unload") * 3:
        answer = server.call(f"/v2/repository/models/packed/{change}", b"")
        assert answer.status == 200, answer.body
    stopping.set()
    for thread in threads:
        thread.join()
    assert set(found["ranker"]) == {200} and set(found["packed"]) == {200, 404}


def test_the_last_model_can_go_and_come_back_and_a_new_worker_knows(server: Served, folder: Path):
    before = server.call(RANK, rank_body(inputs(1, 5))).json
    assert (
        server.call("/v2/repository/models/ranker/unload", {"parameters": {"unload_dependents": False}}).status == 200
    )
    assert server.call(RANK, rank_body(inputs(1, 5))).status == 404 and server.call("/readyz").status == 503
    victim = server.workers()[0].pid
    psutil.Process(victim).kill()
    server.wait_for("worker ended", worker=victim)
    server.wait_for("worker ready", 3)
    assert server.call(RANK, rank_body(inputs(1, 5))).status == 404
    assert server.call("/v2/repository/models/ranker/load", b"").json == {
        "name": "ranker",
        "version": before["version"],
    }
    for _ in range(8):
        np.testing.assert_array_equal(server.call(RANK, rank_body(inputs(1, 5))).json["order"], before["order"])


def test_without_names_all_of_a_repository_is_served(folder: Path, tmp_path: Path, capsys):
    shutil.copy(folder / "packed.rankhoist", tmp_path / "one.rankhoist")
    settings = Settings(repository=tmp_path, models={"own": folder / "ranker"})
    assert places(settings) == {"one": tmp_path / "one.rankhoist", "own": folder / "ranker"}
    shutil.copy(folder / "packed.rankhoist", tmp_path / "two.rankhoist")
    assert cli.main(["serve", "--repository", str(tmp_path), "--max-models", "1"]) == 2
    assert "there are 2 models, and max_models is 1" in capsys.readouterr().err
    assert cli.main(["serve", "--repository", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
