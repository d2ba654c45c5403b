"""The data sets: features against a loop over the log, no leakage from the future, the known truth, real requests."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rankhoist.lab.data import DataError, InteractionLog, RankingData, generate_request_log, load_movielens
from rankhoist.lab.data.features import FAVOURITE_GENRES, HISTORY_LENGTH, FeatureBuilder
from rankhoist.lab.data.log import DAY, day_of_week, hour_of_day
from rankhoist.lab.data.request_log import BASE_RATE, WEEKEND, simulate

REAL_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "ml-latest-small"
GENRES = ["Action", "Comedy", "Drama", "Sci-Fi", "Western"]


def write_movielens(folder: Path, *, events: int = 300, seed: int = 0) -> Path:
    """A small folder in the published layout; many ratings share a timestamp, as in the real one."""
    rng = np.random.default_rng(seed)
    movies = [
        [10 * m, f"Movie, The Number {m} ({1980 + m})", "|".join(rng.choice(GENRES, 1 + m % 3, replace=False))]
        for m in range(1, 41)
    ]
    movies.append([999, "A Film Without Year", "(no genres listed)"])
    times = 1_000_000_000 + 40_000 * np.sort(rng.integers(0, events // 3, events))
    ratings = [
        [int(rng.integers(1, 9)) * 3, movies[int(rng.integers(len(movies)))][0], 0.5 * int(rng.integers(1, 11)), t]
        for t in times.tolist()
    ]
    rng.shuffle(ratings)
    write_csv(folder / "movies.csv", ["movieId", "title", "genres"], movies)
    write_csv(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], ratings)
    return folder


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def generated() -> RankingData:
    return generate_request_log(6000, seed=3, items=200, users=40)


@pytest.fixture(params=["generated", "movielens"])
def data(request: pytest.FixtureRequest, tmp_path: Path, generated: RankingData) -> RankingData:
    return generated if request.param == "generated" else load_movielens(write_movielens(tmp_path))


# --------------------------------------------------------------------------------------------------
# Features
# --------------------------------------------------------------------------------------------------


def test_features_have_the_shapes_of_the_schema(data):
    assert set(data.context) | set(data.candidate) == set(data.features)
    assert not set(data.context) & set(data.candidate)
    for feature in data.schema:
        value = data.features[feature.name]
        assert len(value) == len(data.labels)
        assert value.ndim == (1 if feature.kind == "id" else 2)
        if feature.kind == "dense":
            assert value.dtype == torch.float32 and value.shape[1] == feature.size
            assert value.isfinite().all() and value.abs().max() < 5
        else:
            assert value.dtype == torch.int64
            assert value.min() >= 0 and value.max() < feature.size
    sizes = {}
    for feature in data.schema:
        if feature.vocabulary:
            assert sizes.setdefault(feature.vocabulary, feature.size) == feature.size


def test_user_features_equal_a_loop_over_the_past(data):
    log = data.log
    for row in np.random.default_rng(0).integers(len(log.times), size=60).tolist():
        past = [e for e in range(len(log.times)) if log.users[e] == log.users[row] and log.times[e] < log.times[row]]
        past.reverse()
        lists = {
            "history": past,
            "liked": [e for e in past if log.liked[e]],
            "disliked": [e for e in past if not log.liked[e]],
        }
        for name, events in lists.items():
            items = log.items[events][:HISTORY_LENGTH].tolist()
            assert data.features[name][row].tolist() == items + [0] * (HISTORY_LENGTH - len(items))
        count, deviation, idle, known = (float(data.features["user_stats"][row, c]) for c in (0, 2, 4, 5))
        assert count == pytest.approx(np.log1p(len(past)) / 5, abs=1e-6)
        assert deviation == pytest.approx(log.values[past].std() if past else 0, abs=1e-5)
        ages = [(log.times[row] - log.times[e]) / DAY for e in past] or [0]
        assert (idle, known) == pytest.approx((np.log1p(ages[0]) / 5, np.log1p(ages[-1]) / 5), abs=1e-6)


def test_favourite_genres_and_shares_equal_a_loop(data):
    log, genres = data.log, data.log.catalogue.genres
    count = len(log.catalogue.genre_names) - 1
    for row in np.random.default_rng(1).integers(len(log.times), size=40).tolist():
        past = [e for e in range(len(log.times)) if log.users[e] == log.users[row] and log.times[e] < log.times[row]]
        met, liked = np.zeros(count), np.zeros(count)
        for e in past:
            for genre in genres[log.items[e]]:
                if genre:
                    met[genre - 1] += 1
                    liked[genre - 1] += log.liked[e]
        best = [g for g in np.argsort(-liked, kind="stable")[:FAVOURITE_GENRES] if liked[g]]
        favourites = data.features["favourite_genres"][row].tolist()
        assert favourites == [g + 1 for g in best] + [0] * (FAVOURITE_GENRES - len(best))
        shares = data.features["genre_taste"][row, :count].numpy()
        np.testing.assert_allclose(shares, met / max(len(past), 1), atol=1e-6)


def test_item_stats_equal_a_loop_over_the_past(data):
    log = data.log
    for row in np.random.default_rng(2).integers(len(log.times), size=60).tolist():
        before = log.times < log.times[row]
        own = before & (log.items == log.items[row])
        recent = own & (log.times >= log.times[row] - 90 * DAY)
        mean = log.values[before].mean() if before.any() else 0.0
        rate = log.liked[before].mean() if before.any() else 0.0
        expected = [
            np.log1p(own.sum()) / 5,
            np.log1p(recent.sum()) / 5,
            (log.values[own].sum() + 10 * mean) / (own.sum() + 10) - mean,
            (log.liked[own].sum() + 10 * rate) / (own.sum() + 10) - 0.5,
        ]
        np.testing.assert_allclose(data.features["item_stats"][row].numpy(), expected, atol=1e-6)


def test_hour_and_weekday_are_utc():
    tuesday = 1_700_000_000  # 2023-11-14 22:13:20 UTC
    assert hour_of_day(np.array([0, tuesday])).tolist() == [0, 22]
    assert day_of_week(np.array([0, tuesday, tuesday + 5 * DAY])).tolist() == [3, 1, 6]


# --------------------------------------------------------------------------------------------------
# No leakage from the future
# --------------------------------------------------------------------------------------------------


def test_forgetting_the_future_changes_no_feature(data):
    for row in np.linspace(1, len(data.labels) - 1, 7).astype(int).tolist():
        past = data.log.before(int(data.log.times[row]))
        builder = FeatureBuilder(past)
        features = builder.context(past.users, past.times) | builder.candidate(past.items, past.times)
        for name, value in features.items():
            assert torch.equal(value, data.features[name][: len(value)]), f"{name} before row {row}"


def test_a_shorter_file_gives_the_same_rows(tmp_path):
    whole = load_movielens(write_movielens(tmp_path))
    moment = int(whole.log.times[200])
    with (tmp_path / "ratings.csv").open(newline="") as file:
        header, *ratings = list(csv.reader(file))
    write_csv(tmp_path / "ratings.csv", header, [row for row in ratings if int(row[3]) < moment])
    shorter = load_movielens(tmp_path)
    assert 100 < len(shorter.labels) <= 200
    for name, value in shorter.features.items():
        assert torch.equal(value, whole.features[name][: len(value)]), name
    assert torch.equal(shorter.labels, whole.labels[: len(shorter.labels)])


def test_the_latest_rows_are_a_log_that_begins_there(tmp_path):
    folder = write_movielens(tmp_path)
    whole, cut = load_movielens(folder), load_movielens(folder, latest=100)
    assert len(cut.labels) == 100 and torch.equal(cut.labels, whole.labels[-100:])
    first = int(cut.log.times[0])
    with (folder / "ratings.csv").open(newline="") as file:
        header, *ratings = list(csv.reader(file))
    inside = [row for row in ratings if int(row[3]) > first]
    later = load_movielens(folder, latest=len(inside))
    write_csv(folder / "ratings.csv", header, inside)
    again = load_movielens(folder)
    assert all(torch.equal(value, later.features[name]) for name, value in again.features.items())
    assert again.log.user_names.tolist() == later.log.user_names.tolist()
    assert whole.log.latest(10**9).user_names.tolist() == whole.log.user_names.tolist()
    names = cut.log.user_names[cut.log.users]
    assert names.tolist() == whole.log.user_names[whole.log.users[-100:]].tolist()


def test_an_outcome_changes_no_feature_at_its_own_moment_but_later_ones(data):
    row = len(data.labels) // 2
    moment = data.log.times[row]
    changed = with_outcome(data.log, row)
    features = FeatureBuilder(changed).context(changed.users, changed.times)
    features |= FeatureBuilder(changed).candidate(changed.items, changed.times)
    until = int(np.searchsorted(data.log.times, moment, side="right"))
    differs = 0
    for name, value in features.items():
        assert torch.equal(value[:until], data.features[name][:until]), name
        differs += not torch.equal(value, data.features[name])
    assert differs >= 3  # lists and both kinds of statistics see it afterwards


def with_outcome(log: InteractionLog, row: int) -> InteractionLog:
    """The log with the other outcome in one row."""
    liked, values = log.liked.copy(), log.values.copy()
    liked[row] = ~liked[row]
    values[row] = 5.0 - values[row]
    return replace(log, liked=liked, values=values)


def test_split_is_by_time_and_keeps_moments_together(data):
    times = data.log.times
    assert (np.diff(times) >= 0).all()
    parts = [times[part] for part in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(times)
    assert parts[0].max() < parts[1].min() and parts[1].max() < parts[2].min()
    assert len(parts[0]) == pytest.approx(0.8 * len(times), rel=0.1)


# --------------------------------------------------------------------------------------------------
# The generated log
# --------------------------------------------------------------------------------------------------


def test_the_true_probability_is_a_function_of_the_features():
    log, probability, truth = simulate(6000, seed=3, items=200, users=40)
    data = RankingData.from_log("test", log, probability)
    users = log.user_names[data.features["user_id"].numpy()] - 1
    items, liked = data.features["movie_id"].numpy(), data.features["liked"].numpy()
    again = truth.probability(users, items, log.times, liked)
    np.testing.assert_allclose(data.true_probability.numpy(), again, rtol=1e-6)
    assert liked.any(axis=1).mean() > 0.9
    # The list matters, so the equality above says that the simulator and the features agree on it.
    assert np.abs(truth.probability(users, items, log.times, np.zeros_like(liked)) - again).mean() > 0.01


def test_clicks_follow_the_true_probability(generated):
    probability, labels = generated.true_probability.numpy(), generated.labels.numpy()
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        chosen = (probability >= low) & (probability < high)
        deviation = np.sqrt((probability * (1 - probability))[chosen].sum()) / chosen.sum()
        assert chosen.sum() > 200
        assert abs(labels[chosen].mean() - probability[chosen].mean()) < 4 * deviation


def test_the_third_order_term_flips_at_the_weekend():
    log, _, truth = simulate(500, seed=1, items=50, users=10)
    users, items = log.user_names[log.users] - 1, log.items
    no_clicks = np.zeros((len(users), HISTORY_LENGTH), dtype=np.int64)
    wednesday = np.full(len(users), 6 * DAY + 3600)
    weekday, weekend = (
        np.log(p / (1 - p)) for p in (truth.probability(users, items, wednesday + d * DAY, no_clicks) for d in (0, 3))
    )
    third = WEEKEND * truth.segment[users] * truth.family[items]
    np.testing.assert_allclose(weekend - weekday, 2 * third, atol=1e-9)
    assert {-1.0, 1.0} <= set((third / WEEKEND).tolist())
    assert abs(np.mean(weekday + third) - BASE_RATE) < 2


@pytest.mark.parametrize("order", ["third", "fourth"])
def test_interactions_of_higher_order_are_added_to_the_others(order):
    log, _, plain = simulate(2000, seed=1, items=50, users=10)
    truth = replace(plain, **{order: 0.5})
    users, items, no_clicks = log.user_names[log.users] - 1, log.items, np.zeros((len(log.users), 20), dtype=np.int64)
    with_it, without = (np.log(p / (1 - p)) for p in (t.probability(users, items, log.times, no_clicks)
                                                      for t in (truth, plain)))  # fmt: skip
    taste, daypart, mixture = plain.taste[users], plain.daypart[hour_of_day(log.times)], plain.mixture[items]
    expected = {
        "third": np.einsum("eg,eg,eg->e", taste, daypart, mixture),
        "fourth": np.einsum("eg,eg,eh,eh->e", taste, mixture, daypart, mixture),
    }
    np.testing.assert_allclose(with_it - without, 0.5 * expected[order] / (1.1 * 0.5), atol=1e-9)
    assert 0.2 < (with_it - without).std() < 1.0


def test_without_higher_orders_the_log_is_what_it_was():
    log = generate_request_log(3000, seed=2, items=60, users=15)
    digest = hashlib.sha256(log.labels.numpy().tobytes() + log.features["movie_id"].numpy().tobytes()).hexdigest()
    assert digest.startswith("7e6d41921b17b317")
    assert generate_request_log(3000, seed=2, items=60, users=15, third=1.0).source == "request log, seed 2, third 1"


def test_a_page_shows_no_item_twice_and_rows_are_exact():
    for rows in (1, 997, 2000):
        log, probability, _ = simulate(rows, seed=0, items=37, users=7, page=8)
        assert len(log.items) == len(probability) == rows
        assert log.items.min() >= 1 and log.items.max() <= 37
        pages = np.stack([log.users, log.times, log.items], axis=1)
        assert len(np.unique(pages, axis=0)) == rows


def test_the_seed_decides_everything():
    first, same, other = (generate_request_log(2000, seed=seed, items=100, users=20) for seed in (5, 5, 6))
    assert all(torch.equal(first.features[name], same.features[name]) for name in first.features)
    assert torch.equal(first.labels, same.labels)
    assert first.log.catalogue.titles == same.log.catalogue.titles
    assert not torch.equal(first.labels, other.labels)


def test_titles_are_different_and_readable():
    titles = simulate(100, seed=0, items=20_000, users=5)[0].catalogue.titles[1:]
    assert len(set(titles)) == len(titles) == 20_000
    assert all(title[-6] == "(" and title[-5:-1].isdigit() and len(title) < 60 for title in titles)


@pytest.mark.parametrize("sizes", [{"rows": 0}, {"users": 0}, {"items": 5}, {"page": 0}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(DataError, match="request log of"):
        simulate(**{"rows": 100, "seed": 0, "items": 50, "users": 5} | sizes)


# --------------------------------------------------------------------------------------------------
# Requests
# --------------------------------------------------------------------------------------------------


def test_a_request_is_the_row_and_other_candidates_of_its_moment(data):
    row = data.draw_row(seed=4)
    request = data.request(row, 12)
    assert data.test.start <= row < data.test.stop
    assert set(request.context) == set(data.context) and set(request.candidates) == set(data.candidate)
    assert all(len(value) == 1 for value in request.context.values())
    assert all(len(value) == 12 for value in request.candidates.values())
    for name, value in data.rows(slice(row, row + 1)).items():
        assert torch.equal(request.rows()[name][:1], value), name
    assert request.titles[0] == data.log.catalogue.titles[data.log.items[row]]
    assert len(set(request.titles)) == 12 and "" not in request.titles
    assert request.user == data.log.user_names[data.log.users[row]]
    seen = {int(item) for item in data.features["history"][row] if item}
    assert seen and not seen & set(request.items.tolist()[1:])
    popularity = request.candidates["item_stats"][1:, 0]
    assert (popularity.diff() <= 0).all()


def test_the_candidates_of_a_request_have_the_features_of_their_moment(data):
    row = data.draw_row(seed=1)
    request = data.request(row, data.choices(row))
    before = data.log.times < request.time
    counts = [np.log1p((data.log.items[before] == item).sum()) / 5 for item in request.items.tolist()]
    np.testing.assert_allclose(request.candidates["item_stats"][:, 0].numpy(), counts, atol=1e-6)
    assert torch.equal(request.candidates["movie_id"], request.items)


def test_a_request_asks_for_what_there_is(data):
    row = data.draw_row()
    most = data.choices(row)
    assert len(data.request(row, most).titles) == most
    for n in (0, most + 1):
        with pytest.raises(DataError, match=f"request for {n} candidates"):
            data.request(row, n)
    with pytest.raises(DataError, match="the data set has rows 0 to"):
        data.request(len(data.labels))


def test_drawn_rows_have_full_histories(generated):
    rows = {generated.draw_row(seed) for seed in range(20)}
    assert len(rows) > 10
    assert all((generated.features["history"][row] > 0).all() for row in rows)


def test_too_few_events_cannot_be_split():
    with pytest.raises(DataError, match="too few"):
        generate_request_log(10, users=1, items=20)


# --------------------------------------------------------------------------------------------------
# MovieLens folders
# --------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_written(tmp_path):
    write_csv(tmp_path / "movies.csv", ["movieId", "title", "genres"], [
        [7, "Seven, Or So (1995)", "Drama|Comedy"],
        [9, "A Series (2007-)", "(no genres listed)"],
        [4, "Another (1975-1979)", "Comedy"],
        [5, "No Year", "Drama"],
    ])  # fmt: skip
    ratings = [[20, 9, 4.0, 500], [30, 7, 3.5, 400], [30, 4, 5.0, 900], [20, 5, 0.5, 600], [20, 9, 4.5, 1000]]
    later = [[20, 7, 1.0, 2000 + i] for i in range(20)]
    write_csv(tmp_path / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], ratings * 4 + later)
    data = load_movielens(tmp_path)
    catalogue = data.log.catalogue
    assert catalogue.titles == ("", "Seven, Or So (1995)", "A Series (2007-)", "Another (1975-1979)", "No Year")
    assert catalogue.years.tolist() == [0, 1995, 2007, 1975, 0]
    assert catalogue.genre_names == ("", "Comedy", "Drama")
    assert catalogue.genres.tolist() == [[0, 0], [2, 1], [0, 0], [1, 0], [2, 0]]
    assert data.log.user_names.tolist() == [0, 30, 20]
    assert data.log.users[:20:4].tolist() == [1, 2, 2, 1, 2]
    assert data.log.times[:20:4].tolist() == [400, 500, 600, 900, 1000]
    assert data.log.items[:20:4].tolist() == [1, 2, 4, 3, 2]
    assert data.labels[:20:4].tolist() == [0, 1, 0, 1, 1]
    assert data.features["year"][:20:4].tolist() == [21, 33, 0, 1, 33]


def test_the_layout_of_ml_1m_gives_the_same_data(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    modern = load_movielens(write_movielens(tmp_path))
    for name in ("movies", "ratings"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        lines = "".join("::".join(row).replace("Movie", "Film\xe9") + "\n" for row in rows)
        (old / f"{name}.dat").write_bytes(lines.encode("latin-1"))
    data = load_movielens(old)
    assert all(torch.equal(value, modern.features[name]) for name, value in data.features.items())
    assert data.log.catalogue.titles[1] == "Film\xe9, The Number 1 (1981)"


def test_the_users_of_ml_1m_are_context(tmp_path):
    (tmp_path / "movies.dat").write_text("1::A (1990)::Drama\n2::B (1991)::Drama|Comedy\n")
    ratings = "".join(f"{1 + k % 3}::{1 + k % 2}::{1 + k % 5}::{1000 + k}\n" for k in range(60))
    (tmp_path / "ratings.dat").write_text(ratings)
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n3::M::25::15::55117\n")
    data = load_movielens(tmp_path)
    assert data.context[-3:] == ("gender", "age", "occupation")
    assert data.features["gender"][:6].tolist() == [1, 0, 2, 1, 0, 2]  # user 2 is not in the file
    assert data.features["age"][:3].tolist() == data.features["occupation"][:3].tolist() == [1, 0, 2]
    (tmp_path / "users.dat").write_text("1::F::1::48067\n")
    with pytest.raises(DataError, match=r"users\.dat, line 1: expected userId, gender, age, occupation and zip code"):
        load_movielens(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "text", "problem"),
    [
        ("ratings", 5, "3,10,four,1000000000", "expected userId, movieId, rating and timestamp"),
        ("ratings", 2, "3,10,4.0", "expected userId, movieId, rating and timestamp"),
        ("ratings", 4, "3,10,4.0,1000000000,1", "expected userId, movieId, rating and timestamp"),
        ("ratings", 4, "", "expected userId, movieId, rating and timestamp"),
        ("ratings", 7, "3,10,7.5,1000000000", "a rating must be above 0 and at most 5"),
        ("ratings", 7, "3,10,nan,1000000000", "a rating must be above 0 and at most 5"),
        ("ratings", 7, "3,10,4.0,nan", "must be whole numbers"),
        ("ratings", 8, "3,10.5,4.0,1000000000", "must be whole numbers"),
        ("ratings", 8, "-3,10,4.0,1000000000", "must be whole numbers"),
        ("ratings", 9, "3,12345,4.0,1000000000", "movie 12345 is not in movies.csv"),
        ("movies", 3, "x,Title (1990),Drama", "expected movieId, title and genres"),
        ("movies", 3, "77,Title (1990)", "expected movieId, title and genres"),
        ("movies", 3, "", "expected movieId, title and genres"),
        ("movies", 6, "10,Title (1990),Drama", "movie 10 appears a second time"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, file, line, text, problem):
    path = write_movielens(tmp_path) / f"{file}.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem) as caught:
        load_movielens(tmp_path)
    assert f"{file}.csv, line {line}:" in str(caught.value)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_movielens(tmp_path / "absent")
    with pytest.raises(DataError, match="found nothing"):
        load_movielens(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(DataError, match=r"found ratings\.csv"):
        load_movielens(tmp_path)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A (1990),Drama\n")
    with pytest.raises(DataError, match=r"ratings\.csv: no rows"):
        load_movielens(tmp_path)
    (tmp_path / "movies.csv").write_bytes(b"movieId,title,genres\n1,A \xff (1990),Drama\n")
    with pytest.raises(DataError, match="not utf-8"):
        load_movielens(tmp_path)


@pytest.mark.skipif(not REAL_FOLDER.is_dir(), reason="needs a copy of ml-latest-small in ../shared/data")
def test_the_published_folder():
    data = load_movielens(REAL_FOLDER)
    assert (len(data.labels), data.log.catalogue.size - 1, len(data.log.user_names) - 1) == (100_004, 9125, 671)
    past = data.log.before(int(data.log.times[60_000]))
    builder = FeatureBuilder(past)
    features = builder.context(past.users, past.times) | builder.candidate(past.items, past.times)
    assert all(torch.equal(value, data.features[name][: len(value)]) for name, value in features.items())
    titles = data.request(data.draw_row(), 1000).titles
    assert len(set(titles)) > 990 and "Forrest Gump (1994)" in titles
