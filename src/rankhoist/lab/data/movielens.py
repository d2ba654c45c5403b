"""MovieLens folders as published by GroupLens: `ratings.csv` and `movies.csv`, or the `.dat` files of ML-1M.

F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
A row is a rating; it is liked from 4 stars on. ML-1M's `users.dat`, where it is there, adds what it says of the users.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rankhoist.lab.data.log import Attribute, Catalogue, DataError, FloatArray, IntArray, InteractionLog, pad_lists
from rankhoist.lab.data.ranking import RankingData

LIKED_FROM = 4.0  # stars
MOST_STARS = 5.0
USER_COLUMNS = ("gender", "age", "occupation")  # of users.dat, after the user's number and before the zip code
NO_GENRE = "(no genres listed)"
YEAR = re.compile(r"\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$")


@dataclass(frozen=True)
class _Layout:
    """How one generation of MovieLens folders writes its two tables."""

    suffix: str
    separator: str
    encoding: str
    header_lines: int


LAYOUTS = (_Layout(".csv", ",", "utf-8-sig", 1), _Layout(".dat", "::", "latin-1", 0))


def load_movielens(folder: str | Path, latest: int | None = None) -> RankingData:
    """Read a MovieLens folder, or its latest rows; raises DataError naming the file and line of anything malformed."""
    folder = Path(folder)
    layout = _find_layout(folder)
    movies_path, ratings_path = (folder / f"{name}{layout.suffix}" for name in ("movies", "ratings"))
    numbers, catalogue = _read_movies(movies_path, layout)
    ratings = _read_ratings(ratings_path, layout)
    names, movies, times = (ratings[:, column].astype(np.int64) for column in (0, 1, 3))
    items = _number_items(movies, numbers, ratings_path, layout)
    values = ratings[:, 2]
    users = partial(_read_users, folder / "users.dat", layout)
    log = InteractionLog.from_events(names, items, times, values, values >= LIKED_FROM, catalogue, of_users=users)
    return RankingData.from_log(f"MovieLens, {folder.name}", log if latest is None else log.latest(latest))


def is_movielens(folder: Path) -> bool:
    """Whether a folder holds the files of one of the layouts."""
    return any(_holds(folder, layout) for layout in LAYOUTS)


def _holds(folder: Path, layout: _Layout) -> bool:
    return all((folder / f"{name}{layout.suffix}").is_file() for name in ("ratings", "movies"))


def _find_layout(folder: Path) -> _Layout:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a MovieLens folder with ratings.csv and movies.csv")
    for layout in LAYOUTS:
        if _holds(folder, layout):
            return layout
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise DataError(f"{folder}: expected ratings.csv and movies.csv (or both as .dat), found {found}")


def _read_lines(path: Path, layout: _Layout) -> list[str]:
    """The lines below the header; line i of the answer is line i + header + 1 of the file."""
    try:
        text = path.read_text(encoding=layout.encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {layout.encoding} text ({error.reason} at byte {error.start})") from None
    lines = text.rstrip("\r\n").split("\n")[layout.header_lines :]
    if not any(lines):
        raise DataError(f"{path}: no rows")
    return lines


def _fail(path: Path, layout: _Layout, index: int, problem: str) -> DataError:
    return DataError(f"{path}, line {index + layout.header_lines + 1}: {problem}")


def _read_movies(path: Path, layout: _Layout) -> tuple[dict[int, int], Catalogue]:
    """({movie id: item number}, catalogue in the order of the file)."""
    numbers: dict[int, int] = {}
    titles, years, genres = [""], [0], [[""]]
    for index, cells in enumerate(_split_movies(_read_lines(path, layout), layout)):
        if len(cells) != 3 or not cells[0].isdecimal():
            raise _fail(path, layout, index, f"expected movieId, title and genres, found {cells}")
        if int(cells[0]) in numbers:
            raise _fail(path, layout, index, f"movie {cells[0]} appears a second time")
        numbers[int(cells[0])] = len(titles)
        title, genre_list = cells[1].strip(), cells[2].strip()
        year = YEAR.search(title)
        titles.append(title)
        years.append(int(year[1]) if year else 0)
        genres.append([] if genre_list in ("", NO_GENRE) else genre_list.split("|"))
    names = ["", *sorted({name for row in genres[1:] for name in row})]
    number_of = {name: number for number, name in enumerate(names)}
    padded = pad_lists([[], *([number_of[name] for name in row] for row in genres[1:])])
    return numbers, Catalogue(tuple(titles), np.array(years, dtype=np.int64), padded, tuple(names))


def _split_movies(lines: list[str], layout: _Layout) -> Iterator[list[str]]:
    if layout.separator == ",":
        return csv.reader(lines)
    return (line.split(layout.separator) for line in lines)


def _read_users(path: Path, layout: _Layout, names: IntArray) -> tuple[Attribute, ...]:
    """[U+1] user ids, the first of them no user's -> what users.dat says of them; nothing without such a file."""
    if layout.suffix != path.suffix or not path.is_file():
        return ()
    rows: dict[int, list[str]] = {}
    for index, line in enumerate(_read_lines(path, layout)):
        cells = line.strip().split(layout.separator)
        if len(cells) != len(USER_COLUMNS) + 2 or not cells[0].isdecimal():
            raise _fail(path, layout, index, f"expected userId, {', '.join(USER_COLUMNS)} and zip code, found {cells}")
        rows[int(cells[0])] = cells[1:-1]
    nothing = [""] * len(USER_COLUMNS)
    columns = zip(*(rows.get(name, nothing) for name in names.tolist()), strict=True)
    return tuple(Attribute.from_names(name, column) for name, column in zip(USER_COLUMNS, columns, strict=True))


