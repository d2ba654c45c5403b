"""What measurements of the server share: the demo's DCNv2 as artifacts, a server of them, the check of its scores."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from prometheus_client.parser import text_string_to_metric_families
from rankhoist_client import Client

from rankhoist.capture import capture
from rankhoist.compiler.targets.machine import machine
from rankhoist.errors import ServeError
from rankhoist.hoist import hoist_program
from rankhoist.lab.data import RankingData, generate_request_log
from rankhoist.lab.train import build_model

START, STOP = 120.0, 60.0  # seconds in which a server must be ready, and must have ended
QUIET = ("--log-level", "warning", "--log-format", "text")
TOLERANCE = 1e-4  # relative to the largest score


@dataclass(frozen=True)
class Subject:
    """The demo's DCNv2 and its data. Untrained: how long it takes does not depend on the weights' values."""

    model: torch.nn.Module
    data: RankingData

    @classmethod
    def make(cls) -> Subject:
        """The same one in every run."""
        data = generate_request_log(seed=0)
        return cls(build_model("dcnv2", data).eval(), data)

    def save(self, folder: Path, levels: Sequence[str]) -> dict[str, Path]:
        """The model hoisted at each level, as `LEVEL.rankhoist`."""
        program = capture(self.model, (self.data.example(64),), list(self.data.context))
        paths = {level: folder / f"{level}.rankhoist" for level in levels}
        for level, path in paths.items():
            hoist_program(program, level=level).save(path)
        return paths

    def write_requests(self, path: Path, candidates: int, count: int = 16) -> None:
        """Requests of real users, as JSON that a load test reads."""
        drawn = (self.data.request(self.data.draw_row(seed), candidates) for seed in range(count))
        sides = [{"context": request.context, "candidates": request.candidates} for request in drawn]
        plain = [{side: {n: x.tolist() for n, x in given.items()} for side, given in one.items()} for one in sides]
        path.write_text(json.dumps(plain))

    def check(self, url: str, names: Sequence[str], candidates: int, requests: int = 3) -> None:
        """Scores from the server are those of the model as trained, for real users; raises AssertionError if not."""
        with Client(url) as client, torch.inference_mode():
            for seed in range(requests):
                request = self.data.request(self.data.draw_row(seed), candidates)
                expected = self.model(request.rows())
                for name in names:
                    scores = client.rank(name, request.context, request.candidates).scores
                    error = float((torch.from_numpy(scores.copy()) - expected).abs().max() / expected.abs().max())
                    assert error < TOLERANCE, f"{name}: scores differ by {error:.0e}, so nothing is timed"


@dataclass(frozen=True)
class Running:
    """Where a server listens, and the process above its workers."""

    url: str
    pid: int


@contextmanager
def server(models: Mapping[str, Path], workers: int, *options: str) -> Iterator[Running]:
    """`rankhoist serve` with artifacts by name, on a free port, once all of its workers are ready.

    Raises:
        ServeError: it ended, or took too long.
    """
    port = _free_port()
    arguments = [*map(str, models.values()), "--name", *models, "--port", str(port), "--workers", str(workers)]
    command = [sys.executable, "-m", "rankhoist", "serve", *arguments, *QUIET, *options]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, workers, process)
            yield Running(url, process.pid)
        finally:
            process.terminate()
            process.wait(STOP)


def metrics(client: Client) -> dict[str, float]:
    """What a server has counted, by name, added up over the labels."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(client.metrics()):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _wait(url: str, workers: int, process: subprocess.Popen[bytes]) -> None:
    """Until all workers answer; before the first does, connections wait or are refused."""
    end = time.monotonic() + START
    with Client(url, timeout=START) as client:
        while not (client.ready() and metrics(client)["rankhoist_workers_ready"] == workers):
            if process.poll() is not None or time.monotonic() > end:
                raise ServeError(f"the server is not ready (exit code {process.poll()}); its log says why")
            time.sleep(0.1)


def about() -> dict[str, Any]:
    """Machine and versions, the server's included."""
    return {**machine(), "granian": version("granian"), "orjson": version("orjson")}


def write_result(record: dict[str, Any], text: str, stem: Path) -> None:
    """A record as JSON, and its page, which is printed, too."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
