"""Interleaved timing: variants take turns, so that a slow second of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Time of one call in milliseconds: median and quartiles of `calls` calls."""

    median: float
    low: float
    high: float
    calls: int


def interleaved(
    variants: Mapping[K, Callable[[], Any]], seconds: float, warmup: int = 3, rounds: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, Timing]:  # fmt: skip
    """Call all variants in turn for about `seconds` in all, at least so many rounds.

    On a CUDA device, a call ends when its kernels have. Calls take what the `clock` tells: the wall's time, or with
    `time.thread_time` that of the processor, on a machine that others share.
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    for _ in range(warmup):
        for call in variants.values():
            call()
    taken: dict[K, list[float]] = {name: [] for name in variants}
    wait()
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        for name, call in variants.items():
            start = clock()
            call()
            wait()
            taken[name].append((clock() - start) * 1e3)
        done += 1
    return {name: _timing(times) for name, times in taken.items()}


def _nothing() -> None:
    pass


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high, len(times))
