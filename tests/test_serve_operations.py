"""What an operator does to a running server, and what happens to it: reload, kill, stop, overload."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import serving
import torch
from rankhoist_client import v2
from serving import Served, inputs, rank_body, scores

import rankhoist
from rankhoist import cli
from rankhoist.runtime.mapped import version_of

USERS = 1_000_000  # a table of 32 MB
TABLE = USERS * 8 * 4


class Load:
    """Clients that ask without a pause, and compare what they get with the scores of the version that answered."""

    def __init__(self, server: Served, models: dict[str, rankhoist.HoistedModel], clients: int = 3) -> None:
        self.port, self.stopping = server.port, threading.Event()
        self.given = [inputs(1, 5 + seed, seed) for seed in range(8)]
        self.expected = {v: [scores(m, given)["click"] for given in self.given] for v, m in models.items()}
        self.answered, self.failed, self.wrong = dict.fromkeys(models, 0), [], []
        self.threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def wait(self, more: int) -> None:
        """Until so many more requests were answered."""
        goal = sum(self.answered.values()) + more
        deadline = time.monotonic() + 60
        while sum(self.answered.values()) < goal and time.monotonic() < deadline:
            time.sleep(0.01)

    def _ask(self, seed: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.stopping.is_set():
            seed = (seed + 1) % len(self.given)
            body, length = v2.write_request({name: t.numpy() for name, t in self.given[seed].items()})
            try:
                connection.request("POST", "/v2/models/ranker/infer", body, {v2.HEADER_LENGTH: str(length)})
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(error)
                connection.close()
                time.sleep(0.05)
                continue
            if answer.status != 200:
                self.failed.append(data)
                continue
            message = v2.read_response(data, answer.headers[v2.HEADER_LENGTH])
            version = message.head["model_version"]
            if not np.allclose(message.tensors["click"].array, self.expected[version][seed], rtol=2e-5, atol=2e-6):
                self.wrong.append((version, seed))
            self.answered[version] += 1


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A folder with one version of a model with a large table, and one with the next; their models by version."""
    folder, later = tmp_path_factory.mktemp("artifacts"), tmp_path_factory.mktemp("later")
    models = {}
    for scale, path in ((1.0, folder / "ranker-9.rankhoist"), (-2.0, later / "ranker-10.rankhoist")):
        hoisted = serving.hoisted_ranker(scale, USERS)
        hoisted.save(path)
        models[version_of(path)] = hoisted
    return folder, later / "ranker-10.rankhoist", models


@pytest.fixture(scope="module")
def server(artifacts):
    folder, _, _ = artifacts
    with serving.serving(folder, "--name", "ranker", "--workers", 2, "--admin", "--max-requests", 10_000) as served:
        yield served


def test_workers_share_the_weights(server: Served):
    """Both read the whole table: it is in memory once, and no part of it is a worker's own."""
    rows = TABLE // 4096
    given = {name: t.numpy() for name, t in inputs(rows, rows).items()}
    given |= {"user": np.arange(rows) * 128, "request_offsets": np.arange(rows + 1)}

    def maps() -> list:
        found = [m for w in server.workers() for m in w.memory_maps(grouped=False)]
        return [m for m in found if "weights.safetensors" in m.path]

    for _ in range(200):
        if len(maps()) == 2 and min(m.rss for m in maps()) >= TABLE:
            break
        server.outputs("ranker", given)  # by a new connection, which any worker accepts
    assert len(maps()) == 2 and min(m.rss for m in maps()) >= TABLE
    assert sum(m.pss for m in maps()) < 1.2 * TABLE
    assert all(m.private_dirty == 0 for m in maps())


def test_every_worker_gets_work(server: Served, artifacts):
    """Whoever accepted the connections first: they move while one worker has a queue and the other nothing to do."""
    with Load(server, artifacts[2], clients=4) as load:
        for _ in range(600):
            connections = [w.net_connections() for w in server.workers()]
            used = [any(c.status == "ESTABLISHED" and c.laddr.port == server.port for c in own) for own in connections]
            if all(used):
                break
            time.sleep(0.02)
    assert all(used) and load.failed == [] and load.wrong == []


def test_reload_under_load_fails_no_request(server: Served, artifacts):
    folder, later, models = artifacts
    first, second = models
    with Load(server, models) as load:
        load.wait(50)
        os.replace(later, folder / later.name)
        answer = server.call("/v2/repository/models/ranker/load", b"{}")
        assert answer.json == {"name": "ranker", "version": second}
        load.wait(50)
    assert load.failed == [] and load.wrong == []
    assert load.answered[first] >= 50 and load.answered[second] >= 50
    assert server.call("/v2/models/ranker").json["versions"] == [second]
    versions = re.findall(r'rankhoist_model_version{model="ranker",version="(.*?)"}', metrics_of(server))
    assert versions == [second]  # not all that ever were


