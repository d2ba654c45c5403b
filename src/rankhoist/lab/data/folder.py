"""A data set by its folder, whichever of the published layouts it has."""

from __future__ import annotations

from pathlib import Path

from rankhoist.lab.data import kuairand, movielens
from rankhoist.lab.data.log import DataError
from rankhoist.lab.data.ranking import RankingData


def load_folder(folder: str | Path, latest: int | None = None) -> RankingData:
    """MovieLens (latest-small, 1M, 25M and alike) or KuaiRand (Pure, 1K, 27K).

    latest  rows to keep, the last in time; features take about 1.5 kB of memory a row, so that 25M in whole wants 40 GB

    Raises:
        DataError: no such folder, a layout that is none of these (with the files looked for), or a malformed line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if movielens.is_movielens(folder):
        return movielens.load_movielens(folder, latest)
    if kuairand.find(folder):
        return kuairand.load_kuairand(folder, latest)
    found = sorted(path.name for path in folder.iterdir())
    listing = ", ".join(found[:10]) + (" ..." if len(found) > 10 else "") if found else "nothing"
    raise DataError(
        f"{folder}: no data set of a known layout; looked for ratings.csv and movies.csv (MovieLens), ratings.dat and "
        f"movies.dat (MovieLens 1M), or {', '.join(kuairand.PATTERNS)}, here or in data/ (KuaiRand); found {listing}"
    )
