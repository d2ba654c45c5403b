"""The load generator: its clock, its arithmetic, and what it sees of servers that stall, break off or are not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from rankhoist.errors import CommandError
from rankhoist.lab.loadtest import Load, examples, plot
from rankhoist.lab.loadtest.connection import Address, Connection, http_request
from rankhoist.lab.loadtest.load import run
from rankhoist.lab.loadtest.samples import Samples

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"scores":[1.0]}'


def answer(status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(BODY)}\r\n{extra}\r\n".encode() + BODY


async def request(reader: asyncio.StreamReader) -> bool:
    """Read one request; False at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))
    return True


def under_load(handler: Handler, load: Load) -> Samples:
    """The samples of a load on a server of this process."""

    async def both() -> Samples:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        async with server:
            address = Address(*server.sockets[0].getsockname()[:2])
            bodies = [http_request(address, "/x", b"body" * 1000, {})]
            return (await run(address, bodies, load, lambda samples: None)).samples

    return asyncio.run(both())


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await request(reader):
        writer.write(answer())
    writer.close()


# -- arithmetic


def test_latency_counts_from_the_moment_a_request_was_due():
    samples = Samples()
    for due, sent, done in [(0.0, 0.0, 0.010), (0.1, 0.4, 0.410), (0.2, 0.41, 0.420)]:
        samples.add(due, sent, done)
    figures = samples.figures()
    assert figures["latency_ms"]["max"] == pytest.approx(310) and figures["latency_ms"]["p50"] == pytest.approx(220)
    assert samples.lateness()["p50"] == pytest.approx(210)


def test_failed_requests_count_as_errors_and_not_as_latencies():
    samples = Samples()
    samples.add(0.0, 0.0, 0.5)
    samples.add(0.0, 0.0, 1.0, "503")
    samples.add(0.5, 0.5, 2.0, "503")
    figures = samples.figures()
    assert figures["errors"] == {"503": 2} and figures["requests"] == 3 and figures["answered"] == 1
    assert figures["latency_ms"]["max"] == pytest.approx(500) and figures["requests_per_second"] == pytest.approx(0.5)
    assert [row["answers"] for row in samples.per_second()] == [1, 0]
    assert [row["errors"] for row in samples.per_second()] == [0, 1]


def test_the_warm_up_is_left_out():
    samples = Samples()
    for moment in range(4):
        samples.add(moment, moment, moment + 0.5, "404" if moment == 0 else None)
    assert samples.since(1.0).due == [1, 2, 3] and samples.since(1.0).errors() == {}


def test_the_curve_ends_where_the_requests_do():
    samples = Samples()
    for i in range(200):
        samples.add(0.0, 0.0, (i + 1) / 1000)
    curve = samples.figures()["curve_ms"]
    assert list(curve)[-1] == "p99.5" and curve["p50"] == pytest.approx(100.5)


def test_nothing_answered_has_no_percentiles():
    samples = Samples()
    samples.add(0.0, 0.0, 1.0, "TimeoutError")
    assert samples.figures()["latency_ms"] == {} and Samples().figures()["requests"] == 0 == len(Samples().per_second())


# -- loops


def test_a_closed_loop_keeps_every_connection_busy():
    inside, most = 0, 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal inside, most
        while await request(reader):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1
            writer.write(answer())
        writer.close()

    samples = under_load(counting, Load(connections=5, seconds=0.4, warm_up=0.0))
    assert most == 5 and samples.errors() == {}


def test_an_open_loop_shows_a_stall_to_all_whom_it_kept_waiting():
    """The server stops once for half a second; at 200 requests per second a hundred of them were due meanwhile."""
    stall = asyncio.Lock()
    seen = 0

    async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        while await request(reader):
            seen += 1
            async with stall:
                if seen == 60:
                    await asyncio.sleep(0.5)
            writer.write(answer())
        writer.close()

    samples = under_load(stalling, Load(connections=2, rate=200.0, seconds=1.5, warm_up=0.0))
    slow = np.array(samples.done) - np.array(samples.due) > 0.1
    assert samples.errors() == {} and slow.sum() >= 50
    # two connections only: most of them could not even be sent, which a clock that starts at sending would hide
    assert (np.array(samples.sent) - np.array(samples.due) > 0.1).sum() >= 40


def test_open_arrivals_are_random_with_the_mean_rate_and_the_same_for_a_seed():
    load = Load(connections=50, rate=500.0, seconds=1.0, warm_up=0.0, seed=3)
    first, second = under_load(ok, load), under_load(ok, load)
    gaps = np.diff(sorted(first.due))
    assert len(first.due) == len(second.due) and 400 < len(first.due) < 600
    assert np.allclose(gaps, np.diff(sorted(second.due)), atol=1e-6)
    assert 0.8 < gaps.std() / gaps.mean() < 1.2  # exponential gaps deviate by their mean


