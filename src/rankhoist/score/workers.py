"""Parts scored by several processes of this machine, each with the model and threads of its own.

A worker is given one part at a time through a pipe and sends the rows it has scored. When the pipe ends, because the
job is done or its process was killed, the worker ends too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import cast

import torch

from rankhoist.errors import RankhoistError, ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.threads import torch_threads
from rankhoist.score.job import Job
from rankhoist.score.parts import Part
from rankhoist.score.scorer import Scorer


def in_process(job: Job, parts: Sequence[Part], threads: int, model: Callable[[], HoistedModel]) -> Iterator[int]:
    """Score parts here; gives rows as they are scored."""
    with torch_threads(threads):
        scorer = Scorer(job, model())
        for part in parts:
            yield from scorer.score(part)


def side_by_side(job: Job, parts: Sequence[Part], workers: int, threads: int) -> Iterator[int]:
    """Score parts in processes; gives rows as they are scored."""
    spawn = multiprocessing.get_context("spawn")
    left = deque(parts)
    processes = {}
    try:
        for _ in range(min(workers, len(parts))):
            own, other = spawn.Pipe()
            process = spawn.Process(target=_work, args=(job, threads, other), daemon=True)
            process.start()
            other.close()
            processes[own] = process
        while processes:
            for ready in cast("list[Connection]", wait(list(processes))):
                try:
                    message = ready.recv()
                except EOFError:
                    processes[ready].join()
                    code = processes[ready].exitcode
                    raise ScoringError(
                        f"a worker ended with exit code {code}{' (killed: out of memory?)' if code == -9 else ''}; "
                        "the same command continues the job"
                    ) from None
                if isinstance(message, int):
                    yield message
                elif isinstance(message, str):
                    raise ScoringError(message)
                elif left:
                    ready.send(left.popleft())
                else:
                    ready.close()
                    processes.pop(ready).join()
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
            process.join()


def _work(job: Job, threads: int, connection: Connection) -> None:
    """A worker: says `None` when it wants a part, a number of rows when they are scored, a text when it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        torch.set_num_threads(threads)
        scorer = Scorer(job)
        while True:
            connection.send(None)
            for rows in scorer.score(connection.recv()):
                connection.send(rows)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody waits for more
    except Exception as error:
        known = isinstance(error, RankhoistError)
        with contextlib.suppress(OSError):
            connection.send(str(error) if known else f"a worker failed:\n{traceback.format_exc()}")
