"""How far a job is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 15.0  # seconds between lines


class Speed(ProgressColumn):
    """Rows per second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s")


def watched(rows: Iterable[int], done: int, total: int, console: Console) -> int:
    """Show the progress of a job of which `done` rows were there before; returns the rows scored now."""
    columns = (
        TextColumn("{task.completed:,} of {task.total:,} rows"), BarColumn(), TaskProgressColumn(),
        Speed(), TimeRemainingColumn(),
    )  # fmt: skip
    started = said = time.monotonic()
    scored = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        for more in rows:
            scored += more
            bar.advance(task, more)
            now = time.monotonic()
            if not console.is_terminal and now - said >= EVERY:
                said, speed = now, scored / (now - started)
                left = (total - done - scored) / speed
                console.print(f"{done + scored:,} of {total:,} rows, {speed:,.0f} rows/s, {left:,.0f} s left")
    return scored
