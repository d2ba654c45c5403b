"""Recorders: work that is launched once, and from then on repeated as a whole over the same memory.

What is recorded is a function without arguments, which reads tensors that stay where they are. Its results stay where
they are, too, and the next replay writes over them: whoever replays fills the inputs and reads the results in one turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from torch import Tensor

Function = Callable[[], Sequence[Any]]


class Recording(Protocol):
    """A function that was recorded.

    Attributes:
        outputs: what it returned; tensors hold what the last replay made.
        bytes: memory that it keeps, beside what it reads.
    """

    outputs: tuple[Any, ...]
    bytes: int

    def replay(self) -> None:
        """Run it again, on what its inputs hold now."""


class Recorder(Protocol):
    """What records on a device. Its recordings share memory, so that they run one after another."""

    def turn(self) -> AbstractContextManager[None]:
        """From filling inputs to having read outputs: one thread at a time, one stream after another."""

    def record(self, function: Function) -> Recording:
        """Run the function, and keep what it did. Called within a turn."""

    def settle(self) -> None:
        """Wait until nothing that was replayed runs any more. Called within a turn."""

    def usable(self) -> bool:
        """Whether the thread may replay where it is."""

    def setting(self) -> Hashable:
        """How operators compute, by torch's own switches: it is part of what is recorded."""


class StandIn:
    """Where nothing can be recorded: the function itself, run over the same inputs into the same outputs.

    Whoever uses a recorder wrongly gets wrong results from this one, too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            yield

    def record(self, function: Function) -> Recording:
        return _Repeated(function)

    def settle(self) -> None:
        pass

    def usable(self) -> bool:
        return True

    def setting(self) -> Hashable:
        return None


class _Repeated:
    def __init__(self, function: Function) -> None:
        self._function = function
        self.outputs = tuple(x.clone() if isinstance(x, Tensor) else x for x in function())
        self.bytes = size_of(self.outputs)

    def replay(self) -> None:
        for output, made in zip(self.outputs, self._function(), strict=True):
            if isinstance(output, Tensor):
                output.copy_(made)


def size_of(values: Sequence[Any]) -> int:
    """Bytes of the tensors among them."""
    return sum(t.numel() * t.element_size() for t in values if isinstance(t, Tensor))
