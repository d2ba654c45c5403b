"""`rankhoist bench`: choose cells, measure, and write the dated results."""

from __future__ import annotations

import fnmatch
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rankhoist.bench import plots, suite
from rankhoist.bench.goals import cell_name, median, ratio, summary
from rankhoist.bench.scenarios import BLOCKS, FAMILIES, SCENARIOS, names
from rankhoist.bench.suite import QUICK_CANDIDATES, Cell, Settings
from rankhoist.bench.table import page
from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.profile import BUILT_IN, in_use, load_profile
from rankhoist.errors import CommandError
from rankhoist.runtime.threads import torch_threads

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Of one run; the cells are the quick ones unless something is said about them."""

    everything: bool = False
    only: Sequence[str] = ()
    candidates: Sequence[int] = ()
    seconds: float = 3.0
    threads: int = 1
    backend: str = "eager"
    compiled: bool = False
    ragged: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    out: Path = Path("benchmarks/results")
    plots: bool = True


def main(options: Options) -> int:
    """Exit code 1 if a level was not equal to the original somewhere."""
    console = Console()
    cells = chosen(options)
    if options.plots:
        plots.pyplot()  # or say now, not after the run, that it is missing
    with torch_threads(options.threads):
        about = machine()
        console.print(f"{about['threads']} thread(s), {about['processor']}, torch {about['torch']}, {len(cells)} cells")
        record = measured(cells, options, about, console)
    for goal in record["goals"]:
        if goal["passed"] is False:
            console.print(f"missed: {goal['goal']}: {len(goal['missed'])} of {goal['cells']} cells")
    return 0 if all(r["equal"] for r in record["cells"]) else 1


def chosen(options: Options) -> list[Cell]:
    """The cells of a run.

    Raises:
        CommandError: a name matches no scenario.
    """
    cells = suite.all_cells(options.device) if options.everything or options.only else suite.quick_cells()
    if options.only:
        known = names([*SCENARIOS, *FAMILIES, *BLOCKS])
        for pattern in options.only:
            if not fnmatch.filter(known, pattern):
                raise CommandError(f"--only {pattern}: no such scenario; there are {', '.join(known)}")
        cells = [c for c in cells if any(fnmatch.fnmatchcase(c.scenario.name, p) for p in options.only)]
    counts = list(options.candidates) or (QUICK_CANDIDATES if options.only and not options.everything else [])
    if counts:
        own = {c.scenario.name: c.scenario for c in cells}.values()
        several = [c for c in cells if c.requests > 1 and options.ragged]
        cells = [*(Cell(s, n) for s in own for n in counts), *several]
    return cells


def measured(cells: Sequence[Cell], options: Options, about: dict[str, Any], console: Console) -> dict[str, Any]:
    """The record of a run, written after every cell, so that a long run that breaks off is not lost."""
    settings = Settings(
        options.seconds, options.backend, options.compiled or options.everything, DTYPES[options.dtype],
        options.device,
    )  # fmt: skip
    torch.set_float32_matmul_precision("high" if options.dtype == "tf32" else "highest")
    start = time.monotonic()
    selection = "all" if options.everything else "chosen" if options.only or options.candidates else "quick"
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "selection": selection, "machine": about,
        "command": " ".join(["rankhoist", *sys.argv[1:]]), "dtype": options.dtype, "device": options.device,
        "backend": options.backend, "profile": _profile(), "seconds_per_cell": options.seconds, "minutes": 0.0,
        "goals": [], "cells": [],
    }  # fmt: skip
    stem = _free_stem(options, f"{record['date'][:10]}-bench-{selection}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("cells", total=len(cells))

        def done(cell: Cell, found: dict[str, Any]) -> None:
            record["cells"].append(found)
            record["minutes"] = (time.monotonic() - start) / 60
            _write_json(record, stem)
            progress.console.print(_line(found))
            progress.advance(task)

        try:
            suite.measure_all(cells, settings, done)
        finally:  # a run that is interrupted shows what it has
            _finish(record, stem, options, console)
    return record


def _free_stem(options: Options, name: str) -> Path:
    """Where results go: what is unusual about the run is in the name, and no run replaces the results of another."""
    usual = Options()
    name += f"-{options.threads}-threads" if options.threads != usual.threads else ""
    for setting in ("backend", "dtype", "device"):
        value = getattr(options, setting)
        name += f"-{value.replace(':', '')}" if value != getattr(usual, setting) else ""
    stems = (options.out / (name + (f"-{i}" if i > 1 else "")) for i in itertools.count(1))
    return next(s for s in stems if not s.with_suffix(".json").exists())


def _profile() -> str:
    """Which profile the plans are made by."""
    found = load_profile()
    where = "the built-in profile" if in_use() == BUILT_IN else "the profile"
    return f"{where} of {found.date}, {found.processor}, {found.threads} thread(s)"


def _finish(record: dict[str, Any], stem: Path, options: Options, console: Console) -> None:
    """Goals, table and plots."""
    record["goals"] = summary(record["cells"])
    _write_json(record, stem)
    drawn = plots.draw(record, stem) if options.plots else []
    stem.with_suffix(".md").write_text(page(record, [p.name for p in drawn]))
    console.print(
        f"{record['minutes']:.1f} minutes; written: {stem}.json, .md" + (f", {len(drawn)} plots" if drawn else "")
    )


def _line(found: dict[str, Any]) -> str:
    if not found["equal"]:
        return f"{cell_name(found)}: not equal, so not timed"
    return f"{cell_name(found)}: {median(found, 'eager'):.3g} ms, full {median(found, 'full'):.3g} ms, " + (
        f"{ratio(found, 'eager'):.2f}x"
    )


def _write_json(record: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
