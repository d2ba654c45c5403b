"""The features of a ranking row, computed from an interaction log as it stood strictly before the row's time.

| side | name | kind | content |
|---|---|---|---|
| context | `user_id` | id | the user |
| context | `history` | ids [20] | latest items met, newest first |
| context | `liked`, `disliked` | ids [20] | latest items liked, and met but not liked |
| context | `favourite_genres` | ids [3] | genres liked most often |
| context | `genre_taste` | dense [2G] | each genre's share of the past; how much more it is liked than average |
| context | `user_stats` | dense [6] | see `USER_STATS` |
| context | `hour`, `weekday` | id | UTC |
| candidate | `movie_id` | id | the item |
| candidate | `genres` | ids | its genres |
| candidate | `year` | id | its year |
| candidate | `item_stats` | dense [4] | see `ITEM_STATS` |

and one id per category that the source knows of users and events (context) or items (candidate).

All transforms are fixed (logarithms, smoothed means around the mean so far), so no statistic of the whole log is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rankhoist.lab.data.log import DAY, Attribute, FloatArray, IntArray, InteractionLog, day_of_week, hour_of_day
from rankhoist.lab.data.prior import PriorItems, PriorSums

Side = Literal["context", "candidate"]
Kind = Literal["id", "ids", "dense"]

HISTORY_LENGTH = 20
FAVOURITE_GENRES = 3
RECENT = 90 * DAY  # seconds
USER_PRIOR = 5.0  # events' worth of the overall mean mixed into a user's mean
ITEM_PRIOR = 10.0  # the same for an item
LOG_SCALE = 5.0  # brings logarithms of counts and days to about one
USER_STATS = ("log count", "mean value", "value deviation", "like rate", "log days idle", "log days known")
ITEM_STATS = ("log count", "log count of the last 90 days", "mean value", "like rate")


@dataclass(frozen=True)
class Feature:
    """One named input: int64 `[rows]` (id), int64 `[rows, T]` (ids), float32 `[rows, size]` or, of size 1, `[rows]`
    (dense).

    size        numbers in the vocabulary, the padding or unknown 0 included (id, ids); columns (dense)
    vocabulary  features of the same vocabulary number the same things; "" for dense
    varying     lists may have any length: here they are padded to one
    width       columns of its vector in a cross network, where the source says; 0: by the size of its vocabulary
    """

    name: str
    side: Side
    kind: Kind
    size: int
    vocabulary: str = ""
    varying: bool = False
    width: int = 0


def schema(log: InteractionLog) -> tuple[Feature, ...]:
    """The features in the order in which models concatenate them."""
    catalogue = log.catalogue
    items, genres = catalogue.size, len(catalogue.genre_names)
    return (
        Feature("user_id", "context", "id", len(log.user_names), "user", width=64),
        Feature("history", "context", "ids", items, "item", width=64),
        Feature("liked", "context", "ids", items, "item", width=64),
        Feature("disliked", "context", "ids", items, "item", width=64),
        Feature("favourite_genres", "context", "ids", genres, "genre", width=48),
        Feature("genre_taste", "context", "dense", 2 * (genres - 1)),
        Feature("user_stats", "context", "dense", len(USER_STATS)),
        Feature("hour", "context", "id", 24, "hour", width=32),
        Feature("weekday", "context", "id", 7, "weekday", width=32),
        *_categories("context", (*log.of_users, *log.of_events)),
        Feature("movie_id", "candidate", "id", items, "item", width=64),
        Feature("genres", "candidate", "ids", genres, "genre", width=48),
        Feature("year", "candidate", "id", int(_year_numbers(catalogue.years).max()) + 1, "year", width=16),
        Feature("item_stats", "candidate", "dense", len(ITEM_STATS)),
        *_categories("candidate", catalogue.attributes),
    )


class FeatureBuilder:
    """Answers "what are the features of this user, or item, at this moment?" for arrays of both."""

    def __init__(self, log: InteractionLog) -> None:
        self._catalogue = log.catalogue
        self._of_users = log.of_users
        self._years = _year_numbers(log.catalogue.years)
        self._genre_count = len(log.catalogue.genre_names) - 1
        outcomes = np.stack([np.ones(len(log.values)), log.values, log.liked, log.values**2], axis=1)
        genres = log.catalogue.genre_indicator()[log.items].astype(np.float64)
        by_genre = np.concatenate([genres, genres * log.liked[:, None]], axis=1)
        self._overall = PriorSums(np.zeros_like(log.users), log.times, outcomes)
        self._user_outcomes = PriorSums(log.users, log.times, outcomes)
        self._user_genres = PriorSums(log.users, log.times, by_genre)
        self._item_outcomes = PriorSums(log.items, log.times, outcomes)
        self._met = PriorItems(log.users, log.times, log.items)
        self._liked = _prior_items(log, log.liked)
        self._disliked = _prior_items(log, ~log.liked)

    def context(self, users: IntArray, times: IntArray) -> dict[str, Tensor]:
        """[Q] user numbers, [Q] seconds -> context features with Q rows, but for the categories of events."""
        genre_sums = self._user_genres.before(users, times)
        outcomes = self._user_outcomes.before(users, times)
        return {
            "user_id": torch.from_numpy(users.copy()),
            "history": torch.from_numpy(self._met.latest(users, times, HISTORY_LENGTH)),
            "liked": torch.from_numpy(self._liked.latest(users, times, HISTORY_LENGTH)),
            "disliked": torch.from_numpy(self._disliked.latest(users, times, HISTORY_LENGTH)),
            "favourite_genres": torch.from_numpy(_favourites(genre_sums[:, self._genre_count :])),
            "genre_taste": _dense(self._genre_taste(genre_sums, outcomes)),
            "user_stats": _dense(self._user_stats(outcomes, users, times)),
            "hour": torch.from_numpy(hour_of_day(times)),
            "weekday": torch.from_numpy(day_of_week(times)),
            **_numbers(self._of_users, users),
        }

    def candidate(self, items: IntArray, times: IntArray) -> dict[str, Tensor]:
        """[Q] item numbers, [Q] seconds -> candidate features with Q rows."""
        return {
            "movie_id": torch.from_numpy(items.copy()),
            "genres": torch.from_numpy(self._catalogue.genres[items]),
            "year": torch.from_numpy(self._years[items]),
            "item_stats": _dense(self._item_stats(items, times)),
            **_numbers(self._catalogue.attributes, items),
        }

    def popularity(self, time: int) -> FloatArray:
        """[I+1] events of every item before the time."""
        items = np.arange(self._catalogue.size)
        return self._item_outcomes.before(items, np.full_like(items, time))[:, 0]

    def items_met(self, user: int, time: int) -> IntArray:
        """The items one user met before the time, oldest first."""
        return self._met.all(user, time)

    def _overall_means(self, times: IntArray) -> tuple[FloatArray, FloatArray]:
        """[Q] mean value and [Q] like rate of the whole log so far."""
        count, value, liked, _ = self._overall.before(np.zeros_like(times), times).T
        events = np.maximum(count, 1.0)
        return value / events, liked / events

    def _user_stats(self, outcomes: FloatArray, users: IntArray, times: IntArray) -> FloatArray:
        count, value, liked, squares = outcomes.T
        mean_value, like_rate = self._overall_means(times)
        events = np.maximum(count, 1.0)
        variance = np.maximum(squares / events - (value / events) ** 2, 0.0)
        idle, known = self._met.age(users, times)
        columns = [
            np.log1p(count) / LOG_SCALE,
            _smoothed(value, count, mean_value, USER_PRIOR) - mean_value,
            np.sqrt(variance),
            _smoothed(liked, count, like_rate, USER_PRIOR) - 0.5,
            np.log1p(idle / DAY) / LOG_SCALE,
            np.log1p(known / DAY) / LOG_SCALE,
        ]
        return np.stack(columns, axis=1)

    def _genre_taste(self, genre_sums: FloatArray, outcomes: FloatArray) -> FloatArray:
        met, liked = genre_sums[:, : self._genre_count], genre_sums[:, self._genre_count :]
        events = np.maximum(outcomes[:, :1], 1.0)
        like_rate = outcomes[:, 2:3] / events
        lift = _smoothed(liked, met, like_rate, USER_PRIOR) - like_rate
        return np.concatenate([met / events, lift], axis=1)

    def _item_stats(self, items: IntArray, times: IntArray) -> FloatArray:
        outcomes = self._item_outcomes.before(items, times)
        count, value, liked, _ = outcomes.T
        recent = count - self._item_outcomes.before(items, times - RECENT)[:, 0]
        mean_value, like_rate = self._overall_means(times)
        columns = [
            np.log1p(count) / LOG_SCALE,
            np.log1p(recent) / LOG_SCALE,
            _smoothed(value, count, mean_value, ITEM_PRIOR) - mean_value,
            _smoothed(liked, count, like_rate, ITEM_PRIOR) - 0.5,
        ]
        return np.stack(columns, axis=1)


def _categories(side: Side, attributes: Sequence[Attribute]) -> list[Feature]:
    return [Feature(attribute.name, side, "id", attribute.size, attribute.name, width=16) for attribute in attributes]


def _numbers(attributes: Sequence[Attribute], rows: IntArray) -> dict[str, Tensor]:
    return {attribute.name: torch.from_numpy(attribute.numbers[rows]) for attribute in attributes}


def _prior_items(log: InteractionLog, chosen: npt.NDArray[np.bool_]) -> PriorItems:
    return PriorItems(log.users[chosen], log.times[chosen], log.items[chosen])


def _smoothed(total: FloatArray, count: FloatArray, mean: FloatArray, strength: float) -> FloatArray:
    """The mean `total / count`, pulled towards `mean` as if by `strength` further events."""
    return (total + strength * mean) / (count + strength)


def _favourites(liked: FloatArray) -> IntArray:
    """[Q, G] likes per genre -> [Q, FAVOURITE_GENRES] genre numbers, most liked first, 0 where there is none."""
    best = np.argsort(-liked, axis=1, kind="stable")[:, :FAVOURITE_GENRES]
    return np.where(np.take_along_axis(liked, best, axis=1) > 0, best + 1, 0)


def _year_numbers(years: IntArray) -> IntArray:
    """[I+1] years -> numbers counted from the earliest known year as 1; unknown stays 0."""
    known = years > 0
    earliest = int(years[known].min(initial=9999))
    return np.where(known, years - earliest + 1, 0)


def _dense(columns: FloatArray) -> Tensor:
    return torch.from_numpy(columns.astype(np.float32))