def test_errors_are_counted_by_kind_and_connections_opened_anew():
    turn = 0

    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        while await request(reader):
            turn += 1
            match turn % 4:
                case 0:
                    break  # closes without an answer
                case 1:
                    writer.write(answer("503 Service Unavailable"))
                case 2:
                    writer.write(answer(extra="Connection: close\r\n"))
                    break
                case 3:
                    writer.write(answer())
        writer.close()

    samples = under_load(bad, Load(connections=1, seconds=0.3, warm_up=0.0))
    assert set(samples.errors()) == {"503", "ConnectionResetError"}
    assert samples.failed.count(None) >= 2


def test_no_answer_is_a_timeout():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    samples = under_load(silent, Load(connections=2, seconds=0.3, warm_up=0.0, timeout=0.1))
    assert set(samples.errors()) == {"TimeoutError"}


def test_no_server_is_a_refused_connection():
    async def refused() -> None:
        server = await asyncio.start_server(ok, "127.0.0.1", 0)
        address = Address(*server.sockets[0].getsockname()[:2])
        server.close()
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await Connection(address).exchange(b"GET / HTTP/1.1\r\n\r\n", 1.0)

    asyncio.run(refused())


def test_an_answer_in_pieces_is_put_together():
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request(reader):
            for byte in answer(extra="X: y\r\n"):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async def once() -> None:
        async with await asyncio.start_server(slow, "127.0.0.1", 0) as server:
            address = Address(*server.sockets[0].getsockname()[:2])
            connection = Connection(address)
            for _ in range(2):
                found = await connection.exchange(http_request(address, "/", b"x", {}), 10.0)
                assert (found.status, found.body) == (200, BODY)
            connection.close()

    asyncio.run(once())


@pytest.mark.parametrize("url", ["https://x:1", "x:8000", "http://", "http://x:80/path"])
def test_other_urls_are_refused(url: str):
    with pytest.raises(CommandError, match="http://HOST:PORT"):
        Address.of(url)


# -- requests

METADATA = {
    "inputs": [
        {"name": "user", "datatype": "INT64", "shape": [-1], "parameters": {"side": "context", "maximum": 9}},
        {"name": "age", "datatype": "FP32", "shape": [-1, 2], "parameters": {"side": "context"}},
        {"name": "item", "datatype": "INT64", "shape": [-1, 3], "parameters": {"side": "candidate", "maximum": 1}},
        {"name": "new", "datatype": "BOOL", "shape": [-1], "parameters": {"side": "candidate"}},
        {"name": "mixed", "datatype": "FP32", "shape": [-1, 2],
         "parameters": {"side": "candidate", "maximum": [4, None]}},
        {"name": "request_offsets", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}},
    ]
}  # fmt: skip


def test_drawn_requests_fit_the_metadata():
    drawn = examples.drawn(METADATA, candidates=50, count=3, seed=1)
    assert len(drawn) == 3
    for one in drawn:
        assert {n: (x.shape, str(x.dtype)) for n, x in one.context.items()} == {
            "user": ((1,), "int64"), "age": ((1, 2), "float32")
        }  # fmt: skip
        assert {n: (x.shape, str(x.dtype)) for n, x in one.candidates.items()} == {
            "item": ((50, 3), "int64"), "new": ((50,), "bool"), "mixed": ((50, 2), "float32")
        }  # fmt: skip
        assert set(one.candidates["item"].ravel()) == {0, 1} and 0 <= one.context["user"][0] <= 9
        assert set(one.candidates["mixed"][:, 0]) <= {0, 1, 2, 3, 4} and one.candidates["mixed"][:, 1].std() > 0.3
    assert not np.array_equal(drawn[0].candidates["item"], drawn[1].candidates["item"])


def test_requests_are_read_by_column_and_by_row(tmp_path: Path):
    rows = [{"item": [1, 0, 1], "new": True, "mixed": [0, 0.5]}, {"item": [0, 0, 0], "new": False, "mixed": [4, 1]}]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    context = {"user": 7, "age": [[0.5, 1]]}
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"context": context, "candidates": c} for c in (rows, columns)]))
    first, second = examples.read(path, METADATA)
    for one in (first, second):
        assert one.context["user"].tolist() == [7] and one.context["age"].dtype == np.float32
        assert one.candidates["item"].tolist() == columns["item"] and one.candidates["new"].dtype == bool


@pytest.mark.parametrize("text", ["x", "{}", "[1]", '{"context": {"nobody": 1}, "candidates": {}}'])
def test_a_file_without_requests_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CommandError, match="does not hold requests"):
        examples.read(path, METADATA)


# -- picture


def test_the_plot_is_drawn(tmp_path: Path):
    samples = under_load(ok, Load(connections=2, seconds=1.2, warm_up=0.0))
    result = samples.figures() | {"per_second": samples.per_second(), "rate": None, "in_flight": 2}
    plot.draw(result | {"model": "ranker", "candidates": 10.0}, tmp_path / "load.svg")
    assert "answers/s" in (tmp_path / "load.svg").read_text() or (tmp_path / "load.svg").stat().st_size > 10_000