def _read_ratings(path: Path, layout: _Layout) -> FloatArray:
    """[E, 4] userId, movieId, rating, timestamp."""
    lines = _read_lines(path, layout)
    separator = layout.separator
    if len(separator) > 1:
        lines, separator = [line.replace(separator, "\t") for line in lines], "\t"
    try:
        ratings = np.loadtxt(lines, delimiter=separator, comments=None, ndmin=2)
    except ValueError:
        ratings = np.empty((0, 0))
    if ratings.shape != (len(lines), 4):
        raise _first_bad_rating(path, layout, lines, separator)
    _check_ratings(path, layout, ratings)
    return ratings


def _first_bad_rating(path: Path, layout: _Layout, lines: list[str], separator: str) -> DataError:
    """numpy says that some row is wrong; this finds which one."""
    for index, line in enumerate(lines):
        cells = line.strip().split(separator)
        try:
            well_formed = len([float(cell) for cell in cells]) == 4
        except ValueError:
            well_formed = False
        if not well_formed:
            return _fail(path, layout, index, f"expected userId, movieId, rating and timestamp, found {cells}")
    return DataError(f"{path}: expected rows of userId, movieId, rating and timestamp")


def _check_ratings(path: Path, layout: _Layout, ratings: FloatArray) -> None:
    whole = ratings[:, [0, 1, 3]]
    # Written so that NaN is bad too.
    bad_number = ~((whole >= 0) & (whole == np.floor(whole)) & (whole < 2**53)).all(axis=1)
    bad_rating = ~((ratings[:, 2] > 0) & (ratings[:, 2] <= MOST_STARS))
    for bad, problem in (
        (bad_number, "ids and timestamp must be whole numbers from 0 on"),
        (bad_rating, f"a rating must be above 0 and at most {MOST_STARS:g}"),
    ):
        if bad.any():
            index = int(bad.argmax())
            raise _fail(path, layout, index, f"{problem}, found {ratings[index].tolist()}")


def _number_items(movies: IntArray, numbers: dict[int, int], path: Path, layout: _Layout) -> IntArray:
    """[E] movie ids -> [E] item numbers."""
    unique, inverse = np.unique(movies, return_inverse=True)
    items = np.array([numbers.get(int(movie), 0) for movie in unique], dtype=np.int64)[inverse]
    if not items.all():
        index = int((items == 0).argmax())
        raise _fail(path, layout, index, f"movie {movies[index]} is not in movies{layout.suffix}")
    return items
