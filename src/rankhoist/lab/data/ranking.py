"""A ranking data set: named feature rows in time order, their labels, and real requests drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankhoist.lab.data.features import Feature, FeatureBuilder, schema
from rankhoist.lab.data.log import DataError, FloatArray, IntArray, InteractionLog

TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.1

Features = dict[str, Tensor]


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


@dataclass(frozen=True)
class RankingData:
    """E rows in time order; row = one (context, candidate) pair.

    features          name -> [E, ...], see `features.py`
    labels            [E] float32, 1 = liked
    true_probability  [E] float32 probability of the label, where the source knows it
    train, validation, test   consecutive row ranges; no moment lies in two of them
    """

    source: str
    log: InteractionLog
    builder: FeatureBuilder
    schema: tuple[Feature, ...]
    features: Features
    labels: Tensor
    train: slice
    validation: slice
    test: slice
    true_probability: Tensor | None = None

    @classmethod
    def from_log(cls, source: str, log: InteractionLog, true_probability: FloatArray | None = None) -> RankingData:
        """Compute the features of every event and split the rows by time."""
        builder = FeatureBuilder(log)
        features = builder.context(log.users, log.times) | builder.candidate(log.items, log.times)
        features |= {attribute.name: torch.from_numpy(attribute.numbers) for attribute in log.of_events}
        train, validation, test = split_by_time(log.times)
        truth = None if true_probability is None else torch.from_numpy(true_probability.astype(np.float32))
        labels = torch.from_numpy(log.liked.astype(np.float32))
        return cls(source, log, builder, schema(log), features, labels, train, validation, test, truth)

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the context features."""
        return tuple(feature.name for feature in self.schema if feature.side == "context")

    @property
    def candidate(self) -> tuple[str, ...]:
        """Names of the candidate features."""
        return tuple(feature.name for feature in self.schema if feature.side == "candidate")

    @property
    def request_offsets(self) -> Tensor:
        """`[R + 1]`: where rows of one user at one moment, which are one request, begin and end."""
        users, times = self.log.users, self.log.times
        first = np.flatnonzero((np.diff(users) != 0) | (np.diff(times) != 0)) + 1
        return torch.from_numpy(np.concatenate([[0], first, [len(users)]]))

    def rows(self, index: slice | Tensor) -> Features:
        """The features of some rows."""
        return {name: value[index] for name, value in self.features.items()}

    def example(self, rows: int = 8) -> Features:
        """The last `rows` rows, which keep no others in memory: real values for tracing a model."""
        return {name: value.clone() for name, value in self.rows(slice(len(self.labels) - rows, None)).items()}

    def made_up(self, rows: int = 8) -> Features:
        """Rows that are nobody's, for files that others get: ids of the vocabularies, dense values from 0 to 1."""
        generator = torch.Generator().manual_seed(0)

        def drawn(feature: Feature) -> Tensor:
            shape = (rows, *self.features[feature.name].shape[1:])
            if feature.kind == "dense":
                return torch.rand(shape, generator=generator)
            return torch.randint(feature.size, shape, generator=generator)

        return {feature.name: drawn(feature) for feature in self.schema}

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
