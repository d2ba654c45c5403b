"""A job on disk: what was asked, what it was asked of, and the parts that are finished.

    OUT/_job.json              the job; readers of Parquet folders leave files out that begin with _ or .
    OUT/part-000000.parquet    scores of a part; a file with this name is finished
    OUT/_SUCCESS               all parts are finished

A part is written under a name that begins with a dot, forced to disk and renamed; it carries the job's number. So after
a kill at any moment the parts of the job that are there are whole, and the others are scored by the same command.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from rankhoist.arguments import path_of, whole_number
from rankhoist.errors import InputError, ScoringError
from rankhoist.runtime import HoistedModel, whole
from rankhoist.runtime.catalogue.files import INDEX
from rankhoist.runtime.mapped import version_of
from rankhoist.score.calls import Output, budget_of, outputs_of
from rankhoist.score.columns import features, shared_features
from rankhoist.score.files import Files, found
from rankhoist.score.items import ItemFiles
from rankhoist.score.layouts import Layout, Wanted, layout_of
from rankhoist.score.parts import Part, cut
from rankhoist.score.stocked import items_repeat

FORMAT = 1
JOB, SUCCESS = "_job.json", "_SUCCESS"
PART_ROWS = 100_000
MARK = b"rankhoist.job"  # in the metadata of a part: the number of its job
NAN = b"rankhoist.nan"  # and where there are any: how many rows have a score that is NaN, and which is the first
ADVICE = "give the same as before to continue the job in this folder, or another --out for a new one"


@dataclass(frozen=True)
class Options:
    """What to score.

    Attributes:
        artifact: a file that `HoistedModel.save` wrote.
        out: the folder for the scores.
        requests, candidates: Parquet files, folders or globs; see `rankhoist.score.layouts`.
        request_id: the column that tells which request a row belongs to.
        keep: columns to copy to the scores.
        budget: candidates per call, about; by default what the model was planned for.
        part_rows: candidates per part, about: what is scored again after a kill, at most, by each worker.
        catalogue: files of items, or a folder that `HoistedModel.catalogue` wrote; candidates then name their items.
        item_id: the column that says which item a candidate is: of a catalogue, where there is one (by default
            `item_id`); else rows of one id share the inputs that are marked as the item's, and these are computed once
            where that pays. By default rows tell by all of their values whether they are one item.
        check_items: compare these inputs of every row with those of the first of its id in a part, not only of some.
        allow_nan: take inputs that are NaN or infinite, which else end the job.
    """

    artifact: str
    out: str
    requests: Sequence[str] = ()
    candidates: Sequence[str] = ()
    request_id: str = "request_id"
    keep: Sequence[str] = ()
    budget: int | None = None
    part_rows: int = PART_ROWS
    catalogue: Sequence[str] = ()
    item_id: str | None = None
    check_items: bool = False
    allow_nan: bool = False

    def __post_init__(self) -> None:
        """One path, or one name, that stands alone is a list of one."""
        for own in ("requests", "candidates", "keep", "catalogue"):
            given = getattr(self, own)
            object.__setattr__(self, own, [given] if isinstance(given, str | os.PathLike) else list(given))
        for own in ("artifact", "out"):
            object.__setattr__(self, own, str(path_of(getattr(self, own), own)))
        for own, number in (("budget", self.budget), ("part_rows", self.part_rows)):
            if number is not None and whole_number(number, own) < 1:
                raise InputError(f"{own} is {number}: a number of candidates, 1 or more")

    @property
    def catalogue_id(self) -> str:
        """The column with the ids of a catalogue's items."""
        return self.item_id or "item_id"


