"""Closed and open loops of requests against a server.

Closed: so many requests are in flight all the time; it finds what the server can do at most. A slow answer holds the
next request back, so its latencies flatter the server.
Open: requests come at random moments, at a fixed mean rate, whether or not the server has answered those before (a
Poisson process); latency counts from the moment at which a request was due, so that a stall of the server shows in all
the requests that it held up (coordinated omission: Gil Tene, "How NOT to Measure Latency").
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rankhoist.lab.loadtest.connection import Address, Connection
from rankhoist.lab.loadtest.samples import Samples

SLOW_DOWN = 0.05  # seconds after a refused connection, before that connection is tried again


@dataclass(frozen=True)
class Load:
    """What is put on the server.

    connections  open at the same time; in a closed loop, the requests in flight
    rate         requests per second of an open loop; None for a closed loop
    seconds      measured, after `warm_up` seconds that are not
    timeout      seconds after which a request counts as failed
    """

    connections: int = 8
    rate: float | None = None
    seconds: float = 10.0
    warm_up: float = 2.0
    timeout: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """A load test: its samples after the warm-up, and the processor time that the generator took, in cores."""

    samples: Samples
    cores: float


async def run(address: Address, requests: Sequence[bytes], load: Load, watch: Callable[[Samples], None]) -> Run:
    """Send the requests in turn until time is up; `watch` sees the samples grow, a few times a second."""
    samples = Samples()
    start = time.perf_counter()
    moments = _poisson(load, start) if load.rate else _at_once(load, start)
    bodies = _in_turn(requests)
    workers = [_worker(Connection(address), moments, bodies, load, samples) for _ in range(load.connections)]
    watcher = asyncio.create_task(_watch(samples, watch))
    busy = time.process_time()
    try:
        await asyncio.gather(*workers)
    finally:
        watcher.cancel()
    cores = (time.process_time() - busy) / (time.perf_counter() - start)
    return Run(samples.since(start + load.warm_up), cores)


async def _worker(
    connection: Connection, moments: Iterator[float], bodies: Iterator[bytes], load: Load, samples: Samples
) -> None:
    """Takes the next request that is due, again and again; workers share the moments."""
    for due in moments:
        early = due - time.perf_counter()
        if early > 0:
            await asyncio.sleep(early)
        sent = time.perf_counter()
        failure = await _failure(connection, next(bodies), load.timeout)
        samples.add(due, sent, time.perf_counter(), failure)
        if failure == ConnectionRefusedError.__name__:
            await asyncio.sleep(SLOW_DOWN)
    connection.close()


async def _failure(connection: Connection, request: bytes, timeout: float) -> str | None:
    """None, or the kind of error: an HTTP status or the name of an exception."""
    try:
        answer = await connection.exchange(request, timeout)
    except (OSError, asyncio.TimeoutError) as error:
        return type(error).__name__
    return None if answer.status == 200 else str(answer.status)


def _at_once(load: Load, start: float) -> Iterator[float]:
    end = start + load.warm_up + load.seconds
    while (now := time.perf_counter()) < end:
        yield now


def _poisson(load: Load, start: float) -> Iterator[float]:
    """Moments whose distances are exponential."""
    assert load.rate, "an open loop"
    draw = random.Random(load.seed)
    moment, end = start, start + load.warm_up + load.seconds
    while (moment := moment + draw.expovariate(load.rate)) < end:
        yield moment


def _in_turn(requests: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from requests


async def _watch(samples: Samples, watch: Callable[[Samples], None]) -> None:
    while True:
        await asyncio.sleep(0.25)
        watch(samples)