def metrics_of(server: Served) -> str:
    return server.call("/metrics").body.decode()


def test_an_artifact_that_cannot_be_loaded_leaves_the_model(server: Served, artifacts):
    folder, _, models = artifacts
    broken = folder / "ranker-11.rankhoist"
    broken.write_bytes(b"no artifact")
    before = len(server.lines)
    os.kill(server.process.pid, signal.SIGHUP)
    while not [x for x in server.lines[before:] if x["event"] == "model not loaded"]:
        time.sleep(0.05)
    broken.unlink()
    with Load(server, models) as load:
        load.wait(20)
    assert load.failed == [] and load.wrong == []


def test_a_killed_worker_comes_back(server: Served, artifacts):
    """Only what it was working on fails: at most one request of each client."""
    victim = server.workers()[0]
    ready = len(server.wait_for("worker ready"))
    with Load(server, artifacts[2]) as load:
        load.wait(50)
        victim.send_signal(signal.SIGKILL)
        server.wait_for("worker ready", ready + 1)
        load.wait(50)
    assert len(load.failed) <= len(load.threads) and load.wrong == []
    workers = server.workers()
    assert len(workers) == 2 and victim.pid not in [w.pid for w in workers]
    assert "rankhoist_workers_ready 2.0" in metrics_of(server)


def test_sigterm_answers_every_accepted_request(server: Served, artifacts):
    """What clients see after the last answer is a closed port."""
    workers = server.workers()
    with Load(server, artifacts[2]) as load:
        load.wait(50)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert load.wrong == []
    assert [error for error in load.failed if not isinstance(error, ConnectionRefusedError)] == []
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)


# -- overload, readiness, settings


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """One request at a time, settings from a file and the environment."""
    folder = tmp_path_factory.mktemp("narrow")
    serving.hoisted_ranker().save(folder / "ranker.rankhoist")
    (folder / "serve.toml").write_text(f"max_queue = 7\n[models]\nranker = '{folder}/ranker.rankhoist'\n")
    with serving.serving("--config", folder / "serve.toml", RANKHOIST_MAX_QUEUE="1") as served:
        yield served


