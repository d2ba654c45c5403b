"""How long a search may take, and who hears of it: a watch over all that is planned within it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

Told = Callable[[str], object]


@dataclass(frozen=True)
class Watch:
    """Seconds of this thread, and what is told in words what is being tried, and what is the best so far."""

    seconds: float = math.inf
    told: Told = lambda text: None
    start: float = field(default_factory=time.thread_time)

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 there are none."""
        return self.start + self.seconds - time.thread_time()


_WATCH: ContextVar[Watch] = ContextVar("watch", default=Watch())  # noqa: B039 - it never changes


def watch() -> Watch:
    """The one over what runs now."""
    return _WATCH.get()


@contextmanager
def watched(seconds: float | None, told: Told) -> Iterator[None]:
    """Within it, searches share these seconds (None: each has its own), and tell of themselves."""
    token = _WATCH.set(Watch(math.inf if seconds is None else seconds, told))
    try:
        yield
    finally:
        _WATCH.reset(token)
