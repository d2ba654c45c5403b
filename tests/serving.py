"""What the tests of the server share: small models saved as artifacts, and a real server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rankhoist_client
import torch
from rankhoist_client import v2
from torch import nn

import rankhoist
from rankhoist.serve.inputs import Batch

USERS, ITEMS, TAGS = 50, 200, 30


class Ranker(nn.Module):
    """Ids, a list of ids, dense columns; two outputs."""

    def __init__(self, scale: float = 1.0, users: int = USERS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.tag = nn.Embedding(users, 8), nn.Embedding(ITEMS, 8), nn.Embedding(TAGS, 4)
        self.hidden, self.click, self.buy = nn.Linear(8 + 3 + 8 + 4 + 2, 32), nn.Linear(32, 1), nn.Linear(32, 1)
        self.scale = scale

    def forward(self, user, mood, item, tags, price):
        parts = [self.user(user), mood, self.item(item), self.tag(tags).mean(1), price]
        hidden = torch.relu(self.hidden(torch.cat(parts, 1)))
        return {"click": self.scale * self.click(hidden).squeeze(1), "buy": self.buy(hidden)}


def inputs(requests: int, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Context features with `requests` rows, candidate features with `rows`."""
    g = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(0, USERS, (requests,), generator=g),
        "mood": torch.randn(requests, 3, generator=g),
        "item": torch.randint(0, ITEMS, (rows,), generator=g),
        "tags": torch.randint(0, TAGS, (rows, 5), generator=g),
        "price": torch.randn(rows, 2, generator=g),
    }


CONTEXT = ("user", "mood")


def hoisted_ranker(scale: float = 1.0, users: int = USERS) -> rankhoist.HoistedModel:
    return rankhoist.hoist(Ranker(scale, users).eval(), inputs(8, 8), context=list(CONTEXT))


class Packed(nn.Module):
    """One float matrix; columns 0 and 2 are ids, column 0 is context."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.top = nn.Embedding(20, 4), nn.Linear(9, 1)

    def forward(self, X):
        return self.top(torch.cat([self.table(X[:, 0].long()), self.table(X[:, 2].long()), X[:, 1:2]], 1))


def hoisted_packed() -> rankhoist.HoistedModel:
    example = torch.rand(8, 3) * torch.tensor([19.0, 1.0, 19.0])
    return rankhoist.hoist(Packed().eval(), (example,), context={"X": [0]})


def scores(hoisted: rankhoist.HoistedModel, given: dict[str, torch.Tensor], offsets=None) -> dict[str, np.ndarray]:
    """In this process: what the server must answer."""
    context = {n: t for n, t in given.items() if n in CONTEXT}
    candidates = {n: t for n, t in given.items() if n not in CONTEXT}
    made = hoisted.score(hoisted.prepare(context, len(given["item"])), candidates, request_offsets=offsets)
    return {name: t.numpy() for name, t in made.items()}


def made_up(hoisted: rankhoist.HoistedModel, rows: int) -> Batch:
    """A request as the server has checked it, with the example's values."""
    return Batch(hoisted.made_up("context", 1), hoisted.made_up("candidate", rows), 1, rows)


def rank_body(given: dict[str, torch.Tensor], **more: Any) -> dict[str, Any]:
    """A request of the JSON protocol."""
    context = {n: t[0].tolist() for n, t in given.items() if n in CONTEXT}
    candidates = {n: t.tolist() for n, t in given.items() if n not in CONTEXT}
    return {"context": context, "candidates": candidates, **more}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    lines: list[dict[str, Any]] = field(default_factory=list)

    def call(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None,
        patience: float = 60,
    ) -> Answer:  # fmt: skip
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def infer(self, name: str, given: dict[str, np.ndarray], **parameters: Any) -> Answer:
        """A binary request of the protocol v2."""
        body, length = v2.write_request(given, parameters)
        return self.call(f"/v2/models/{name}/infer", body, {v2.HEADER_LENGTH: str(length)})

    def outputs(self, name: str, given: dict[str, np.ndarray], **parameters: Any) -> dict[str, np.ndarray]:
        answer = self.infer(name, given, **parameters)
        assert answer.status == 200, answer.body
        headers = {key.lower(): value for key, value in answer.headers.items()}
        tensors = v2.read_response(answer.body, headers[v2.HEADER_LENGTH]).tensors
        return {name: tensor.array for name, tensor in tensors.items()}

    def workers(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children() if "rankhoist.serve.worker" in p.cmdline()]

    def wait_for(self, event: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Until a log line says so, so many times."""
        for _ in range(600):
            found = [x for x in list(self.lines) if x["event"] == event and fields.items() <= x.items()]
            if len(found) >= count:
                return found
            assert self.process.poll() is None, self.lines
            time.sleep(0.1)
        raise AssertionError(f"no {event!r} in {self.lines}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(*arguments: Any, stdout: Any = None, **environment: str) -> Iterator[Served]:
    """`rankhoist serve` on a free port, ready."""
    command = [sys.executable, "-m", "rankhoist", "serve", *map(str, arguments), "--port", "0"]
    source = os.pathsep.join(str(Path(package.__file__).parents[1]) for package in (rankhoist, rankhoist_client))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, **environment}
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=environment)
    served = Served(process, 0)
    reader = threading.Thread(target=_read, args=(process, served.lines), daemon=True)
    reader.start()
    try:
        (line,) = served.wait_for("serving")
        served.port = int(re.search(r":(\d+)$", line["address"])[1])
        yield served
    finally:
        served.stop()
        reader.join()


def _read(process: subprocess.Popen[bytes], lines: list[dict[str, Any]]) -> None:
    for line in process.stderr:
        try:
            lines.append(json.loads(line))
        except ValueError:
            lines.append({"event": line.decode(errors="replace")})
