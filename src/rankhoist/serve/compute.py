"""The compute thread of a worker: it scores what waits, call by call, and joins requests where that pays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from rankhoist_client.refusal import RequestError

from rankhoist.serve.batching import joined
from rankhoist.serve.inputs import Batch
from rankhoist.serve.metrics import Stages
from rankhoist.serve.model import Scored, ServedModel

log = logging.getLogger(__name__)

Result = Scored | RequestError
# What PyTorch says of ids that are computed on the way, which no check of the inputs can find.
NO_SUCH_ROW = ("out of range", "out of bounds", "not in the valid range", "Class values must be")
NO_MEMORY = "can't allocate memory"  # of PyTorch's allocator on a CPU


@dataclass(eq=False)
class Job:
    """A checked request that waits for its scores; no other is equal to it."""

    model: ServedModel
    batch: Batch
    key: str | None = None
    deadline: float | None = None  # time.perf_counter()
    stages: Stages = field(default_factory=dict)
    queued: float = field(default_factory=time.perf_counter)
    begun: float = field(init=False)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    future: asyncio.Future[Scored] = field(init=False)

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    @property
    def patience(self) -> float:
        """Until when it may wait for others: half of its time at most, the other half is for its own turn."""
        return float("inf") if self.deadline is None else (self.queued + self.deadline) / 2

    @property
    def joinable(self) -> bool:
        """Whether it may be scored together with others: without a state of its own, and few candidates, all known."""
        batch = self.batch
        return self.key is None and batch.requests == 1 and batch.rows <= self.model.batch_up_to and not batch.skips

    def goes_with(self, other: Job) -> bool:
        """Whether both may be in one call, if they are joinable: axes that vary have one length in a call."""
        return other.model is self.model and other.joinable and other.batch.lengths == self.batch.lengths


class Compute:
    """One thread that scores jobs in the order in which they came.

    Args:
        threads: of torch.
        most: candidates in a call of several requests.
        delay: seconds that a request which can be joined waits for others; 0: it is joined by those that wait already.
    """

    def __init__(self, threads: int = 1, most: int = 0, delay: float = 0.0) -> None:
        self.threads, self.most, self.delay = threads, most, delay
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    async def score(self, job: Job) -> Scored:
        """The job's result.

        Raises:
            RequestError: its deadline passed, its key was used with another context, or the model failed on it.
        """
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return await job.future

    def close(self) -> None:
        """End the thread when all jobs are done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self.threads)  # counts for the thread that calls
        try:
            with torch.inference_mode():
                while group := self._next():
                    _score(group)
                    del group  # not kept until the next request comes
        except BaseException:  # without this thread requests would wait for ever: better a new worker
            log.exception("the compute thread failed")
            os._exit(1)

    def _next(self) -> list[Job]:
        """The jobs of the next call; none at the end."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            group = [self._jobs.popleft()]
            if group[0].joinable:
                self._join(group)
            return group

    def _join(self, group: list[Job]) -> None:
        """Add what waits for the same model, as long as there is room and time and nothing else waits."""
        room, until = self.most - group[0].batch.rows, group[0].queued + self.delay
        while True:
            for job in list(self._jobs):
                if group[0].goes_with(job) and job.batch.rows <= room:
                    self._jobs.remove(job)
                    group.append(job)
                    room -= job.batch.rows
            left = min(until, *(job.patience for job in group)) - time.perf_counter()
            if room <= 0 or left <= 0 or self._jobs or self._closed:
                return
            self._changed.wait(left)


def _score(group: list[Job]) -> None:
    """Score jobs of one model and hand their results to their event loops."""
    start = time.perf_counter()
    results: list[tuple[Job, Result]] = []
    waiting = []
    for job in group:
        if job.future.cancelled():  # nobody waits for it any more
            continue
        job.begun = start
        job.model.metrics.stage["queue"].observe(start - job.queued)
        if job.deadline is not None and start > job.deadline:
            waited = (start - job.queued) * 1e3
            results.append((job, RequestError("deadline", f"the deadline passed after {waited:.0f} ms in the queue")))
        else:
            waiting.append(job)
    if waiting:
        results += zip(waiting, _scored(waiting), strict=True)
        waiting[0].model.metrics.batch.observe(len(waiting))
    for loop in {job.loop for job, _ in results}:
        loop.call_soon_threadsafe(_answer, [r for r in results if r[0].loop is loop])


def _scored(jobs: list[Job]) -> Iterable[Result]:
    """A result for each job; where a call of several fails, each is tried alone and meets its own error only."""
    if len(jobs) == 1:
        return [_alone(jobs[0])]
    batch = joined([job.batch for job in jobs])
    assert batch.offsets is not None, "it has several requests"
    scored = None
    with contextlib.suppress(Exception):  # outside of it, nothing holds what the call has made
        scored = jobs[0].model.score(batch)
    if scored is None:
        return [_alone(job) for job in jobs]
    _observe(jobs[0].model, scored)
    return [scored.part(*bounds) for bounds in zip(batch.offsets, batch.offsets[1:], strict=False)]


def _alone(job: Job) -> Result:
    try:
        scored = job.model.score(job.batch, job.key)
    except RequestError as refusal:
        return refusal
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in str(error):
            error.__traceback__ = None  # it holds what the call has made
            job.model.free()
            log.warning("out of memory", extra={"model": job.model.name, "candidates": job.batch.rows})
            message = f"there is not enough memory to score {job.batch.rows} candidates now"
            return RequestError("out_of_memory", message)
        if isinstance(error, IndexError) or any(words in str(error) for words in NO_SUCH_ROW):
            return RequestError("out_of_vocabulary", f"an id is outside of a table of the model: {error}")
        log.exception("model failed", extra={"model": job.model.name})
        return RequestError("internal", f"the model failed: {type(error).__name__}")
    _observe(job.model, scored)
    return scored


def _observe(model: ServedModel, scored: Scored) -> None:
    for stage, (start, end) in scored.stages.items():
        model.metrics.stage[stage].observe(end - start)


def _answer(results: list[tuple[Job, Result]]) -> None:
    """Runs in the event loop; a future may be cancelled by then."""
    for job, result in results:
        if job.future.done():
            continue
        job.stages["queue"] = job.queued, job.begun
        if isinstance(result, RequestError):
            job.future.set_exception(result)
        else:
            job.stages.update(result.stages)
            job.future.set_result(result)
