"""The same job on Ray Data.

A row of the data set is a part of the job, and an actor with the model scores it: requests stay whole, and what is
written, how it is resumed and what it must equal are those of a job on one machine. Paths are the same on all machines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rankhoist.errors import ExtraError, RankhoistError, ScoringError
from rankhoist.score.job import Job
from rankhoist.score.parts import Part
from rankhoist.score.scorer import Scorer

try:
    import ray
    import ray.data
except ImportError as error:
    raise ExtraError("scoring on Ray needs Ray Data: pip install 'rankhoist[ray]'") from error


def on_ray(job: Job, parts: Sequence[Part], workers: int, threads: int, address: str | None) -> Iterator[int]:
    """Score parts by actors; gives the rows of each part when it is finished."""
    if not ray.is_initialized():
        _start(address)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress is shown by the job itself
    items = ray.data.from_items([{"part": part.number} for part in parts], override_num_blocks=len(parts))
    scored = items.map_batches(
        PartScorer, fn_constructor_args=(job, threads), batch_size=1, num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
    )  # fmt: skip
    try:
        for row in scored.iter_rows():
            yield int(row["rows"])
    except ray.exceptions.RayError as error:
        raise _own(error) from error


def _start(address: str | None) -> None:
    dashboard = False if address is None else None  # of a local Ray; None leaves it to the cluster
    try:
        ray.init(address=address, include_dashboard=dashboard, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises Exception itself
        raise ScoringError(f"Ray cannot be started or reached: {error}") from error


def _own(error: BaseException) -> RankhoistError:
    """The error of ours that an actor raised, or Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RankhoistError):
            return ScoringError(str(cause).splitlines()[-1])
        cause = getattr(cause, "cause", None) or cause.__cause__
    return ScoringError(f"the job failed on Ray: {error}")


class PartScorer:
    """An actor of a job: loads the model once, then scores the parts it is given."""

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self._job, self._scorer = job, Scorer(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Part numbers -> rows scored."""
        parts = [self._job.parts[int(number)] for number in batch["part"]]
        return {"rows": [sum(self._scorer.score(part)) for part in parts]}
