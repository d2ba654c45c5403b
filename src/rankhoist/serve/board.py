"""How busy every worker is, in a file that all of them map: one byte for each.

A connection is accepted by whichever worker comes first, and stays, so that one worker can have a queue while another
has nothing to do. A worker that sees this closes a connection after an answer: its client connects anew, perhaps to the
idle one.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path

AWAY = 255  # not there, or about to end
PAUSE = 0.02  # seconds between two connections that are closed


class Board:
    """One worker's view; `own` is its number."""

    def __init__(self, path: Path, own: int) -> None:
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)
        self._own, self._next = own, 0.0

    @staticmethod
    def create(path: Path, workers: int) -> None:
        """A board on which nobody is there."""
        path.write_bytes(bytes([AWAY]) * workers)

    def write(self, busy: int) -> None:
        """Say how many requests this worker has, or `AWAY`."""
        self._bytes[self._own] = min(busy, AWAY - 1) if busy != AWAY else AWAY

    def crowded(self) -> bool:
        """Whether requests wait here while another worker is idle; once in a while, so that few connections move."""
        now = time.monotonic()
        if not 0 < self._bytes[self._own] < AWAY or now < self._next or 0 not in self._bytes[:]:
            return False
        self._next = now + PAUSE
        return True
