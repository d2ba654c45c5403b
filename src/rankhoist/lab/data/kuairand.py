"""KuaiRand folders as published: KuaiRand-Pure, -1K and -27K; a row is a video shown, liked if it was clicked.

Chongming Gao, Shijun Li, Yuan Zhang, Jiawei Chen, Biao Li, Wenqiang Lei, Peng Jiang, Xiangnan He, "KuaiRand: An
Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos", CIKM 2022, arXiv 2208.08696.

Read are all `log_standard_*.csv` (their `time_ms`, `is_click`, and `tab` as context of the row), `user_features_*.csv`
(degree of activity and the published ranges) and `video_features_basic_*.csv` (author, kind, upload, music, duration;
`tag` are the genres). Left out are the randomly exposed rows and the statistics of videos, which look at whole days of
the log and so into the future of its rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rankhoist.lab.data.log import Attribute, Catalogue, DataError, IntArray, InteractionLog, pad_lists
from rankhoist.lab.data.ranking import RankingData

LOG, USERS, VIDEOS = PATTERNS = ("log_standard_*.csv", "user_features_*.csv", "video_features_basic_*.csv")
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "is_click", "tab")
USER_COLUMNS = (
    "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range",
    "fans_user_num_range", "friend_user_num_range", "register_days_range",
)  # fmt: skip
VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_type")
VIDEO_COLUMNS = ("video_id", *VIDEO_CATEGORIES, "upload_dt", "video_duration", "tag")
LONGEST = 2**10  # seconds; longer videos count as this long


def load_kuairand(folder: str | Path, latest: int | None = None) -> RankingData:
    """Read a KuaiRand folder or its folder `data`, or its latest rows.

    Raises:
        DataError: a file or column is missing, or a line malformed; the message names it.
    """
    folder = find(Path(folder)) or Path(folder)
    logs, users, videos = (sorted(folder.glob(pattern)) for pattern in PATTERNS)
    if not (logs and users and videos):
        raise DataError(f"{folder}: expected {', '.join(PATTERNS)}, found {_listing(folder)}")
    numbers, catalogue = _read_videos(videos)
    rows = _read_log(logs, numbers)
    names, items, times, clicks, tabs = rows.T
    tab = Attribute("tab", tabs + 1, int(tabs.max(initial=0)) + 2)
    log = InteractionLog.from_events(
        names, items, times // 1000, clicks.astype(np.float64), clicks > 0, catalogue,
        of_users=partial(_read_users, users), of_events=[tab],
    )  # fmt: skip
    return RankingData.from_log(f"KuaiRand, {_title(folder)}", log if latest is None else log.latest(latest))


def find(folder: Path) -> Path | None:
    """Where the files are: the folder itself or its folder `data`; None where they are in neither."""
    for place in (folder, folder / "data"):
        if all(any(place.glob(pattern)) for pattern in PATTERNS):
            return place
    return None


def _title(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "data" else folder.name


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


def _read(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """("file, line n", cells of the columns) of every row."""
    for path in paths:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)} in {', '.join(header) or 'an empty file'}")
            places = [header.index(column) for column in columns]
            for cells in rows:
                where = f"{path}, line {rows.line_num}"
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} cells, the header has {len(header)}")
                yield where, [cells[place] for place in places]


def _read_log(paths: Sequence[Path], numbers: dict[str, int]) -> IntArray:
    """[E, 5] user, item number, milliseconds, click and tab."""
    rows = []
    for where, (user, video, *rest) in _read(paths, LOG_COLUMNS):
        if video not in numbers:
            raise DataError(f"{where}: video {video} is not in {VIDEOS}")
        try:
            row = [int(user), numbers[video], *map(int, rest)]
        except ValueError:
            raise DataError(f"{where}: {', '.join(LOG_COLUMNS)} must be whole numbers, found {[user, *rest]}") from None
        if min(row) < 0 or row[3] > 1:
            raise DataError(f"{where}: expected numbers from 0 on and is_click 0 or 1, found {[user, *rest]}")
        rows.append(row)
    if not rows:
        raise DataError(f"{paths[0]}: no rows")
    return np.array(rows, dtype=np.int64)


def _read_users(paths: Sequence[Path], names: IntArray) -> tuple[Attribute, ...]:
    """[U+1] user ids, the first of them no user's -> what the file says of them."""
    known = {user: cells for _, (user, *cells) in _read(paths, ("user_id", *USER_COLUMNS))}
    nothing = [""] * len(USER_COLUMNS)
    rows = [nothing, *(known.get(str(name), nothing) for name in names[1:].tolist())]
    columns = zip(*rows, strict=True)
    return tuple(Attribute.from_names(name, column) for name, column in zip(USER_COLUMNS, columns, strict=True))


def _read_videos(paths: Sequence[Path]) -> tuple[dict[str, int], Catalogue]:
    """({video id: item number}, catalogue in the order of the file)."""
    numbers: dict[str, int] = {}
    years, durations = [0], [0]
    tags: list[list[str]] = [[]]
    categories = [[""] * len(VIDEO_CATEGORIES)]
    for where, (video, *cells) in _read(paths, VIDEO_COLUMNS):
        if video in numbers:
            raise DataError(f"{where}: video {video} appears a second time")
        numbers[video] = len(years)
        upload, duration, tag = cells[len(VIDEO_CATEGORIES) :]
        years.append(int(upload[:4]) if upload[:4].isdecimal() else 0)
        durations.append(_doublings(where, duration))
        tags.append([name for name in tag.split(",") if name])
        categories.append(cells[: len(VIDEO_CATEGORIES)])
    titles = ("", *(f"video {video}" for video in numbers))
    names = ["", *sorted({name for row in tags for name in row})]
    number_of = {name: number for number, name in enumerate(names)}
    genres = pad_lists([[number_of[name] for name in row] for row in tags])
    columns = zip(VIDEO_CATEGORIES, zip(*categories, strict=True), strict=True)
    attributes = [Attribute.from_names(name, column) for name, column in columns]
    length = Attribute("duration", np.array(durations, dtype=np.int64), LONGEST.bit_length() + 1)
    return numbers, Catalogue(titles, np.array(years, dtype=np.int64), genres, tuple(names), (*attributes, length))


def _doublings(where: str, duration: str) -> int:
    """Milliseconds -> 1 + the whole doublings of a second; 0 for an unknown duration."""
    try:
        seconds = float(duration or "nan") / 1000
    except ValueError:
        raise DataError(f"{where}: video_duration must be a number of milliseconds, found {duration!r}") from None
    return int(min(seconds, LONGEST)).bit_length() + 1 if seconds > 0 else 0
