"""What was known of a key (a user, an item) strictly before a moment, for many (key, moment) questions at once.

Every feature that looks at the log goes through here, so "no leakage from the future" is one `side="left"`.
"""

from __future__ import annotations

import numpy as np

from rankhoist.lab.data.log import FloatArray, IntArray


class _Timeline:
    """Events sorted by (key, time); a question (key, time) selects a contiguous span of them."""

    def __init__(self, keys: IntArray, times: IntArray) -> None:
        self.order = np.lexsort((times, keys))
        self._first = int(times.min(initial=0))
        self._period = int(times.max(initial=0)) - self._first + 2
        self._stamps = self._stamp(keys, times)[self.order]

    def _stamp(self, keys: IntArray, times: IntArray) -> IntArray:
        return keys * self._period + np.clip(times - self._first, 0, self._period - 1)

    def span(self, keys: IntArray, times: IntArray) -> tuple[IntArray, IntArray]:
        """[Q] start and [Q] stop of the key's events strictly before the time, as positions in `order`."""
        start = np.searchsorted(self._stamps, keys * self._period, side="left")
        stop = np.searchsorted(self._stamps, self._stamp(keys, times), side="left")
        return start, stop


class PriorSums:
    """Sums of [E, C] event values over a key's events strictly before a time."""

    def __init__(self, keys: IntArray, times: IntArray, values: FloatArray) -> None:
        self._timeline = _Timeline(keys, times)
        self._running = np.zeros((len(keys) + 1, values.shape[1]))
        np.cumsum(values[self._timeline.order], axis=0, out=self._running[1:])

    def before(self, keys: IntArray, times: IntArray) -> FloatArray:
        """[Q] keys, [Q] times -> [Q, C]."""
        start, stop = self._timeline.span(keys, times)
        return self._running[stop] - self._running[start]


class PriorItems:
    """The items of a key's events strictly before a time."""

    def __init__(self, keys: IntArray, times: IntArray, items: IntArray) -> None:
        self._timeline = _Timeline(keys, times)
        self._items = items[self._timeline.order]
        self._times = times[self._timeline.order]

    def latest(self, keys: IntArray, times: IntArray, length: int) -> IntArray:
        """[Q, length] the key's last items, newest first, padded with 0."""
        start, stop = self._timeline.span(keys, times)
        positions = stop[:, None] - 1 - np.arange(length)
        inside = positions >= start[:, None]
        # An empty log has no position 0 to read; a padded copy always has.
        padded = np.append(self._items, 0)
        return np.where(inside, padded[np.where(inside, positions, 0)], 0)

    def all(self, key: int, time: int) -> IntArray:
        """Every item of one key's events before the time, oldest first."""
        start, stop = self._timeline.span(np.array([key]), np.array([time]))
        return self._items[start[0] : stop[0]]

    def age(self, keys: IntArray, times: IntArray) -> tuple[FloatArray, FloatArray]:
        """[Q] seconds since the key's latest and since its first event; 0 where there is none."""
        start, stop = self._timeline.span(keys, times)
        padded = np.append(self._times, 0)
        some = stop > start
        latest = np.where(some, times - padded[np.where(some, stop - 1, 0)], 0)
        first = np.where(some, times - padded[np.where(some, start, 0)], 0)
        return latest.astype(np.float64), first.astype(np.float64)
