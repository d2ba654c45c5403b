"""CUDA graphs: the kernels of a call, launched as one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankhoist.compiler.targets.recorder import Function, Recorder, Recording, StandIn, size_of

WARM_UP = 2  # runs before a capture: libraries choose and load their kernels there
_CAPTURES = threading.Lock()  # PyTorch captures one graph at a time


def room_of(device: torch.device) -> int:
    """Bytes that a model's recordings may take there: a quarter of a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return 2**30


def recorder_of(device: torch.device) -> Recorder:
    """What records there."""
    return CudaGraphs(device) if device.type == "cuda" else StandIn()


class CudaGraphs:
    """Graphs of one device that share a private memory pool.

    One may be replayed on any stream; another on another stream waits for it on the device, not in Python.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._last: torch.cuda.Stream = self._stream  # where the last turn was

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            current = torch.cuda.current_stream(self._device)
            if current != self._last:
                current.wait_stream(self._last)
                self._last = current
            yield

    def record(self, function: Function) -> Recording:
        current = torch.cuda.current_stream(self._device)
        # Memory that the allocator hands out here may have been another stream's, whose kernels still run.
        torch.cuda.synchronize(self._device)
        try:
            with _CAPTURES, torch.cuda.device(self._device):
                return self._captured(function)
        except BaseException:
            self._after_failure()
            raise
        finally:
            torch.cuda.set_stream(current)  # a capture that fails may leave its own
            current.wait_stream(self._stream)

    def _captured(self, function: Function) -> Recording:
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved(self._device)
        # cuBLAS keeps its workspace by stream: one made now lies in the graphs' own pool, and nobody else uses it.
        _forget_workspaces()
        # Other threads go on: only what this one calls may end the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = tuple(function())
        _forget_workspaces()
        graph.replay()  # outputs hold what the function makes, as they do after every replay
        grown = torch.cuda.memory_reserved(self._device) - before
        return _Graph(graph, outputs, max(grown, size_of(outputs)))

    def _after_failure(self) -> None:
        """The next capture has a pool of its own; the allocator stops to fill this one, if the capture's end did not
        tell it.
        """
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
        self._pool = torch.cuda.graph_pool_handle()

    def settle(self) -> None:
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