def test_a_full_queue_is_429(narrow: Served):
    """A request that is still being read takes the only place."""
    with socket.create_connection(("127.0.0.1", narrow.port)) as slow:
        slow.sendall(b"POST /v1/models/ranker/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        statuses = set()
        for _ in range(100):
            answer = narrow.call("/v1/models/ranker/rank", rank_body(inputs(1, 3)))
            statuses.add(answer.status)
            if answer.status == 429:
                break
        assert answer.json["reason"] == "queue_full" and answer.headers["retry-after"] == "1"
        slow.sendall(b"}" + b" " * 8)
        assert slow.recv(100).startswith(b"HTTP/1.1 400")
    assert narrow.call("/v1/models/ranker/rank", rank_body(inputs(1, 3))).status == 200


def test_a_body_that_ends_early_frees_its_place(narrow: Served):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", narrow.port)) as broken:
            broken.sendall(b"POST /v1/models/ranker/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    for _ in range(100):
        if narrow.call("/v1/models/ranker/rank", rank_body(inputs(1, 3))).status == 200:
            return
        time.sleep(0.05)
    pytest.fail("the place is still taken")


def test_a_settings_file_is_read_once(narrow: Served):
    """A worker that is started again does not read what is there by then."""
    command = psutil.Process(narrow.process.pid).cmdline()
    Path(command[command.index("--config") + 1]).write_text("no settings")
    os.kill(narrow.workers()[0].pid, signal.SIGKILL)
    narrow.wait_for("worker ready", 2)
    assert narrow.call("/v1/models/ranker/rank", rank_body(inputs(1, 3))).status == 200


def test_a_body_that_does_not_come_loses_its_place(tmp_path):
    serving.hoisted_ranker().save(tmp_path / "ranker.rankhoist")
    with serving.serving(tmp_path / "ranker.rankhoist", "--max-queue", 1, "--body-seconds", 0.5) as served:
        for headers in (b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            with socket.create_connection(("127.0.0.1", served.port), 30) as slow:
                slow.sendall(b"POST /v1/models/ranker/rank HTTP/1.1\r\nHost: x\r\n" + headers)
                assert slow.recv(100).startswith(b"HTTP/1.1 408")
                assert served.call("/v1/models/ranker/rank", rank_body(inputs(1, 3))).status == 200
                while slow.recv(1000):
                    pass  # until it is closed: the rest of the body would be taken for a request


def test_it_is_not_ready_when_it_stops(narrow: Served):
    connection = http.client.HTTPConnection("127.0.0.1", narrow.port, timeout=30)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().read() == b'{"ready":true}'
    other = http.client.HTTPConnection("127.0.0.1", narrow.port, timeout=30)
    other.request("GET", "/v2/models/ranker/ready")
    assert other.getresponse().read() == b'{"name":"ranker","ready":true}'
    os.kill(narrow.process.pid, signal.SIGTERM)
    narrow.wait_for("draining")
    for open_one, path in ((connection, "/v2/health/ready"), (other, "/v2/models/ranker/ready")):
        open_one.request("GET", path)
        answer = open_one.getresponse()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert narrow.process.wait(60) == 0


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """What is off by default: requests wait for others, but none of them for long, unless it says so."""
    path = tmp_path_factory.mktemp("patient") / "ranker.rankhoist"
    serving.hoisted_ranker().save(path)
    options = ["--batch-delay-ms", 1000, "--batch-up-to", 100, "--timeout-ms", 0.001, "--allow-nan", "--access-log"]
    with serving.serving(path, *options) as served:
        yield served


LONG = {"x-request-timeout-ms": "60000"}


def test_requests_wait_for_others_and_the_header_wins_over_the_default_timeout(patient: Served):
    given = inputs(1, 3)
    answer = patient.call("/v1/models/ranker/rank", rank_body(given))
    assert (answer.status, answer.json["reason"]) == (503, "deadline")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: patient.call("/v1/models/ranker/rank", rank_body(given), LONG), range(4)))
    expected = scores(serving.hoisted_ranker(), given)["click"]
    for answer in answers:
        assert answer.json["scores"]["click"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    calls, requests = (
        float(re.search(rf'rankhoist_batch_requests_{x}{{model="ranker"}} (\S+)', metrics_of(patient))[1])
        for x in ("count", "sum")
    )
    assert calls < requests == 4


def test_nan_is_taken_where_it_is_allowed(patient: Served):
    given = inputs(1, 101) | {"mood": torch.tensor([[float("nan"), 0.0, 0.0]])}  # too many to wait
    body, length = v2.write_request({name: t.numpy() for name, t in given.items()})
    answer = patient.call("/v2/models/ranker/infer", body, {v2.HEADER_LENGTH: str(length), **LONG})
    found = {key.lower(): value for key, value in answer.headers.items()}
    assert np.isnan(v2.read_response(answer.body, found[v2.HEADER_LENGTH]).tensors["click"].array).all()


def test_every_request_is_logged(patient: Served):
    patient.call("/v2/health/live")
    (line,) = patient.wait_for("request", path="/v2/health/live")
    assert line["status"] == 200 and line["bytes"] == len(b'{"live":true}') and line["seconds"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.rankhoist"], "a.rankhoist cannot be read: No such file"),
        ([], "there is no model to serve"),
        (["a.rankhoist", "--port", "x"], "port: Input should be a valid integer"),
        (["a.rankhoist", "--workers", "0"], "workers: Input should be greater than or equal to 1, got '0'"),
        (["a.rankhoist", "b.rankhoist", "--name", "a"], "2 artifacts and 1 names"),
        (["x/a.rankhoist", "y/a.rankhoist"], "two artifacts have one name"),
        (["a.rankhoist", "--name", "../a"], "'../a' is no name for a model"),
        (["a.rankhoist", "--config", "no.toml"], "there is no settings file no.toml"),
        (["--config", "bad.toml"], "settings are models, catalogues"),
        ([".", "--name", "a"], "there is no *.rankhoist in the folder ."),
    ],
)
def test_settings_that_cannot_be_used(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKHOIST_CONFIG", raising=False)
    (tmp_path / "bad.toml").write_text("prot = 8000\n")
    threads = torch.get_num_threads()
    try:
        assert cli.main(["serve", *arguments]) == cli.UNUSABLE
    finally:
        torch.set_num_threads(threads)
        os.environ.pop("RANKHOIST_CONFIG", None)
    assert re.escape(message) in re.escape(capsys.readouterr().err)


def test_a_server_without_a_worker_ends(tmp_path):
    serving.hoisted_ranker().save(tmp_path / "ranker.rankhoist")
    command = [sys.executable, "-m", "rankhoist", "serve", str(tmp_path / "ranker.rankhoist"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(rankhoist.__file__).parents[1])}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    served = Served(process, 0)
    while not (workers := served.workers()):
        time.sleep(0.02)
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.UNUSABLE
    assert b"rankhoist: a worker ended with code -9 while it started" in errors


def test_a_port_that_is_taken(tmp_path, capsys):
    serving.hoisted_ranker().save(tmp_path / "ranker.rankhoist")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", str(tmp_path / "ranker.rankhoist"), "--port", port]) == cli.UNUSABLE
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
