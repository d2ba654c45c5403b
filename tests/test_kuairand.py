"""KuaiRand folders: a small one in the published layout, read as written; malformed ones named by file and line."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from rankhoist.lab.data import DataError, load_folder, load_kuairand
from rankhoist.lab.data.features import FeatureBuilder

LOG = (
    "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
).split()
USERS = (
    "user_id user_active_degree is_lowactive_period is_live_streamer is_video_author follow_user_num "
    "follow_user_num_range fans_user_num fans_user_num_range friend_user_num friend_user_num_range register_days "
    "register_days_range"
).split() + [f"onehot_feat{n}" for n in range(18)]
VIDEOS = (
    "video_id author_id video_type upload_dt upload_type visible_status video_duration server_width server_height "
    "music_id music_type tag"
).split()
START = 1_649_347_200_000  # 2022-04-07 16:00 UTC: midnight of 8 April in Beijing


def write(folder: Path, *, events: int = 300, seed: int = 0) -> Path:
    """KuaiRand-Pure: two standard logs, a random one that is not read, users, videos and their statistics."""
    rng = np.random.default_rng(seed)
    data = folder / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    times = START + 3_600_000 * np.sort(rng.integers(0, 500, events)) + rng.integers(0, 1000, events)
    rows = [log_row(int(rng.integers(6)), 10 + int(rng.integers(30)), int(t), int(rng.integers(2)), k % 15)
            for k, t in enumerate(times.tolist())]  # fmt: skip
    half = events // 2
    for name, part in (("4_08_to_4_21", rows[:half]), ("4_22_to_5_08", rows[half:])):
        write_csv(data / f"log_standard_{name}_pure.csv", LOG, part)
    write_csv(data / "log_random_4_22_to_5_08_pure.csv", LOG, [log_row(0, 999, START, 1, 1)])
    degrees = ["full_active", "high_active", "UNKNOWN"]
    users = [[u, degrees[u % 3], 0, u % 2, 1, 5, "(0,10]", 312, "[100,1k)", 0, "0", 3624, "730+", *range(18)]
             for u in range(6)]  # fmt: skip
    write_csv(data / "user_features_pure.csv", USERS, users)
    videos = [[v, 400 + v % 7, "AD" if v == 12 else "NORMAL", "" if v == 13 else "2022-03-08", "ShortImport", 1,
               "" if v == 11 else 17200.0, 720, 1280, 989206467, 9, "" if v == 14 else f"{v % 5},65"]
              for v in range(10, 60)]  # fmt: skip
    write_csv(data / "video_features_basic_pure.csv", VIDEOS, videos)
    write_csv(data / "video_features_statistic_pure.csv", ["video_id", "counts"], [[10, 66]])
    return data.parent


def log_row(user: int, video: int, time: int, click: int, tab: int) -> list[object]:
    return [user, video, 20220408, 1600, time, click, 0, 0, 0, 0, 0, click, 175045, 87433, 0, 0, 0, 0, tab]


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def test_a_folder_is_read_as_written(tmp_path):
    data = load_folder(write(tmp_path))
    log, catalogue = data.log, data.log.catalogue
    assert data.source == "KuaiRand, KuaiRand-Pure" and len(data.labels) == 300
    with (tmp_path / "KuaiRand-Pure" / "data" / "log_standard_4_08_to_4_21_pure.csv").open(newline="") as file:
        first = min(csv.DictReader(file), key=lambda row: int(row["time_ms"]))
    assert log.user_names[log.users[0]] == int(first["user_id"]) and log.times[0] == int(first["time_ms"]) // 1000
    assert catalogue.titles[log.items[0]] == f"video {first['video_id']}"
    assert data.labels[0] == float(first["is_click"])
    assert data.features["tab"][0] == int(first["tab"]) + 1
    assert catalogue.titles[:3] == ("", "video 10", "video 11") and catalogue.size == 51
    assert catalogue.years[:5].tolist() == [0, 2022, 2022, 2022, 0]
    assert catalogue.genre_names == ("", "0", "1", "2", "3", "4", "65")
    assert catalogue.genres[1:6].tolist() == [[1, 6], [2, 6], [3, 6], [4, 6], [0, 0]]
    by_name = {attribute.name: attribute for attribute in catalogue.attributes}
    assert list(by_name) == ["author_id", "video_type", "upload_type", "music_type", "duration"]
    assert by_name["video_type"].numbers[1:4].tolist() == [2, 2, 1] and by_name["video_type"].size == 3
    assert by_name["duration"].numbers[:4].tolist() == [0, 6, 0, 6]  # 17.2 s: 16 <= s < 32


def test_categories_are_features_of_their_side_and_of_requests(tmp_path):
    data = load_kuairand(write(tmp_path))
    assert {"tab", "user_active_degree", "register_days_range"} < set(data.context)
    assert {"author_id", "duration"} < set(data.candidate)
    for feature in data.schema:
        value = data.features[feature.name]
        assert len(value) == 300 and (feature.kind == "dense" or 0 <= value.min() <= value.max() < feature.size)
    names = data.log.user_names[data.log.users]
    by_degree = {degree: set(names[data.features["user_active_degree"].numpy() == n] % 3)
                 for n, degree in ((1, "UNKNOWN"), (2, "full_active"), (3, "high_active"))}  # fmt: skip
    assert by_degree == {"UNKNOWN": {2}, "full_active": {0}, "high_active": {1}}
    row = data.draw_row()
    request = data.request(row, 5)
    for name, value in data.rows(slice(row, row + 1)).items():
        assert torch.equal(request.rows()[name][:1], value), name


def test_forgetting_the_future_changes_no_feature(tmp_path):
    data = load_kuairand(write(tmp_path))
    past = data.log.before(int(data.log.times[120]))
    builder = FeatureBuilder(past)
    features = builder.context(past.users, past.times) | builder.candidate(past.items, past.times)
    features["tab"] = torch.from_numpy(past.of_events[0].numbers)
    assert set(features) == set(data.features) and 0 < len(past.users) <= 120
    for name, value in features.items():
        assert torch.equal(value, data.features[name][: len(value)]), name


@pytest.mark.parametrize(
    ("file", "line", "text", "problem"),
    [
        ("log_standard_4_08_to_4_21", 4, ",".join(map(str, log_row(0, 99, START, 1, 1))), "video 99 is not in"),
        ("log_standard_4_08_to_4_21", 5, "1,10,20220408", "3 cells, the header has 19"),
        ("log_standard_4_22_to_5_08", 3, ",".join(map(str, log_row(0, 10, START, 2, 1))), "is_click 0 or 1"),
        ("log_standard_4_22_to_5_08", 2, ",".join(map(str, log_row("x", 10, START, 1, 1))), "must be whole numbers"),
        ("video_features_basic", 3, "10,1,AD,2022-04-10,Web,1,1,1,1,1,1,1", "video 10 appears a second time"),
        ("video_features_basic", 2, "10,1,AD,2022-04-10,Web,1,long,1,1,1,1,1", "video_duration must be a number"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, file, line, text, problem):
    path = write(tmp_path) / "data" / f"{file}_pure.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem) as caught:
        load_kuairand(tmp_path / "KuaiRand-Pure")
    assert f"{file}_pure.csv, line {line}:" in str(caught.value)


def test_a_folder_without_a_file_or_a_column_is_named(tmp_path):
    folder = write(tmp_path) / "data"
    users = folder / "user_features_pure.csv"
    users.write_text("user_id,age\n1,20\n")
    with pytest.raises(DataError, match=r"no column user_active_degree, .* in user_id, age"):
        load_kuairand(folder)
    users.unlink()
    with pytest.raises(DataError, match=r"expected log_standard_\*\.csv, user_features_\*\.csv, .*found log_random"):
        load_kuairand(folder)
    with pytest.raises(DataError, match="no such folder"):
        load_kuairand(tmp_path / "absent")
