"""`torch.cuda` without a GPU: streams, and graphs that repeat what was launched while they were captured.

It refuses what CUDA and PyTorch refuse: waiting for a device while something is captured on it, a captured stream that
waits for one outside, a pool that no graph holds any more. A capture that fails leaves its stream the current one, and
the random numbers of the device unusable, as it does there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Stream:
    def __init__(self, driver: Driver, device: Any = None, priority: int = 0) -> None:
        self.driver, self.device, self.priority = driver, _number(device), priority
        self.graph: Graph | None = None  # that captures it

    def wait_stream(self, other: Stream) -> None:
        if (self.graph is None) != (other.graph is None):
            raise RuntimeError("dependency created on uncaptured work in another stream")
        self.driver.waited.append((self, other))

    def synchronize(self) -> None:
        if self.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")


class Graph:
    """What was launched, with the tensors that it read and wrote."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.launched, self.valid, self.pool = driver, [], True, None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "") -> None:
        self.driver.synchronize()
        self.begin(self.driver.pool() if pool is None else pool)

    def capture_end(self) -> None:
        self.end()

    def begin(self, pool: Any) -> None:
        held = self.driver.pools.setdefault(pool, weakref.WeakSet())
        if pool in self.driver.used and not held:
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0")
        self.pool = pool
        self.driver.current.graph, self.driver.random = self, False

    def end(self) -> None:
        self.driver.current.graph = None
        if not self.valid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.driver.random = True
        self.driver.used.add(self.pool)
        self.driver.pools[self.pool].add(self)

    def replay(self) -> None:
        if self.driver.current.graph is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.driver.replays += 1
        for func, args, kwargs, made in self.launched:
            pairs = zip(*(pytree.tree_leaves(x) for x in (made, func(*args, **kwargs))), strict=True)
            for old, new in pairs:
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Driver:
    """All of it.

    Attributes:
        random: whether random numbers can be drawn.
        waited: which stream waited for which.
        current_device: by number.
    """

    def __init__(self) -> None:
        self.random, self.replays, self.current_device = True, 0, 0
        self.waited: list[tuple[Stream, Stream]] = []
        self.used: set[Any] = set()  # pools
        self.pools: dict[Any, weakref.WeakSet[Graph]] = {}
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._own = threading.local()
        self._default = self._stream()

    def _stream(self, device: Any = None, priority: int = 0) -> Stream:
        made = Stream(self, device, priority)
        self.streams.add(made)
        return made

    @property
    def current(self) -> Stream:
        return getattr(self._own, "stream", self._default)

    @current.setter
    def current(self, stream: Stream) -> None:
        self._own.stream = stream

    def launched(self, func: Callable[..., Any], args: Any, kwargs: Any, made: Any) -> None:
        """A graph that captures the current stream keeps it."""
        graph, moves = self.current.graph, torch.Tag.inplace_view in getattr(func, "tags", ())
        if graph is not None and not moves and "empty" not in str(func):
            as_they_are = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs, made))  # whatever turns them later
            graph.launched.append((func, *as_they_are))

    def check_no_capture(self, what: str) -> None:
        """Nothing that waits may be captured."""
        graph = self.current.graph
        if graph is not None:
            graph.valid = False
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def synchronize(self, device: Any = None) -> None:
        captured = [s.graph for s in self.streams if s.graph is not None]
        for graph in captured:
            graph.valid = False
        if captured:
            raise RuntimeError("operation not permitted when stream is capturing")

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield  # as PyTorch's, it does not go back where it fails: see `capture`
        self.current = before

    def set_stream(self, stream: Stream) -> None:
        self.current, self.current_device = stream, stream.device

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.current_device = self.current_device, _number(device)
        try:
            yield
        finally:
            self.current_device = before

    @contextmanager
    def capture(
        self, graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = ""
    ) -> Iterator[None]:
        self.synchronize()
        before, self.current = self.current, stream
        graph.begin(self.pool() if pool is None else pool)
        try:
            yield
        finally:
            graph.end()
        self.current = before

    def pool(self) -> Any:
        return object()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In the place of what PyTorch has where it was built without CUDA."""
        from rankhoist.compiler.targets import cuda_graphs

        cuda = {
            "Stream": self._stream, "current_stream": lambda device=None: self.current, "stream": self.stream,
            "set_stream": self.set_stream, "device": self.device, "synchronize": self.synchronize,
            "current_device": lambda: self.current_device, "empty_cache": lambda: None,
            "memory_reserved": lambda device=None: 0, "graph_pool_handle": self.pool,
            "CUDAGraph": lambda: Graph(self), "graph": self.capture,
            "is_current_stream_capturing": lambda: self.current.graph is not None,
            "get_device_properties": lambda device: SimpleNamespace(total_memory=2**32),
            "get_device_name": lambda device=None: "a GPU that is not there",
        }  # fmt: skip
        cuda_graphs._capturing.cache_clear()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
            own = {
                "_cuda_clearCublasWorkspaces": lambda: None, "_cuda_endAllocateToPool": lambda device, pool: None,
                "_cuda_getCurrentRawStream": lambda device: id(self.current),
            }  # fmt: skip
            for name, function in own.items():
                stack.enter_context(mock.patch.object(torch._C, name, function, create=True))
            yield
        cuda_graphs._capturing.cache_clear()


def _number(device: Any) -> int:
    if device is None or isinstance(device, int):
        return device or 0
    return torch.device(device).index or 0
