"""Measure a machine profile: seconds of the operators that plans are made of."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch

from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.profile import Profile

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
CURVES = ("stream", "gather", "pick", "function")
WEIGHTS = 2**26  # bytes of all weights of a model: more than stays in a cache between two calls
LAYERS = 1024  # that share them, at most
SECONDS = 0.01  # per point and round
ROUNDS = 3  # over all points, so that a slow second of the machine does not decide one of them
ROW = 64  # floats of a gathered row
PAIRS = 780  # of 40 fields
RUNS = 16_000  # runs of 8 floats


def calibrate(progress: Callable[[list[Any]], Any] = iter, dtype: torch.dtype = torch.float32) -> Profile:
    """A profile of this machine's processor for the present number of torch threads; about half a minute.

    Args:
        progress: wraps the list of measurements, for instance to draw a bar.
        dtype: of all numbers; bytes are counted as in float32.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of what the makers below make
    try:
        return _calibrated(progress, str(dtype).removeprefix("torch."))
    finally:
        torch.set_default_dtype(before)


def _calibrated(progress: Callable[[list[Any]], Any], dtype: str) -> Profile:
    points: list[tuple[str, tuple[int, ...]]] = [("call", ()), ("view", ()), ("runs", ())]
    points += [("product", p) for p in itertools.product(SIZES["m"], SIZES["k"], SIZES["n"])]
    small = [SIZES[x] for x in ("batch", "batched_m", "batched_k", "batched_n")]
    points += [("batched", p) for p in itertools.product(*small)]
    points += [(curve, (size,)) for curve in CURVES for size in SIZES["bytes"]]
    found: dict[tuple[str, tuple[int, ...]], list[float]] = {point: [] for point in points}
    with torch.inference_mode():
        for kind, at in progress(ROUNDS * points):
            found[kind, at].append(_seconds(MAKERS[kind](*at)))
    _weights.cache_clear()  # they were for this measurement, and are large
    taken = {point: statistics.median(times) for point, times in found.items()}
    call, view = taken["call", ()] / 5, taken["view", ()]

    def table(kind: str, *axes: list[int], at: tuple[int, ...] = ()) -> Any:
        if not axes:
            return max(taken[kind, at] - call, 1e-8)
        return [table(kind, *axes[1:], at=(*at, size)) for size in axes[0]]

    about = machine()
    row = max(taken["runs", ()] - call, 1e-8) / RUNS
    curves = {kind: table(kind, SIZES["bytes"]) for kind in CURVES}
    return Profile(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"), processor=about["processor"],
        torch=about["torch"], threads=about["threads"], dtype=dtype, call=call, view=view, row=row, sizes=SIZES,
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
    x = torch.ones(1, 4, 8)
    return _in_turn(
        partial(torch.reshape, x, (1, 2, 16)), partial(torch.permute, x, (0, 2, 1)), partial(torch.narrow, x, 1, 0, 2)
    )


def _runs() -> Callable[[], Any]:
    """Of three usual operators that start anew at every run, the mean."""
    x, y = torch.randn(RUNS, 8), torch.randn(RUNS, 1)
    return _in_turn(partial(torch.mul, x, y), partial(torch.sum, x, [1]), partial(torch.amax, x, [1]))


def _in_turn(*calls: Callable[[], Any]) -> Callable[[], Any]:
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def _product(m: int, k: int, n: int) -> Callable[[], Any]:
    x, size = torch.randn(m, k), n * k
    starts = range(0, WEIGHTS // 4 - size + 1, max(size, WEIGHTS // 4 // LAYERS))
    w = itertools.cycle([_weights()[i : i + size].view(n, k) for i in starts])
    return lambda: torch.nn.functional.linear(x, next(w))


@functools.cache
def _weights() -> torch.Tensor:
    """Those of a whole model, so that none is in the cache for being the only one."""
    return torch.randn(WEIGHTS // 4)


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


def _pick(size: int) -> Callable[[], Any]:
    pairs = max(min(size // 4, PAIRS), 1)
    x, at = torch.randn(max(size // (4 * pairs), 1), 40, 40), torch.randint(40, (2, pairs))
    return lambda: x[:, at[0], at[1]]


def _function(size: int) -> Callable[[], Any]:
    x = torch.randn(size // 4)
    return lambda: torch.sigmoid(x)


MAKERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "call": _call, "view": _view, "runs": _runs, "product": _product, "batched": _batched,
    "stream": _stream, "gather": _gather, "pick": _pick, "function": _function,
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
