"""A job from beginning to end: in this process, in several, or on Ray."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rich.console import Console

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel, load
from rankhoist.runtime.threads import torch_threads
from rankhoist.score.job import SUCCESS, Job, Options, nan_scores, opened, stock, written
from rankhoist.score.parts import Part
from rankhoist.score.progress import watched
from rankhoist.score.workers import in_process, side_by_side


@dataclass(frozen=True)
class Summary:
    """What a run did: rows of the whole job, those scored now, parts that were there before, and seconds.

    `nan` is how many rows of the whole job have a score that is NaN, `first_nan` in which file and row the first is.
    """

    out: str
    rows: int
    scored: int
    parts: int
    parts_before: int
    seconds: float
    nan: int = 0
    first_nan: str = ""

    def __str__(self) -> str:
        before = f"; {self.parts_before} of {self.parts} parts were there before" if self.parts_before else ""
        speed = f" ({self.scored / self.seconds:,.0f} rows/s)" if self.scored else ""
        have = "rows have" if self.nan > 1 else "row has"
        nan = f"; {self.nan:,} {have} a score that is NaN, the first is {self.first_nan}" if self.nan else ""
        return f"{self.out}: {self.rows:,} rows, {self.scored:,} scored in {self.seconds:.1f} s{speed}{before}{nan}"


def run(
    options: Options, *, workers: int = 1, threads: int = 1, ray: bool = False, address: str | None = None,
    console: Console | None = None,
) -> Summary:  # fmt: skip
    """Score what is not scored yet.

    Args:
        options: what to score, and where the scores go.
        workers: processes, or actors on Ray; each has the model in memory.
        threads: of torch in each of them.
        ray: on Ray Data: a cluster's machines see the same paths.
        address: of a Ray cluster; by default the one that this machine belongs to, or a local one is started.
        console: where progress goes; stderr by default.

    Raises:
        ScoringError: an input is not as expected (says where), or the folder is another job's.
        ExtraError: Ray is not installed.
    """
    started = time.monotonic()

    @cache  # a new job asks for it, then its catalogue, then its parts where this process scores them
    def model() -> HoistedModel:
        with torch_threads(threads):
            return load(options.artifact)

    with opened(options, model) as job:
        console = console or Console(stderr=True)
        if options.item_id is not None and not options.catalogue and not job.repeats:
            console.print(f"rows of one {options.item_id} share nothing: by predicted time it does not pay here")
        left = [part for part in job.parts if not job.finished(part)]
        if left:
            stock(job, model)
        if ray or workers > 1:
            model.cache_clear()  # each worker has its own
        if ray:
            from rankhoist.score.ray_data import on_ray  # of the extra `ray`

            rows = on_ray(job, left, workers, threads, address)
        elif workers > 1:
            rows = side_by_side(job, left, workers, threads)
        else:
            rows = in_process(job, left, threads, model)
        done = job.rows - sum(part.rows for part in left)
        scored = watched(rows if left else (), done, job.rows, console)
        _finish(job, left)
        before = len(job.parts) - len(left)
        seconds = time.monotonic() - started
        return Summary(options.out, job.rows, scored, len(job.parts), before, seconds, *nan_scores(job))


def _finish(job: Job, scored: Sequence[Part]) -> None:
    """Say that all parts are there, and remove what was made for them.

    Raises:
        ScoringError: one is not.
    """
    missing = [part.name for part in scored if not job.finished(part)]
    if missing:
        raise ScoringError(f"{job.options.out} lacks {missing[0]}; is it the same folder on all machines?")
    with written(job.folder / SUCCESS):
        pass
    if job.catalogue is not None and job.catalogue.parent == job.folder:
        shutil.rmtree(job.catalogue, ignore_errors=True)
