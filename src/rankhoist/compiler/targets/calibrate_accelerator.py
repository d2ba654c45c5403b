"""Measure an accelerator: seconds of the kernels that plans are made of, and what launching them costs.

Kernels are timed alone: several sets of operands in turn inside one recorded graph, which is launched once. On a CPU,
where nothing is recorded, the same calls are timed as they are, so that all of this runs in tests.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from rankhoist.compiler.targets.accelerator import WIDE, WIDTH, Accelerator
from rankhoist.compiler.targets.machine import name_of

SIZES = {
    "m": [1, 16, 64, 256, 1024, 4096, 16384, 65536],
    "k": [16, 64, 256, 1024],
    "n": [1, 16, 64, 256, 1024],
    "batch": [16, 256, 4096, 65536],
    "batched_m": [1, 16, 64],
    "batched_k": [16, 64],
    "batched_n": [1, 16, 64],
    "bytes": [2**12, 2**16, 2**20, 2**22, 2**24, 2**26, 2**28],
}
SETS, REPEATS, ROUNDS = 2, 5, 5
TABLE = 100_000  # rows that are read by index

Call = Callable[[], Any]


def calibrate_accelerator(
    device: torch.device, dtype: torch.dtype, progress: Callable[[list[Any]], Any] = iter
) -> Accelerator:
    """A profile of a device in one dtype; a minute or two.

    Args:
        progress: wraps the list of measurements, for instance to draw a bar.
    """
    points: list[tuple[str, tuple[int, ...]]] = []
    points += [("product", p) for p in itertools.product(SIZES["m"], SIZES["k"], SIZES["n"])]
    small = [SIZES[x] for x in ("batch", "batched_m", "batched_k", "batched_n")]
    points += [("batched", p) for p in itertools.product(*small)]
    points += [(curve, (size,)) for curve in MAKERS for size in SIZES["bytes"]]
    made = _Operands(device, dtype)
    with torch.inference_mode():
        taken = {
            (kind, at): _kernels([made.of(kind, at) for _ in range(SETS)], device) for kind, at in progress(points)
        }
        call, view, kernel, replay, copy = _launches(made)

    def table(kind: str, *axes: list[int], at: tuple[int, ...] = ()) -> Any:
        return [table(kind, *axes[1:], at=(*at, size)) for size in axes[0]] if axes else taken[kind, at]

    return Accelerator(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"), processor=name_of(device),
        torch=str(torch.__version__), device=device.type, dtype=str(dtype).removeprefix("torch."), call=call, view=view,
        kernel=kernel, replay=replay, copy=copy, sizes=SIZES, product=table("product", *(SIZES[x] for x in "mkn")),
        batched=table("batched", *small), curves={curve: table(curve, SIZES["bytes"]) for curve in MAKERS},
    )  # fmt: skip


class _Operands:
    """Calls over operands of their own."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.new = partial(torch.randn, device=device, dtype=dtype)
        self.table = self.new(TABLE, WIDTH)

    def of(self, kind: str, at: tuple[int, ...]) -> Call:
        if kind == "product":
            m, k, n = at
            return partial(F.linear, self.new(m, k), self.new(n, k))
        if kind == "batched":
            b, m, k, n = at
            return partial(torch.bmm, self.new(b, m, k), self.new(b, k, n))
        width = WIDE if kind.endswith("_wide") else WIDTH
        return MAKERS[kind](self, self.new(max(at[0] // self.dtype.itemsize // width, 1), width))


def _gather(made: _Operands, x: torch.Tensor) -> Call:
    return partial(torch.index_select, made.table, 0, torch.randint(TABLE, (len(x),), device=made.device))


MAKERS: dict[str, Callable[[_Operands, torch.Tensor], Call]] = {
    "stream": lambda made, x: partial(torch.mul, x, x),
    "addcmul": lambda made, x: partial(torch.addcmul, x, x, x),
    "function": lambda made, x: partial(torch.sigmoid, x),
    "gather": _gather,
    "sum": lambda made, x: partial(torch.sum, x, 1),
    "softmax": lambda made, x: partial(torch.softmax, x, 1),
    "softmax_wide": lambda made, x: partial(torch.softmax, x, 1),
    "norm": lambda made, x: partial(F.layer_norm, x, (x.shape[1],)),
    "norm_wide": lambda made, x: partial(F.layer_norm, x, (x.shape[1],)),
    "join": lambda made, x: partial(torch.cat, [x, x], 1),
    "transpose": lambda made, x: x.t().contiguous,
}


def _kernels(calls: list[Call], device: torch.device) -> float:
    """Seconds of one call's kernels, without what launching them costs."""
    run = _recorded(calls * REPEATS) if device.type == "cuda" else partial(_in_turn, calls * REPEATS)
    return _seconds(run, device) / len(calls * REPEATS)


def _recorded(calls: list[Call]) -> Call:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _in_turn(calls)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _in_turn(calls)
    return graph.replay


def _in_turn(calls: list[Call]) -> None:
    for call in calls:
        call()


def _seconds(call: Call, device: torch.device) -> float:
    """The median of a few calls, each to the end of its kernels."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    taken = []
    for _ in range(ROUNDS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _launches(made: _Operands) -> tuple[float, float, float, float, float]:
    """A call, a view, one more recorded kernel, a replay, and a small copy from pinned memory."""
    device, x, w = made.device, made.new(8, 8), made.new(8, 8)
    index = torch.zeros(8, dtype=torch.int64, device=device)
    usual: list[Call] = [
        partial(torch.mul, x, x), partial(F.linear, x, w, w[0]), partial(torch.cat, [x, x], 1),
        partial(torch.sum, x, [1]), partial(torch.index_select, x, 0, index),
    ]  # fmt: skip
    many = 40
    call = _seconds(partial(_in_turn, usual * many), device) / (len(usual) * many)
    view = _seconds(partial(_in_turn, [partial(x.view, 64)] * many), device) / many
    tiny: Call = partial(x.mul_, 1.0)
    replays = [(_recorded([tiny] * n) if device.type == "cuda" else partial(_in_turn, [tiny] * n)) for n in (1, 101)]
    one, hundred = (_seconds(partial(_in_turn, [replay] * many), device) / many for replay in replays)
    there = torch.empty(1024, device=device)
    here = torch.empty(1024, pin_memory=device.type == "cuda")
    copy = _seconds(partial(_in_turn, [partial(there.copy_, here, non_blocking=True)] * many), device) / many
    return call, view, max((hundred - one) / 100, 1e-8), one, copy
