"""CPU time that the server adds to a request: what a worker uses per request, without what the model itself uses.

    python benchmarks/serve_overhead.py [--requests 2000] [--candidates 1000]

One connection sends binary requests of the protocol v2 with 220 KB of candidates to a model that computes next to
nothing, and another the same over gRPC, in turn. The goals are at most 1 ms per request of 1000 candidates, and at most
1.2 times as much for the whole request over gRPC.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import psutil
import torch
from rankhoist_client import v2
from torch import nn

import rankhoist
from rankhoist.compiler.targets.machine import machine
from rankhoist.serve.grpc_messages import MESSAGES, SERVICE

PARTS = 10  # of the requests over each protocol
IDS, DENSE = 4, 47  # candidate columns: 4 of 8 bytes and 47 of 4 bytes, 220 KB for 1000 candidates


class Light(nn.Module):
    """Looks up four ids and adds up some columns."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1000, 4) for _ in range(IDS))
        self.top = nn.Linear(4 * IDS + DENSE + 36, 1)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = [table(x[f"id_{i}"]) for i, table in enumerate(self.tables)]
        return self.top(torch.cat([x["user"], *rows, x["item"]], 1)).squeeze(1)


def given(requests: int, rows: int) -> dict[str, torch.Tensor]:
    ids = {f"id_{i}": torch.randint(0, 1000, (rows,)) for i in range(IDS)}
    return {"user": torch.rand(requests, 36), "item": torch.rand(rows, DENSE), **ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--candidates", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    hoisted = rankhoist.hoist(Light().eval(), (given(8, 8),), context=["user"])
    sent = given(1, args.candidates)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "light.rankhoist"
        hoisted.save(path)
        served, over_grpc = _served(path, sent, args.requests)
    alone = _alone(hoisted, sent, args.requests)
    size = sum(t.numel() * t.element_size() for t in sent.values())
    print(json.dumps(machine()))
    print(f"{args.requests} requests of {args.candidates} candidates, {size:,} bytes")
    print(f"worker {served * 1e3:.3f} ms CPU per request, model alone {alone * 1e3:.3f} ms")
    print(f"over gRPC {over_grpc * 1e3:.3f} ms, {over_grpc / served:.2f} times as much")
    print(f"overhead {(served - alone) * 1e3:.3f} ms CPU per request")


def _alone(hoisted: rankhoist.HoistedModel, sent: dict[str, torch.Tensor], count: int) -> float:
    """CPU seconds of one call in this process."""
    context = {"user": sent["user"]}
    candidates = {name: t for name, t in sent.items() if name != "user"}
    rows = len(sent["item"])
    start = time.process_time()
    for _ in range(count):
        hoisted.score(hoisted.prepare(context, rows), candidates)
    return (time.process_time() - start) / count


def _served(path: Path, sent: dict[str, torch.Tensor], count: int) -> tuple[float, float]:
    """CPU seconds of a worker per request: over HTTP and over gRPC, in turn."""
    command = [sys.executable, "-m", "rankhoist", "serve", str(path), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = map(json.loads, process.stderr)  # type: ignore[arg-type]
        started = next(line for line in lines if line["event"] == "serving")
        (worker,) = (p for p in psutil.Process(process.pid).children() if "rankhoist.serve.worker" in p.cmdline())
        arrays = {name: t.numpy() for name, t in sent.items()}
        calls = _over_http(started["address"].removeprefix("http://"), arrays), _over_grpc(started["grpc_port"], arrays)
        seconds = [0.0, 0.0]
        for part in range(PARTS + 1):
            for i, call in enumerate(calls):
                start = sum(worker.cpu_times()[:2])
                for _ in range(count // PARTS):
                    call()
                if part:  # the first warms up
                    seconds[i] += sum(worker.cpu_times()[:2]) - start
        return seconds[0] / count, seconds[1] / count
    finally:
        process.terminate()
        process.wait()


def _over_http(address: str, arrays: dict[str, np.ndarray]) -> Callable[[], None]:
    connection = http.client.HTTPConnection(address)
    body, length = v2.write_request(arrays)

    def call() -> None:
        connection.request("POST", "/v2/models/light/infer", body, {v2.HEADER_LENGTH: str(length)})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    return call


def _over_grpc(port: int, arrays: dict[str, np.ndarray]) -> Callable[[], None]:
    method = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary(f"/{SERVICE}/ModelInfer")
    inputs = [{"name": n, "datatype": v2.datatype_of(x), "shape": x.shape} for n, x in arrays.items()]
    raw = [x.tobytes() for x in arrays.values()]
    request = MESSAGES["ModelInferRequest"](model_name="light", inputs=inputs, raw_input_contents=raw)
    data = request.SerializeToString()
    return lambda: method(data)


if __name__ == "__main__":
    main()