@dataclass(frozen=True)
class Job:
    """Options made definite: which rows are scored by which calls into which files.

    `catalogue` is the folder of the items' store; `repeats`: items that come again in a part are computed once.
    """

    options: Options
    requests: list[str]
    candidates: list[str]
    outputs: list[Output]
    budget: int
    parts: list[Part]
    number: str
    catalogue: Path | None = None
    repeats: bool = False

    @property
    def folder(self) -> Path:
        """Where the scores go."""
        return Path(self.options.out)

    @property
    def rows(self) -> int:
        """Candidates in all."""
        return sum(part.rows for part in self.parts)

    def path(self, part: Part) -> Path:
        """The file of a part."""
        return self.folder / part.name

    def finished(self, part: Part) -> bool:
        """Whether a part is there, whole and of this job."""
        try:
            footer = pq.read_metadata(self.path(part))
        except FileNotFoundError:
            return False
        except Exception:  # a file that is no Parquet can break its reader in any way; it is written again
            return False
        return (footer.metadata or {}).get(MARK) == self.number.encode() and footer.num_rows == part.rows


def nan_scores(job: Job) -> tuple[int, str]:
    """How many rows of finished parts have a score that is NaN, and where the first is."""
    count, first = 0, ""
    for part in job.parts:
        said = (pq.read_metadata(job.path(part)).metadata or {}).get(NAN)
        if said is not None:
            own, row = map(int, said.split())
            count, first = count + own, first or f"{part.name}, row {row}"
    return count, first


