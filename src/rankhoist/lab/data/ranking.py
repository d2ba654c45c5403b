"""A ranking data set: named feature rows in time order, their labels, and real requests drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankhoist.lab.data.features import FeatureBuilder, schema
from rankhoist.lab.data.labelled import TRAIN_SHARE, VALIDATION_SHARE, Features, LabelledRows
from rankhoist.lab.data.log import DataError, FloatArray, IntArray, InteractionLog


@dataclass(frozen=True)
class Request:
    """One user at one moment, and the candidates to rank for them.

    context     context features, 1 row each
    candidates  candidate features, n rows each
    items       [n] item numbers of the candidates
    titles      n titles
    user        the source's own number of the user
    time        seconds since 1970-01-01 UTC
    """

    context: Features
    candidates: Features
    items: Tensor
    titles: tuple[str, ...]
    user: int
    time: int

    def rows(self) -> Features:
        """All features with n rows, the context repeated: what the plain model takes."""
        n = len(self.items)
        repeated = {name: value.expand(n, *value.shape[1:]) for name, value in self.context.items()}
        return repeated | self.candidates


@dataclass(frozen=True, kw_only=True)
class RankingData(LabelledRows):
    """Rows of an interaction log in time order, and what it takes to draw real requests from it.

    features   see `features.py`
    labels     1 = liked
    train, validation, test   no moment lies in two of them
    """

    log: InteractionLog
    builder: FeatureBuilder

    @classmethod
    def from_log(cls, source: str, log: InteractionLog, true_probability: FloatArray | None = None) -> RankingData:
        """Compute the features of every event and split the rows by time."""
        builder = FeatureBuilder(log)
        features = builder.context(log.users, log.times) | builder.candidate(log.items, log.times)
        features |= {attribute.name: torch.from_numpy(attribute.numbers) for attribute in log.of_events}
        train, validation, test = split_by_time(log.times)
        truth = None if true_probability is None else torch.from_numpy(true_probability.astype(np.float32))
        labels = torch.from_numpy(log.liked.astype(np.float32))
        first = np.flatnonzero((np.diff(log.users) != 0) | (np.diff(log.times) != 0)) + 1  # of a user at a moment
        offsets = torch.from_numpy(np.concatenate([[0], first, [len(log.users)]]))
        return cls(
            source=source, schema=schema(log), features=features, labels=labels, request_offsets=offsets, train=train,
            validation=validation, test=test, true_probability=truth, log=log, builder=builder,
        )  # fmt: skip

    def draw_row(self, seed: int = 0) -> int:
        """A random test row whose user has a full history, if any has; else any test row."""
        start, stop, _ = self.test.indices(len(self.labels))
        full = (self.features["history"][start:stop] > 0).all(dim=1).nonzero()[:, 0]
        rows = full if len(full) else torch.arange(stop - start)
        pick = np.random.default_rng(seed).integers(len(rows))
        return start + int(rows[pick])

    def choices(self, row: int) -> int:
        """The most candidates that `request` can offer at a row."""
        return len(self._unseen(*self._moment(row))) + 1

    def request(self, row: int, n: int = 1000) -> Request:
        """The row's user at the row's moment, with the row's own item and the n - 1 most popular unseen items.

        Popularity and every feature are as of just before that moment. The row's own item is candidate 0.
        """
        user, time, own = self._moment(row)
        ranked = self._unseen(user, time, own)
        if not 1 <= n <= len(ranked) + 1:
            raise DataError(
                f"request for {n} candidates: row {row} has 1 to {len(ranked) + 1} to choose from; "
                "see `choices`, or use a larger catalogue"
            )
        items = np.concatenate([[own], ranked[: n - 1]]).astype(np.int64)
        return Request(
            context={name: self.features[name][row : row + 1] for name in self.context},
            candidates=self.builder.candidate(items, np.full_like(items, time)),
            items=torch.from_numpy(items),
            titles=tuple(self.log.catalogue.titles[item] for item in items),
            user=int(self.log.user_names[user]),
            time=time,
        )

    def _moment(self, row: int) -> tuple[int, int, int]:
        """User number, time and item number of a row."""
        if not 0 <= row < len(self.labels):
            raise DataError(f"request for row {row}: the data set has rows 0 to {len(self.labels) - 1}")
        return int(self.log.users[row]), int(self.log.times[row]), int(self.log.items[row])

    def _unseen(self, user: int, time: int, own: int) -> IntArray:
        """Numbers of the items, other than `own`, that the user has not met, by falling popularity."""
        popularity = self.builder.popularity(time)
        popularity[np.append(self.builder.items_met(user, time), [0, own])] = -1.0
        return np.argsort(-popularity, kind="stable")[: int((popularity >= 0).sum())]


def split_by_time(times: IntArray) -> tuple[slice, slice, slice]:
    """[E] non-decreasing times -> train, validation and test rows; events of one moment stay together."""
    rows = len(times)
    if rows == 0:
        raise DataError("a data set without events cannot be split")
    wanted = [int(rows * TRAIN_SHARE), int(rows * (TRAIN_SHARE + VALIDATION_SHARE))]
    first, second = (int(np.searchsorted(times, times[position], side="left")) for position in wanted)
    parts = slice(0, first), slice(first, second), slice(second, rows)
    if any(part.start == part.stop for part in parts):
        raise DataError(f"{rows} events at {len(np.unique(times))} moments are too few to split by time")
    return parts
