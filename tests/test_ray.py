"""The same job, and the server's app, on a local Ray of this test."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers import assert_equal
from rich.console import Console
from scoring import a_log, hoisted, truth, write
from torch import tensor

from rankhoist.errors import ScoringError
from rankhoist.score import Options, TableScorer, run

without_get = sys.modules.pop("requests")  # Ray Data needs the whole module; see conftest
pytest.importorskip("ray.data", reason="ray is not installed (extra: ray)")
sys.modules["requests"] = without_get

import ray  # noqa: E402

LOG = a_log([3, 0, 40, 1, 7, 0, 120, 9] * 4)
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def model():
    return hoisted()


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("artifact") / "ranker.rankhoist"
    model.save(path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two processors, no dashboard, and patience on a busy machine."""
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "50"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_job_on_ray_scores_the_same(model, artifact: str, tmp_path: Path):
    files = write(LOG.repeated(), tmp_path / "files", 3)
    options = [Options(artifact, str(tmp_path / out), candidates=[files], part_rows=150) for out in ("here", "ray")]
    run(options[0], console=QUIET)
    summary = run(options[1], console=QUIET, ray=True, workers=2)
    assert summary.parts == 5 and summary.scored == LOG.offsets[-1]
    assert pq.read_table(options[1].out).equals(pq.read_table(options[0].out))
    sorted(Path(options[1].out).glob("part-*"))[2].unlink()
    assert run(options[1], console=QUIET).parts_before == 4, "what Ray began, one process ends"
    assert pq.read_table(options[1].out).equals(pq.read_table(options[0].out))


def test_a_wrong_value_is_named_by_an_actor(artifact: str, tmp_path: Path):
    table = LOG.repeated()
    items = table["item"].to_pylist()
    items[60] = 40
    table = table.set_column(table.schema.get_field_index("item"), "item", [items])
    files = write(table, tmp_path / "files")
    with pytest.raises(ScoringError, match=r"row 60, column 'item': 40 is not in the model's vocabulary"):
        run(Options(artifact, str(tmp_path / "scores"), candidates=[files]), console=QUIET, ray=True)


@pytest.mark.slow
def test_a_pipeline_scores_tables(model, artifact: str, tmp_path: Path):
    """One row per request: blocks and batches may end after any row."""
    data = ray.data.read_parquet(write(LOG.nested(), tmp_path / "files", 2, 7))
    scores = data.map_batches(
        TableScorer, fn_constructor_args=(artifact,), fn_constructor_kwargs={"keep": ["ad"]}, batch_format="pyarrow",
        batch_size=5, compute=ray.data.ActorPoolStrategy(size=1),
    )  # fmt: skip
    made = sorted(scores.take_all(), key=lambda row: row["ad"])
    assert [row["ad"] for row in made] == list(range(LOG.offsets[-1]))
    assert [row["request_id"] for row in made] == [f"page {r}" for r in LOG.owner]
    assert_equal(tensor([row["click"] for row in made]), truth(model, LOG)["click"])


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_the_app_is_served_by_ray(model, artifact: str):
    from ray import serve

    from rankhoist.serve.ray_serve import deployment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(deployment({"ranker": artifact}, max_replicas=2, num_cpus=0.5), route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        context = {name: rows[2].tolist() for name, rows in LOG.context.items()}
        candidates = {name: rows[3:43].tolist() for name, rows in LOG.candidate.items()}
        status, answer = post(f"{url}/v1/models/ranker/rank", {"context": context, "candidates": candidates})
        assert status == 200, answer
        assert_equal(tensor(answer["scores"]["click"]), truth(model, LOG)["click"][3:43])
        status, answer = post(f"{url}/v1/models/ranker/rank", {"context": {}, "candidates": candidates})
        assert status == 400 and "user" in json.dumps(answer)
        with urllib.request.urlopen(f"{url}/v2/models/ranker", timeout=30) as about:
            assert json.load(about)["name"] == "ranker"
        assert serve.status().applications["default"].status == "RUNNING"
    finally:
        serve.shutdown()
