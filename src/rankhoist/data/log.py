"""An interaction log: who met which item when, and what came of it, plus the catalogue of items.

Both data sources produce this and nothing else; every feature is derived from it (`features.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rankhoist.errors import RankhoistError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

HOUR = 3600  # seconds
DAY = 24 * HOUR  # seconds


class DataError(RankhoistError):
    """A data set cannot be read, or was asked for something it does not hold."""


@dataclass(frozen=True)
class Catalogue:
    """The items, numbered 1..I; row 0 is padding. It must not depend on the log's events.

    titles       I+1 strings, titles[0] == ""
    years        [I+1] year of publication, 0 = unknown
    genres       [I+1, W] genre numbers, 0 = padding, W = the most genres any item has
    genre_names  names by genre number, genre_names[0] == ""
    """

    titles: tuple[str, ...]
    years: IntArray
    genres: IntArray
    genre_names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of item numbers, the padding 0 included."""
        return len(self.titles)

    def genre_indicator(self) -> BoolArray:
        """[I+1, G] whether an item has a genre; column g stands for genre number g + 1."""
        numbers = np.arange(1, len(self.genre_names))
        return np.asarray((self.genres[:, :, None] == numbers).any(axis=1))


@dataclass(frozen=True)
class InteractionLog:
    """E events in time order; events of one moment keep the order of their source.

    users       [E] user numbers 1..U in order of first appearance, so a later event never renumbers an earlier one
    items       [E] item numbers 1..I of the catalogue
    times       [E] seconds since 1970-01-01 UTC, non-decreasing
    values      [E] graded outcome (a rating, or a click as 0/1)
    liked       [E] binary outcome, the label
    user_names  [U+1] the source's own number of each user, user_names[0] == 0
    """

    users: IntArray
    items: IntArray
    times: IntArray
    values: FloatArray
    liked: BoolArray
    user_names: IntArray
    catalogue: Catalogue

    @classmethod
    def from_events(
        cls,
        user_names: IntArray,
        items: IntArray,
        times: IntArray,
        values: FloatArray,
        liked: BoolArray,
        catalogue: Catalogue,
    ) -> InteractionLog:
        """Sort events given in any order by time and number their users."""
        order = np.argsort(times, kind="stable")
        users, names = number_by_appearance(user_names[order])
        return cls(users, items[order], times[order], values[order], liked[order], names, catalogue)

    def before(self, time: int) -> InteractionLog:
        """The log as it was known just before `time`."""
        stop = int(np.searchsorted(self.times, time, side="left"))
        users = self.users[:stop]
        names = self.user_names[: int(users.max(initial=0)) + 1]
        return InteractionLog(
            users,
            self.items[:stop],
            self.times[:stop],
            self.values[:stop],
            self.liked[:stop],
            names,
            self.catalogue,
        )


def number_by_appearance(names: IntArray) -> tuple[IntArray, IntArray]:
    """[E] names -> ([E] numbers 1..U by first appearance, [U+1] name of each number)."""
    unique, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    number = np.empty(len(unique), dtype=np.int64)
    number[by_appearance] = np.arange(1, len(unique) + 1)
    return number[inverse], np.concatenate([[0], unique[by_appearance]]).astype(np.int64)


def pad_lists(lists: Sequence[Sequence[int]]) -> IntArray:
    """Ragged lists of positive numbers -> [len(lists), longest], padded with 0."""
    width = max((len(entries) for entries in lists), default=0)
    padded = np.zeros((len(lists), max(width, 1)), dtype=np.int64)
    for row, entries in enumerate(lists):
        padded[row, : len(entries)] = entries
    return padded


def hour_of_day(times: IntArray) -> IntArray:
    """[E] 0..23, UTC."""
    return times % DAY // HOUR


def day_of_week(times: IntArray) -> IntArray:
    """[E] 0 = Monday .. 6 = Sunday, UTC; 1970-01-01 was a Thursday."""
    return (times // DAY + 3) % 7
