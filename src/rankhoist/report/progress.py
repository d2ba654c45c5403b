"""Progress of work that turns out to be long: nothing is shown of what is soon done, and nothing where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

AFTER = 5.0  # seconds


@contextmanager
def late_progress(what: str, after: float = AFTER, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A function that is told what is being done; what it is told after so many seconds is shown on the terminal."""
    shown, start = console or Console(stderr=True), time.monotonic()
    status: Status | None = None

    def told(text: str) -> None:
        nonlocal status
        if status is None:
            if time.monotonic() - start < after or not (shown.is_terminal or shown.is_jupyter):
                return
            status = shown.status(what)
            status.start()
        status.update(f"{what}: {text}")

    try:
        yield told
    finally:
        if status is not None:
            status.stop()
