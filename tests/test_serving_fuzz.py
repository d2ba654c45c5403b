"""Broken requests by the thousand against a running server, right ones in between.

An ordinary run sends a fixed selection; `make fuzz-serve` sends 100 000 new broken ones and prints what came of them.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Iterator

import grpc
import psutil
import pytest
import torch
from rich.progress import track
from serving import Served, serving
from serving_fuzz import LIMIT, Sample, Wire, calls, cases, verdict
from torch import Tensor, nn

import rankhoist
from rankhoist.serve.grpc_messages import SERVICE

COUNT = int(os.environ.get("RANKHOIST_FUZZ_REQUESTS", "0"))
ORDINARY = 1000
CONNECTIONS = 4
USERS, ITEMS, WIDTH = 40, 300, 8
GROWTH = 24 * 2**20  # bytes that a server may grow by after the first tenth of a run: the allocator's own ways


class Ranker(nn.Module):
    """Every kind of feature: one id, several ids, numbers, a truth."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.top = nn.Sequential(nn.Linear(3 * WIDTH + 3 + 2 + 1, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, page: Tensor, history: Tensor, item: Tensor, price: Tensor, new: Tensor) -> Tensor:
        parts = [self.user(user), page, self.item(history).mean(1), self.item(item), price, new.float().unsqueeze(1)]
        return self.top(torch.cat(parts, 1)).squeeze(1)


def sides(requests: int, rows: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    context = {
        "user": torch.randint(0, USERS, (requests,), generator=draw), "page": torch.randn(requests, 3, generator=draw),
        "history": torch.randint(0, ITEMS, (requests, 5), generator=draw),
    }  # fmt: skip
    candidates = {
        "item": torch.randint(0, ITEMS, (rows,), generator=draw), "price": torch.randn(rows, 2, generator=draw),
        "new": torch.rand(rows, generator=draw) < 0.5,
    }  # fmt: skip
    return context, candidates


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    context, candidates = sides(6, 6, 0)
    return rankhoist.hoist(Ranker().eval(), tuple({**context, **candidates}.values()), context=list(context))


@pytest.fixture(scope="module")
def samples(hoisted: rankhoist.HoistedModel) -> list[Sample]:
    """One request and several, few candidates and none of them; with the scores of this process."""
    made = []
    for seed, (requests, rows) in enumerate([(1, 1), (1, 7), (1, 60), (2, 9), (3, 20)]):
        context, candidates = sides(requests, rows, seed)
        offsets = (
            None if requests == 1 else (0, *sorted(random.Random(seed).choices(range(rows), k=requests - 1)), rows)
        )
        scores = hoisted(**context, **candidates, request_offsets=offsets)
        named = ({name: x.numpy() for name, x in side.items()} for side in (context, candidates))
        made.append(Sample(*named, scores.numpy(), offsets))
    return made


@pytest.fixture(scope="module")
def served(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("fuzz") / "ranker.rankhoist"
    hoisted.save(path)
    with serving(path, "--workers", "2", "--grpc-port", "0", "--max-body-bytes", LIMIT) as served:
        served.wait_for("worker ready", 2)
        yield served


def test_malformed_requests(samples: list[Sample], served: Served, capsys: pytest.CaptureFixture[str]):
    pid = served.process.pid
    malformed = COUNT or ORDINARY
    count = malformed + malformed // 2  # right ones in between
    seed = random.SystemRandom().randrange(2**32) if COUNT else 0
    wires = [Wire("127.0.0.1", served.port) for _ in range(CONNECTIONS)]
    kinds, statuses, bad = Counter[str](), Counter[str](), []
    before, alive = 0, workers(pid)
    with capsys.disabled():
        shown = track(cases("ranker", samples, seed, malformed), f"seed {seed}", count) if COUNT else None
        for i, case in enumerate(shown or cases("ranker", samples, seed, malformed)):
            reply = wires[i % CONNECTIONS].exchange(case.data, case.ends)
            statuses["closed" if reply is None else str(reply.status)] += 1
            kinds[case.kind] += 1
            if found := verdict(case, reply):
                bad.append(f"request {i} of seed {seed}, {case.kind}: {found}\n  {case.data[:300]!r}")
            if i == count // 10:
                before = memory(pid)
        grown = memory(pid) - before
        if COUNT:
            print(f"\n{count} requests, {malformed} of them malformed, of seed {seed}: {dict(statuses)}")
            print(f"memory {grown / 2**20:+.1f} MiB; {len(bad)} bad")
            print("\n".join(f"{n:7d} {kind}" for kind, n in sorted(kinds.items())))
    for wire in wires:
        wire.close()
    assert not bad, f"{len(bad)} bad answers:\n" + "\n".join(bad[:20])
    assert workers(pid) == alive, "a worker ended"
    assert statuses["200"] >= count // 3 and statuses["400"] > count // 5
    assert grown < GROWTH


def test_malformed_calls_of_grpc(samples: list[Sample], served: Served, capsys: pytest.CaptureFixture[str]):
    pid = served.process.pid
    malformed = COUNT or ORDINARY
    count = malformed + malformed // 2
    seed = random.SystemRandom().randrange(2**32) if COUNT else 1
    port = served.wait_for("serving")[0]["grpc_port"]
    codes, bad = Counter[str](), []
    before, alive = 0, workers(pid)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, capsys.disabled():
        for i, call in enumerate(calls("ranker", samples, seed, malformed)):
            code, answer = call.send(channel)
            codes[code] += 1
            if found := call.verdict(code, answer):
                bad.append(f"call {i} of seed {seed}, {call.kind}: {found}\n  {call.messages[:1]!r:.300}")
            if i == count // 10:
                before = memory(pid)
        grown = memory(pid) - before
        if COUNT:
            print(f"\n{count} calls, {malformed} of them malformed, of seed {seed}: {dict(codes)}")
            print(f"memory {grown / 2**20:+.1f} MiB; {len(bad)} bad")
    assert not bad, f"{len(bad)} bad answers:\n" + "\n".join(bad[:20])
    assert workers(pid) == alive, "a worker ended"
    assert codes["OK"] >= count // 3 and codes["INVALID_ARGUMENT"] > count // 5
    assert grown < GROWTH


def test_bytes_that_are_no_http2(served: Served):
    port = served.wait_for("serving")[0]["grpc_port"]
    draw, alive = random.Random(0), workers(served.process.pid)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for i in range(200):
        with socket.create_connection(("127.0.0.1", port), 10) as made:
            made.sendall((preface if i % 2 else b"") + draw.randbytes(draw.choice([1, 9, 100, 10_000])))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=30)
    assert workers(served.process.pid) == alive


def workers(pid: int) -> set[int]:
    """The processes below the server's."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def memory(pid: int) -> int:
    """Bytes that only these processes hold."""
    return sum(psutil.Process(p).memory_full_info().uss for p in (pid, *workers(pid)))
