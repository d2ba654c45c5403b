"""CUDA graphs: the kernels of a call, launched as one."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankhoist.compiler.targets.recorder import Function, Recorder, Recording, StandIn, size_of

WARM_UP = 2  # runs before a capture: libraries choose and load their kernels there
_CAPTURES = threading.Lock()  # PyTorch captures one graph at a time, and nobody may wait for a device meanwhile


def room_of(device: torch.device) -> int:
    """Bytes that a model's recordings may take there: a quarter of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return 2**30


def recorder_of(device: torch.device) -> Recorder:
    """What records there."""
    return CudaGraphs(device) if device.type == "cuda" else StandIn()


def wait_for(device: torch.device) -> None:
    """Until all that was launched on a device is done, on whatever stream."""
    if device.type == "cuda":
        with _CAPTURES:
            torch.cuda.synchronize(device)


@functools.cache
def _capturing(device: torch.device) -> torch.cuda.Stream:
    """Where graphs are captured, of all models. What another thread launched there would become a part of the graph,
    and PyTorch hands out the same 32 streams again and again: this is one of those that nobody gets without asking.
    """
    return torch.cuda.Stream(device, priority=-1)


class CudaGraphs:
    """Graphs of one device that share a private memory pool.

    One may be replayed on any stream; another on another stream waits for it on the device, not in Python.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
        self._lock = threading.Lock()
        self._stream = _capturing(self._device)
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: weakref.WeakSet[_Graph] = weakref.WeakSet()  # those that keep the pool
        self._last: torch.cuda.Stream | None = None  # where the last turn was
        self._handle = -1  # of that stream: looked at in every turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            handle = torch._C._cuda_getCurrentRawStream(self._device.index)
            if handle != self._handle and self.usable():  # a graph of the caller's own must not wait for others
                current = torch.cuda.current_stream(self._device)
                if self._last is not None:
                    current.wait_stream(self._last)
                self._last, self._handle = current, handle
            yield

    def record(self, function: Function) -> Recording:
        with _CAPTURES, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            # Memory that the allocator hands out here may have been another stream's, whose kernels still run.
            torch.cuda.synchronize()
            try:
                return self._captured(function)
            except BaseException:
                self._after_failure()
                raise
            finally:
                torch.cuda.set_stream(current)
                current.wait_stream(self._stream)

    def _captured(self, function: Function) -> Recording:
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if not self._alive:  # PyTorch takes a pool that no graph holds any more for a mistake
            self._pool = torch.cuda.graph_pool_handle()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
        # cuBLAS keeps its workspace by stream: one made now lies in the graphs' own pool, and nobody else uses it.
        # Other threads' are forgotten, too, perhaps between being chosen and being used: their memory must stay.
        _forget_workspaces()
        with self._capture(graph):
            outputs = tuple(function())
        _forget_workspaces()
        graph.replay()  # outputs hold what the function makes, as they do after every replay
        grown = torch.cuda.memory_reserved() - before
        made = _Graph(graph, outputs, max(grown, size_of(outputs)))
        self._alive.add(made)
        return made

    @contextmanager
    def _capture(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Other threads go on: only what this one calls may end the capture. Unlike `torch.cuda.graph` it gives no
        memory back, which another thread may be about to use.
        """
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                yield
            finally:
                graph.capture_end()

    def _after_failure(self) -> None:
        """The next capture has a pool of its own. What the capture's end may not have told: the allocator stops to fill
        this one, and by a capture that does end, random numbers are drawn outside of graphs again.
        """
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        with contextlib.suppress(Exception), self._capture(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=self._device)

    def settle(self) -> None:
        if self._last is not None:
            self._last.synchronize()

    def usable(self) -> bool:
        return not torch.cuda.is_current_stream_capturing()

    def setting(self) -> Hashable:
        matmul: Any = torch.backends.cuda.matmul
        return str(matmul.fp32_precision)


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: tuple[Any, ...], size: int) -> None:
        self._graph, self.outputs, self.bytes = graph, outputs, size

    def replay(self) -> None:
        self._graph.replay()


def _forget_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()
