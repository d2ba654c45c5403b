"""A seeded request log of any size whose true click probability is known.

Users open pages of `page` different items; each item is clicked or not. The log-odds of a click are a sum of terms of
known order, over things that the features show (s below is the mean genre mixture of the user's last 20 clicked items):

| order | term |
|---|---|
| 1 | item quality, user activity, novelty of the year |
| 2 | user x genre: `<taste[user], mixture[item]>`, taste of low rank |
| 2 | hour x genre: `<daypart[hour], mixture[item]>` |
| 2 | history x genre: `<s, mixture[item]>`, centred |
| 3 | weekend x user segment x item family: `weekend[day] * segment[user] * family[item]` |
| 3 | user x hour x genre: `third * <taste[user] * daypart[hour], mixture[item]>`; none unless asked for |
| 4 | user x genre x hour x genre: `fourth *` the taste term `*` the hour term; none unless asked for |

The last two tell cross networks apart. The third-order one needs the product of two context features, which a network
without a context stream never forms. The fourth-order one is a product of two context-candidate pairs: DCNv2 forms it
by letting the context read the candidate, which is what rDCN drops.

The history is the simulated one: what a user clicked on earlier pages changes what they click on later ones. The
probability is therefore a function of the row's own features, so its AUC is the best that any model can reach (Bayes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankhoist.lab.data.features import HISTORY_LENGTH
from rankhoist.lab.data.log import (
    DAY,
    HOUR,
    Catalogue,
    DataError,
    FloatArray,
    IntArray,
    InteractionLog,
    day_of_week,
    hour_of_day,
    pad_lists,
)
from rankhoist.lab.data.ranking import RankingData
from rankhoist.lab.data.titles import make_titles

GENRES = (
    "Action Adventure Animation Children Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
START = 1_704_067_200  # 2024-01-01 00:00 UTC
FIRST_YEAR, LAST_YEAR = 1960, 2023
EVENTS_PER_USER = 300

# Strength of each term in log-odds. Over the rows of the default log the terms' standard deviations come to 0.7, 0.4
# and 0.2 (first order), 1.1 (taste) and 0.5 (each of the others).
BASE_RATE = -1.0
QUALITY, ACTIVITY, NOVELTY = 0.7, 0.4, 0.25
TASTE, DAYPART, HISTORY, WEEKEND = 1.1, 0.5, 1.4, 0.6


@dataclass(frozen=True)
class GroundTruth:
    """The parameters behind the clicks; users are 0..U-1, items 1..I (row 0 is padding).

    quality, novelty, family [I+1]; mixture [I+1, G], each row of length 1; activity, segment [U]; taste [U, G];
    daypart [24, G]; third, fourth: about the standard deviation in log-odds of the terms of that name
    """

    quality: FloatArray
    novelty: FloatArray
    family: FloatArray
    mixture: FloatArray
    activity: FloatArray
    segment: FloatArray
    taste: FloatArray
    daypart: FloatArray
    third: float = 0.0
    fourth: float = 0.0

    def probability(self, users: IntArray, items: IntArray, times: IntArray, clicked: IntArray) -> FloatArray:
        """[Q] users, items and times, [Q, 20] last clicked items padded with 0 -> [Q] click probability."""
        mixture = self.mixture[items]
        first = self.quality[items] + self.novelty[items] + self.activity[users]
        taste = (self.taste[users] * mixture).sum(axis=1)
        daypart = (self.daypart[hour_of_day(times)] * mixture).sum(axis=1)
        weekend = np.where(day_of_week(times) >= 5, 1.0, -1.0)
        family = weekend * self.segment[users] * self.family[items]
        history = self._history(mixture, clicked)
        log_odds: FloatArray = BASE_RATE + first + taste + daypart + HISTORY * history + WEEKEND * family
        if self.third or self.fourth:
            timed = (self.taste[users] * self.daypart[hour_of_day(times)] * mixture).sum(axis=1)
            log_odds = log_odds + (self.third * timed + self.fourth * taste * daypart) / (TASTE * DAYPART)
        return 1.0 / (1.0 + np.exp(-log_odds))

    def _history(self, mixture: FloatArray, clicked: IntArray) -> FloatArray:
        """[Q] likeness of an item to the clicked ones, 0 for an average item or an empty history."""
        count = (clicked > 0).sum(axis=1)
        mean = self.mixture[clicked].sum(axis=1) / np.maximum(count, 1)[:, None]
        average = self.mixture[1:].mean(axis=0)
        likeness = ((mean - average) * (mixture - average)).sum(axis=1)
        return np.where(count > 0, 4.0 * likeness, 0.0)


def generate_request_log(
    rows: int = 120_000,
    *,
    seed: int = 0,
    items: int = 3000,
    users: int | None = None,
    page: int = 10,
    third: float = 0.0,
    fourth: float = 0.0,
) -> RankingData:
    """Simulate `rows` impressions of `items` items over at least 120 days; `users` defaults to rows / 300.

    third, fourth  strength of the interactions of that order which are none unless asked for, in log-odds
    """
    log, probability, _ = simulate(rows, seed=seed, items=items, users=users, page=page, third=third, fourth=fourth)
    orders = "".join(f", {name} {value:g}" for name, value in (("third", third), ("fourth", fourth)) if value)
    return RankingData.from_log(f"request log, seed {seed}{orders}", log, probability)


def simulate(
    rows: int,
    *,
    seed: int,
    items: int,
    users: int | None = None,
    page: int = 10,
    third: float = 0.0,
    fourth: float = 0.0,
) -> tuple[InteractionLog, FloatArray, GroundTruth]:
    """The log, the true probability of each event, and the truth; `log.user_names` is the truth's user + 1."""
    users = max(1, rows // EVENTS_PER_USER) if users is None else users
    if min(rows, users, page) < 1 or items < page:
        raise DataError(
            f"request log of {rows} rows, {users} users, {items} items and pages of {page} items: "
            "all must be at least 1, and a page cannot hold more items than there are"
        )
    rng = np.random.default_rng(seed)
    catalogue = _make_catalogue(items, rng, seed)
    truth = replace(_make_truth(catalogue, users, rng), third=third, fourth=fourth)
    pages = -(-rows // (users * page))
    everyone = np.arange(users)
    clicked = np.zeros((users, HISTORY_LENGTH), dtype=np.int64)
    steps = []
    for times in _page_times(users, pages, rng).T:
        shown = _draw_page(users, items, page, rng)
        repeated = [np.repeat(column, page, axis=0) for column in (everyone, times, clicked)]
        probability = truth.probability(repeated[0], shown.ravel(), repeated[1], repeated[2])
        clicks = rng.random(len(probability)) < probability
        steps.append((repeated[0] + 1, shown.ravel(), repeated[1], clicks, probability))
        clicked = _push_clicks(clicked, np.where(clicks.reshape(users, page), shown, 0))
    columns = (np.concatenate(column) for column in zip(*steps, strict=True))
    names, shown_items, moments, outcome, probability = columns
    # Sorting here, the way the log does, keeps the probabilities beside their events and cuts the latest pages.
    order = np.argsort(moments, kind="stable")[:rows]
    values = outcome[order].astype(np.float64)
    log = InteractionLog.from_events(
        names[order], shown_items[order], moments[order], values, outcome[order], catalogue
    )
    return log, probability[order], truth


def _make_catalogue(items: int, rng: np.random.Generator, seed: int) -> Catalogue:
    """Items of one to three genres, common genres first."""
    share = 1.0 / (4.0 + np.arange(len(GENRES)))
    share = rng.permutation(share / share.sum())
    # The k largest of log(share) + Gumbel noise are k draws without replacement.
    ranked = np.argsort(-(np.log(share) + rng.gumbel(size=(items, len(GENRES)))), axis=1)
    how_many = rng.choice([1, 2, 3], size=items, p=[0.4, 0.4, 0.2])
    genres = [sorted(int(genre) + 1 for genre in row[:k]) for row, k in zip(ranked, how_many, strict=True)]
    years = LAST_YEAR - np.floor((LAST_YEAR - FIRST_YEAR + 1) * rng.beta(1.0, 2.5, size=items)).astype(np.int64)
    titles = make_titles(items, years.tolist(), seed)
    return Catalogue(("", *titles), np.concatenate([[0], years]), pad_lists([[], *genres]), ("", *GENRES))


def _make_truth(catalogue: Catalogue, users: int, rng: np.random.Generator) -> GroundTruth:
    indicator = catalogue.genre_indicator().astype(np.float64)
    genres = indicator.shape[1]
    mixture = indicator / np.sqrt(np.maximum(indicator.sum(axis=1, keepdims=True), 1.0))
    age = (LAST_YEAR - catalogue.years) / (LAST_YEAR - FIRST_YEAR)
    family = np.where(rng.random(genres) < 0.5, 1.0, -1.0)
    return GroundTruth(
        quality=QUALITY * rng.normal(size=catalogue.size),
        novelty=NOVELTY * (1.0 - 4.0 * age),
        family=np.sign(mixture @ family),
        mixture=mixture,
        activity=ACTIVITY * rng.normal(size=users),
        segment=np.where(rng.random(users) < 0.5, 1.0, -1.0),
        taste=TASTE * rng.normal(size=(users, 4)) @ rng.normal(size=(4, genres)) / 2.0,
        daypart=_make_dayparts(genres, rng),
    )


def _make_dayparts(genres: int, rng: np.random.Generator) -> FloatArray:
    """[24, G] a smooth daily curve per genre: one wave with a random peak."""
    peak = rng.uniform(0, 24, size=genres)
    strength = DAYPART * rng.uniform(0.7, 2.0, size=genres)
    return strength * np.cos(2 * np.pi * (np.arange(24)[:, None] - peak) / 24)


def _page_times(users: int, pages: int, rng: np.random.Generator) -> IntArray:
    """[U, pages] seconds, rising along each row: one page on a day, mostly in the evening."""
    days = max(120, 2 * pages)
    day = np.sort(np.argsort(rng.random((users, days)), axis=1)[:, :pages], axis=1)
    weight = 1.2 + np.cos(2 * np.pi * (np.arange(24) - 20) / 24)
    hour = rng.choice(24, size=(users, pages), p=weight / weight.sum())
    return START + day * DAY + hour * HOUR + rng.integers(0, HOUR, size=(users, pages))


def _draw_page(users: int, items: int, page: int, rng: np.random.Generator) -> IntArray:
    """[U, page] different item numbers, low numbers more often.

    Slot j takes its item from those equal to j modulo the page size, so no page shows an item twice.
    """
    slots = np.arange(page)
    per_slot = (items - slots + page - 1) // page
    skewed = rng.random((users, page)) ** 3
    return 1 + slots + page * np.floor(skewed * per_slot).astype(np.int64)


def _push_clicks(clicked: IntArray, new: IntArray) -> IntArray:
    """Put the [U, page] new clicks (0 = none, later slots newer) in front of the [U, 20] earlier ones."""
    both = np.concatenate([new[:, ::-1], clicked], axis=1)
    order = np.argsort(both == 0, axis=1, kind="stable")[:, : clicked.shape[1]]
    return np.take_along_axis(both, order, axis=1)
