"""Many may read at once, one writes alone: an update is seen whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """A lock of readers and one writer, who goes first: readers that come while it waits wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._writing, self._waiting = 0, False, 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody writes meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody reads or writes meanwhile."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._writing and not self._readers)
            self._waiting, self._writing = self._waiting - 1, True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
