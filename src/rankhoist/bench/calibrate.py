"""Measure a machine profile: seconds of the operators that plans are made of."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch

from rankhoist.bench.timing import machine
from rankhoist.plan.profile import Profile

SIZES = {
    "m": [1, 4, 16, 64, 256, 1024, 4096],
    "k": [4, 16, 64, 256, 1024],
    "n": [1, 4, 16, 64, 256, 1024],
    "batch": [4, 64, 512, 4096],
    "batched_m": [1, 4, 16, 64],
    "batched_k": [4, 16, 64],
    "batched_n": [1, 4, 16, 64],
    "bytes": [2**8, 2**12, 2**16, 2**19, 2**21, 2**23, 2**25],
}
WEIGHTS = 2**24  # bytes
SECONDS = 0.02  # per point
ROW = 64  # floats of a gathered row
RUNS = 16_000  # runs of 8 floats


def calibrate(progress: Callable[[list[Any]], Any] = iter) -> Profile:
    """A profile of this machine for the present number of torch threads; about half a minute.

    Args:
        progress: wraps the list of measurements, for instance to draw a bar.
    """
    points: list[tuple[str, tuple[int, ...]]] = [("call", ()), ("view", ()), ("runs", ())]
    points += [("product", p) for p in itertools.product(SIZES["m"], SIZES["k"], SIZES["n"])]
    small = [SIZES[x] for x in ("batch", "batched_m", "batched_k", "batched_n")]
    points += [("batched", p) for p in itertools.product(*small)]
    points += [(curve, (size,)) for curve in ("stream", "gather", "function") for size in SIZES["bytes"]]
    with torch.inference_mode():
        taken = {(kind, at): _seconds(MAKERS[kind](*at)) for kind, at in progress(points)}
    call, view = taken["call", ()] / 5, taken["view", ()]

    def table(kind: str, *axes: list[int], at: tuple[int, ...] = ()) -> Any:
        if not axes:
            return max(taken[kind, at] - call, 1e-8)
        return [table(kind, *axes[1:], at=(*at, size)) for size in axes[0]]

    about = machine()
    row = max(taken["runs", ()] - call, 1e-8) / RUNS
    curves = {kind: table(kind, SIZES["bytes"]) for kind in ("stream", "gather", "function")}
    return Profile(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"), processor=about["processor"],
        torch=about["torch"], threads=about["threads"], call=call, view=view, row=row, sizes=SIZES,
        product=table("product", *(SIZES[x] for x in "mkn")), batched=table("batched", *small), **curves,
    )  # fmt: skip


def _call() -> Callable[[], Any]:
    """Five usual operators: an elementwise one alone is the cheapest there is."""
    x, w = torch.ones(1, 8), torch.ones(8, 8)

    def five() -> None:
        torch.mul(x, x)
        torch.nn.functional.linear(x, w, w[0])
        torch.cat([x, x], 1)
        torch.sum(x, [1])
        torch.index_select(x, 0, index)

    index = torch.zeros(1, dtype=torch.int64)
    return five


def _view() -> Callable[[], Any]:
    x = torch.ones(1, 8)
    return lambda: torch.reshape(x, (1, 2, 4))


def _runs() -> Callable[[], Any]:
    """Of three usual operators that start anew at every run, the mean."""
    x, y = torch.randn(RUNS, 8), torch.randn(RUNS, 1)
    calls = (partial(torch.mul, x, y), partial(torch.sum, x, [1]), partial(torch.amax, x, [1]))
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def _product(m: int, k: int, n: int) -> Callable[[], Any]:
    x, w = torch.randn(m, k), _in_turn(lambda: torch.randn(n, k))
    return lambda: torch.nn.functional.linear(x, next(w))


def _in_turn(make: Callable[[], torch.Tensor]) -> Iterator[torch.Tensor]:
    """As many weights as a model has, so that none is in the cache for being the only one."""
    first = make()
    count = max(1, min(64, WEIGHTS // (first.numel() * first.element_size())))
    return itertools.cycle([first, *(make() for _ in range(count - 1))])


def _batched(batch: int, m: int, k: int, n: int) -> Callable[[], Any]:
    x, y = torch.randn(batch, m, k), torch.randn(batch, k, n)
    return lambda: torch.bmm(x, y)


def _stream(size: int) -> Callable[[], Any]:
    x, y = torch.randn(size // 4), torch.randn(size // 4)
    return lambda: torch.mul(x, y)


def _gather(size: int) -> Callable[[], Any]:
    rows = max(size // (4 * ROW), 1)
    table, index = torch.randn(20_000, ROW), torch.randint(20_000, (rows,))
    return lambda: torch.index_select(table, 0, index)


def _function(size: int) -> Callable[[], Any]:
    x = torch.randn(size // 4)
    return lambda: torch.sigmoid(x)


MAKERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "call": _call, "view": _view, "runs": _runs, "product": _product, "batched": _batched,
    "stream": _stream, "gather": _gather, "function": _function,
}  # fmt: skip


def _seconds(call: Callable[[], Any]) -> float:
    """A low quartile of single calls; short ones are timed many at a time."""
    call()
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    inner = max(int(2e-4 / once), 1)
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(inner):
            call()
        taken.append((time.perf_counter() - start) / inner)
    return statistics.quantiles(taken, n=4)[0]