@contextmanager
def opened(options: Options, model: Callable[[], HoistedModel]) -> Iterator[Job]:
    """The job in a folder, new or continued; no other process works on it in the meantime. A new one needs the model.

    Raises:
        ScoringError: the folder is another job's, or something that the job was begun with has changed.
    """
    folder = Path(options.out).resolve()  # workers may run elsewhere
    options = replace(options, out=str(folder), artifact=str(Path(options.artifact).resolve()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ScoringError(f"{folder} cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ScoringError(f"{folder}: another process is scoring into this folder") from error
        for unfinished in folder.glob(whole.UNFINISHED + "*"):
            unfinished.unlink(missing_ok=True)
        yield _job(options, folder / JOB, model)


def wanted(model: HoistedModel, options: Options, shared: bool) -> Wanted:
    """The columns of a job; `shared`: rows of one id share the item's inputs, where a column has ids.

    Raises:
        InputError: they would, and no input is marked as the item's.
    """
    if options.item_id is not None and shared and not options.catalogue:
        of_rows, of_items = shared_features(model, options.allow_nan)
        return Wanted(of_rows, options.request_id, options.keep, options.item_id, of_items)
    item_id = options.catalogue_id if options.catalogue else None
    own = features(model, bool(options.catalogue), options.allow_nan)
    return Wanted(own, options.request_id, options.keep, item_id)


def layout(job: Job, wanted: Wanted) -> Layout:
    """The files of a job, open."""
    return layout_of(_files(job.requests), _files(job.candidates), wanted)


def stock(job: Job, model: Callable[[], HoistedModel]) -> None:
    """Build the items' store of a job that has some, unless it is there."""
    if job.catalogue is not None and not (job.catalogue / INDEX).exists():
        items = ItemFiles(job.options.catalogue, model(), job.options.catalogue_id, job.options.allow_nan)
        model().catalogue_in_pieces(items.pieces(), items.count, path=job.catalogue)


def _catalogue(options: Options, number: str) -> Path | None:
    """The folder of the items' store: the one that is given, or one of this job."""
    if not options.catalogue:
        return None
    given = Path(options.catalogue[0])
    return given.resolve() if (given / INDEX).exists() else Path(options.out) / f"_catalogue-{number[:12]}"


def _job(options: Options, path: Path, model: Callable[[], HoistedModel]) -> Job:
    requests, candidates = (
        [str(p.resolve()) for p in found(given)] for given in (options.requests, options.candidates)
    )
    asked: dict[str, Any] = {
        "artifact": version_of(options.artifact),
        "options": {name: asdict(options)[name] for name in ("request_id", "keep", "budget", "part_rows")},
        "inputs": [[_fingerprint(Path(p)) for p in side] for side in (requests, candidates)],
    }
    if options.catalogue:  # jobs that were begun before there were any are those without one
        asked["options"]["item_id"] = options.catalogue_id
        asked["inputs"].append([_fingerprint(p) for p in _items(options)])
    elif options.item_id is not None:
        asked["options"]["item_id"] = options.item_id
    asked = json.loads(json.dumps(asked))  # as it is read back
    if path.exists():
        made = _read(path)
        _compare(made["asked"], asked, path.parent)
    else:
        others = [p.name for p in path.parent.glob("*.parquet")]
        if others:
            raise ScoringError(
                f"{path.parent} holds {others[0]} and is no folder of a scoring job; choose another --out"
            )
        made = _planned(options, model(), requests, candidates, asked)
        with written(path) as file:
            file.write(json.dumps(made).encode())
    number = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    outputs = [Output(**output) for output in made["outputs"]]
    parts = [Part(**part) for part in made["parts"]]
    catalogue, repeats = _catalogue(options, number), made.get("repeats", False)
    return Job(options, requests, candidates, outputs, made["budget"], parts, number, catalogue, repeats)


def _items(options: Options) -> list[Path]:
    """The files of the items; of a folder that is a store, its index."""
    given = Path(options.catalogue[0])
    return [(given / INDEX).resolve()] if (given / INDEX).exists() else [p.resolve() for p in found(options.catalogue)]


def _planned(
    options: Options, model: HoistedModel, requests: list[str], candidates: list[str], asked: dict[str, Any]
) -> dict[str, Any]:
    """A new job: what the model returns, its budget, and the parts."""
    columns, outputs = wanted(model, options, shared=True), outputs_of(model)
    names = [options.request_id, *options.keep, *(o.name for o in outputs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScoringError(f"the scores would have two columns {twice[0]!r}: columns are {', '.join(names)}")
    rows = layout_of(_files(requests), _files(candidates), columns)
    parts = cut(rows.runs(), options.part_rows)
    repeats = not options.catalogue and items_repeat(model, rows, parts[0])
    return {
        "format": FORMAT, "asked": asked, "outputs": [asdict(o) for o in outputs],
        "budget": budget_of(model, options.budget), "parts": [asdict(p) for p in parts], "repeats": repeats,
    }  # fmt: skip


def _files(paths: list[str]) -> Files | None:
    return Files([Path(p) for p in paths]) if paths else None


def _fingerprint(path: Path) -> dict[str, Any]:
    """What tells a file from another that took its place, without reading it."""
    with open(path, "rb") as file:
        about = os.fstat(file.fileno())
        file.seek(max(0, about.st_size - 2**16))
        end = hashlib.sha256(file.read()).hexdigest()
    return {"path": str(path), "bytes": about.st_size, "modified": about.st_mtime_ns, "end": end}


def _read(path: Path) -> dict[str, Any]:
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if made["format"] != FORMAT:
            raise ScoringError(f"{path} has format {made['format']}; this version continues format {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScoringError(f"{path} cannot be read: {error}; choose another --out") from error
    return made


def _compare(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Say what has changed since the job was begun."""
    if before["artifact"] != now["artifact"]:
        raise ScoringError(f"{folder} holds scores of another model; {ADVICE}")
    if len(before["inputs"]) != len(now["inputs"]):
        raise ScoringError(f"{folder} was begun with --catalogue, or without it; {ADVICE}")
    for name in before["options"] | now["options"]:
        old, new = (side["options"].get(name) for side in (before, now))
        if old != new:
            flag = "--" + name.replace("_", "-")
            raise ScoringError(f"{folder} was begun with {flag} {old}, not {new}; {ADVICE}")
    for side, old, new in zip(("requests", "candidates", "items"), before["inputs"], now["inputs"], strict=False):
        if [f["path"] for f in old] != [f["path"] for f in new]:
            raise ScoringError(
                f"{folder} was begun with {len(old)} files of {side} ({', '.join(f['path'] for f in old[:3])}, ...), "
                f"not these {len(new)}; {ADVICE}"
            )
        for a, b in zip(old, new, strict=True):
            if a != b:
                raise ScoringError(f"{b['path']} has changed since {folder} was begun; {ADVICE}")


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that is whole, and on disk under its name when the block is over."""
    try:
        with whole.written(path) as file:
            yield file
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ScoringError(f"{path} cannot be written: {error.strerror or error}") from error
