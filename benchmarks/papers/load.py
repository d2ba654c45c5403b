"""Requests against one call in one process: a closed loop of clients that wait, and an open loop that does not wait."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]
SPIN = 5e-4  # seconds before an arrival from which on the clock is watched: sleeping is not exact


def closed_loop(call: Call, seconds: float, in_flight: int) -> float:
    """Answered requests per second when `in_flight` clients each send the next request once they have their answer.

    One thread serves, the one that calls this; clients are threads that only wait.
    """
    waiting: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
    stopped = threading.Event()

    def client() -> None:
        while not stopped.is_set():
            answered = threading.Event()
            waiting.put(answered)
            answered.wait()

    clients = [threading.Thread(target=client) for _ in range(in_flight)]
    for thread in clients:
        thread.start()
    served, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() < start + seconds:
            answered = waiting.get()
            call()
            answered.set()
            served += 1
    rate = served / (time.perf_counter() - start)
    stopped.set()
    for thread in clients:
        while thread.is_alive():  # answer what it still waits for
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.01).set()
    return rate


def open_loop(call: Call, rate: float, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Milliseconds from arrival to answer of `count` requests that arrive at `rate` per second, whoever still waits.

    Gaps are exponential and the same for every call of one seed, but for their scale; first come, first served.
    """
    gaps = random.Random(seed)
    arrival = start = time.perf_counter()
    taken = []
    with torch.inference_mode():
        for _ in range(count):
            arrival += gaps.expovariate(rate)
            _wait_until(arrival)
            call()
            taken.append(time.perf_counter() - arrival)
    assert arrival > start
    return 1e3 * np.array(taken)


def _wait_until(moment: float) -> None:
    while (left := moment - time.perf_counter()) > 0:
        if left > SPIN:
            time.sleep(left - SPIN)


def p99(call: Call, rate: float, count: int, runs: int = 3) -> float:
    """Milliseconds: the median of several runs, each with arrivals of its own."""
    return float(np.median([np.quantile(open_loop(call, rate, count, seed), 0.99) for seed in range(runs)]))


def highest_rate(call: Call, bound: float, service: float, count: int, steps: int = 7) -> float:
    """The highest rate of an open loop whose p99 stays within `bound` ms, by bisection.

    Args:
        service: ms of one call alone; no rate is above one call after the other.
        count: requests per run.
    """
    low, high = 0.0, 1e3 / service
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if p99(call, middle, count) <= bound else (low, middle)
    return low
