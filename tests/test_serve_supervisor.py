"""A supervisor in this process, with workers of its own: versions that cannot be served, workers that cannot be run."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import rankhoist_client
import serving
import torch
from serving import Served, inputs, rank_body, scores

import rankhoist
from rankhoist.errors import RankhoistError, ServeError
from rankhoist.runtime.mapped import version_of
from rankhoist.serve import loading
from rankhoist.serve.config import Settings
from rankhoist.serve.control import Unpacked
from rankhoist.serve.repository import Repository
from rankhoist.serve.supervisor import Supervisor


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """One model in a folder of versions, two workers."""
    packages = (str(Path(package.__file__).parents[1]) for package in (rankhoist, rankhoist_client))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(packages))
    threads = torch.get_num_threads()
    (tmp_path / "versions").mkdir()
    serving.hoisted_ranker().save(tmp_path / "versions" / "1.rankhoist")
    yield Settings(models={"ranker": tmp_path / "versions"}, port=0, workers=2, batch_up_to=0)
    torch.set_num_threads(threads)


async def until(condition: Callable[[], bool]) -> None:
    """Wait, for a minute at most."""
    for _ in range(1200):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not come")


def run(supervisor: Supervisor, use: Callable[[Served], Awaitable[None]]) -> None:
    """Use a server while it runs with all its workers."""

    async def all_of_it() -> None:
        running = asyncio.get_running_loop().create_task(supervisor.run())
        try:
            await until(lambda: running.done() or sum(w.ready for w in supervisor.workers.values()) == 2)
            await use(Served(None, int(supervisor.address.rpartition(":")[2])))
        finally:
            supervisor.stopping.set()
            await asyncio.wait_for(running, 60)

    asyncio.run(all_of_it())


class Spoiling(Repository):
    """What it unpacks as the second version can be tried, and yet no worker can load it."""

    async def _unpack(self, name: str, place: Path) -> Unpacked:
        made = await super()._unpack(name, place)
        if self._unpacked == 2:
            (made.path / "model.json").write_text("{}")
        return made


def test_a_version_that_fails_in_the_workers_is_taken_back(settings, tmp_path):
    supervisor = Supervisor(settings, tmp_path)
    supervisor.repository = Spoiling(settings, tmp_path, supervisor.workers)

    async def use(server: Served) -> None:
        workers, first = list(supervisor.workers.values()), supervisor.repository.served["ranker"].version
        serving.hoisted_ranker(-2.0).save(tmp_path / "versions" / "2.rankhoist")
        with pytest.raises(ServeError, match="of ranker cannot be served"):
            await supervisor.repository.load("ranker")
        assert list(supervisor.workers.values()) == workers  # none was started again
        assert [path.name for path in tmp_path.glob("model-*")] == ["model-1"]
        assert (await asyncio.to_thread(server.call, "/v2/models/ranker")).json["versions"] == [first]
        third = await supervisor.repository.load("ranker")
        assert third == version_of(tmp_path / "versions" / "2.rankhoist")
        given = inputs(1, 5)
        answer = await asyncio.to_thread(server.call, "/v1/models/ranker/rank", rank_body(given))
        expected = scores(serving.hoisted_ranker(-2.0), given)["click"]
        assert answer.json["scores"]["click"] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)

    run(supervisor, use)


def test_any_failure_of_a_reload_is_answered_and_leaves_nothing(settings, tmp_path, monkeypatch):
    def full(artifact: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(settings, tmp_path)
    supervisor.repository.served["ranker"] = Unpacked("ranker", "0", "nowhere", 0)
    monkeypatch.setattr(loading, "unpack", full)
    with pytest.raises(RankhoistError, match=r"ranker cannot be served: OSError: .*No space left"):
        asyncio.run(supervisor.repository.load("ranker"))
    assert list(tmp_path.glob("model-*")) == [] and supervisor.repository.served["ranker"].version == "0"


def test_a_worker_that_cannot_be_started_is_tried_again(settings, tmp_path, monkeypatch):
    supervisor = Supervisor(settings, tmp_path)

    async def use(server: Served) -> None:
        start, failed = asyncio.create_subprocess_exec, []

        async def refused(*arguments, **keywords):
            if not failed:
                failed.append(True)
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
            return await start(*arguments, **keywords)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
        victim = supervisor.workers[0].process.pid
        os.kill(victim, signal.SIGKILL)
        await until(lambda: 0 in supervisor.workers and supervisor.workers[0].process.pid != victim and bool(failed))
        await until(lambda: supervisor.workers[0].ready)

    run(supervisor, use)


def test_sigterm_while_models_are_loaded_leaves_nothing(settings, tmp_path):
    command = [
        sys.executable,
        "-m",
        "rankhoist",
        "serve",
        str(tmp_path / "versions"),
        "--name",
        "ranker",
        "--port",
        "0",
    ]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stderr=subprocess.PIPE)
    while not list((tmp_path / "tmp").glob("rankhoist-*/metrics")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"worker ready" not in errors and list((tmp_path / "tmp").glob("rankhoist-*")) == []
