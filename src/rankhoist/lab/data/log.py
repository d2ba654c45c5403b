"""An interaction log: who met which item when, and what came of it, plus the catalogue of items.

Both data sources produce this and nothing else; every feature is derived from it (`features.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
class Attribute:
    """A category of users, items or events that only some sources know; it becomes a feature of that name.

    numbers  [U+1], [I+1] (row 0 = 0) or [E] category numbers, 0 = unknown
    size     categories, the unknown 0 included
    """

    name: str
    numbers: IntArray
    size: int

    @classmethod
    def from_names(cls, name: str, names: Sequence[str]) -> Attribute:
        """Categories by name, numbered in the order of their names; "" is unknown."""
        known = sorted(set(names) - {""})
        number_of = {"": 0} | {known_name: number for number, known_name in enumerate(known, 1)}
        return cls(name, np.array([number_of[name] for name in names], dtype=np.int64), len(known) + 1)

    def at(self, index: IntArray | slice) -> Attribute:
        """The category of some rows."""
        return replace(self, numbers=self.numbers[index])


@dataclass(frozen=True)
class Catalogue:
    """The items, numbered 1..I; row 0 is padding. It must not depend on the log's events.

    titles       I+1 strings, titles[0] == ""
    years        [I+1] year of publication, 0 = unknown
    genres       [I+1, W] genre numbers, 0 = padding, W = the most genres any item has
    genre_names  names by genre number, genre_names[0] == ""
    attributes   further categories of the items, [I+1]
    """

    titles: tuple[str, ...]
    years: IntArray
    genres: IntArray
    genre_names: tuple[str, ...]
    attributes: tuple[Attribute, ...] = ()

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
    of_users    categories of the users, [U+1]
    of_events   categories of the context of the events, such as the page they happened on, [E]
    """

    users: IntArray
    items: IntArray
    times: IntArray
    values: FloatArray
    liked: BoolArray
    user_names: IntArray
    catalogue: Catalogue
    of_users: tuple[Attribute, ...] = ()
    of_events: tuple[Attribute, ...] = ()

    @classmethod
    def from_events(
        cls,
        user_names: IntArray,
        items: IntArray,
        times: IntArray,
        values: FloatArray,
        liked: BoolArray,
        catalogue: Catalogue,
        *,
        of_users: Callable[[IntArray], tuple[Attribute, ...]] = lambda names: (),
        of_events: Sequence[Attribute] = (),
    ) -> InteractionLog:
        """Sort events given in any order by time and number their users.

        of_users   [U+1] the source's own numbers, the first of them 0 -> categories of these users
        of_events  categories of the events, in the order given
        """
        order = np.argsort(times, kind="stable")
        users, names = number_by_appearance(user_names[order])
        events = tuple(attribute.at(order) for attribute in of_events)
        return cls(
            users, items[order], times[order], values[order], liked[order], names, catalogue, of_users(names), events
        )

    def latest(self, events: int) -> InteractionLog:
        """The last events alone; what came before them is forgotten, as if the log had begun there."""
        kept = slice(max(0, len(self.times) - events), None)
        users, numbers = number_by_appearance(self.users[kept])
        return InteractionLog(
            users,
            self.items[kept],
            self.times[kept],
            self.values[kept],
            self.liked[kept],
            self.user_names[numbers],
            self.catalogue,
            tuple(attribute.at(numbers) for attribute in self.of_users),
            tuple(attribute.at(kept) for attribute in self.of_events),
        )

    def before(self, time: int) -> InteractionLog:
        """The log as it was known just before `time`."""
        stop = int(np.searchsorted(self.times, time, side="left"))
        users = self.users[:stop]
        known = slice(int(users.max(initial=0)) + 1)
        return InteractionLog(
            users,
            self.items[:stop],
            self.times[:stop],
            self.values[:stop],
            self.liked[:stop],
            self.user_names[known],
            self.catalogue,
            tuple(attribute.at(known) for attribute in self.of_users),
            tuple(attribute.at(slice(stop)) for attribute in self.of_events),
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
