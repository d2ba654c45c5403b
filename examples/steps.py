"""What the examples do alike: their data, the file that is served, and one request to a real server."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rankhoist_client import Client
from rankhoist_client import Jagged as SentBags
from torch import Tensor, nn

import rankhoist
from rankhoist import Jagged
from rankhoist.lab.data import RankingData, generate_request_log, load_movielens

Features = Mapping[str, Tensor]
Given = Mapping[str, Tensor | Jagged]
CANDIDATES = 100
PATIENCE = 60.0  # seconds until the server must be ready


def arguments(description: str | None) -> argparse.Namespace:
    """--data, --rows, --out, --serve."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", metavar="DIR", help="a MovieLens folder (default: a generated request log)")
    parser.add_argument("--rows", type=int, default=60_000, help="of the generated log (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="runs/examples", help="default: %(default)s")
    parser.add_argument("--serve", action="store_true", help="start the server, rank once, and compare the scores")
    return parser.parse_args()


def load(args: argparse.Namespace) -> RankingData:
    """Rows in time order, with names for the features of the context and of the candidate."""
    return load_movielens(args.data) if args.data else generate_request_log(args.rows, seed=0)


def save(hoisted: rankhoist.HoistedModel, model: nn.Module, out: str, name: str) -> Path:
    """The hoisted model as a file, with its certificate; nothing is saved that is not equal to `model`."""
    certificate = rankhoist.verify(hoisted, model)
    print(certificate)
    if not certificate:
        raise SystemExit("not equal, so not saved")
    path = Path(out) / f"{name}.rankhoist"
    path.parent.mkdir(parents=True, exist_ok=True)
    hoisted.save(path, certificate)
    return path


def show_commands(path: Path, context: Given, candidates: Given) -> None:
    """How to serve the file and ask for a ranking from a shell."""
    body = {"context": _lists(context, 1), "candidates": _lists(candidates, 5), "top_k": 3}
    request = path.with_suffix(".json")
    request.write_text(json.dumps(body), encoding="utf-8")
    print(f"\nserve it:\n  rankhoist serve {path}")
    print(f"ask it:\n  curl -d @{request} http://127.0.0.1:8000/v1/models/{path.stem}/rank")


def _lists(features: Given, rows: int) -> dict[str, Any]:
    few = {name: value[:rows] for name, value in features.items()}
    return {name: x.rows() if isinstance(x, SentBags) else x.tolist() for name, x in _arrays(few).items()}


def rank_once(path: Path, context: Given, candidates: Given, expected: Tensor) -> None:
    """Start the server, rank with the client, and compare with what the trained model says."""
    with server(path) as url, Client(url) as client:
        ranking = client.rank(path.stem, _arrays(context), _arrays(candidates), top_k=len(expected))
    assert ranking.order is not None, "one request has an order"
    error = np.abs(ranking.scores.reshape(-1) - expected.numpy()[ranking.order]).max()
    print(f"\nthe server ranks candidates {ranking.order[:5].tolist()} first; scores differ by {error:.1e} at most")
    if error > 1e-5:
        raise SystemExit("the server's scores are not those of the trained model")


def _arrays(features: Given) -> dict[str, Any]:
    """As the client takes them; of bags the ids."""
    return {
        name: SentBags(x.values[0].numpy(), x.lengths.numpy()) if isinstance(x, Jagged) else x.numpy()
        for name, x in features.items()
    }


@contextmanager
def server(path: Path) -> Iterator[str]:
    """The URL of `rankhoist serve PATH`, once it is ready; afterwards it is told to stop, and answers what it took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rankhoist", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server did not get ready")
            time.sleep(0.1)


def repeated(context: Features, rows: int) -> dict[str, Tensor]:
    """The context once per candidate: how the trained model wants it."""
    return {name: value.expand(rows, *value.shape[1:]) for name, value in context.items()}


def scores(model: nn.Module, *inputs: Any) -> Tensor:
    """`[N]` scores of the trained model itself."""
    with torch.inference_mode():
        result: Tensor = model(*inputs)
    return result.reshape(-1)
