"""What the reproductions share: a command line, the machine and versions, and the files of a result."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from rankhoist.bench import interleaved
from rankhoist.bench.plots import pyplot
from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.profile import load_profile
from rankhoist.runtime.threads import torch_threads

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
REDUCED = Path("runs") / "papers"
Record = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Of one run. `seconds` is how long one cell is timed; `counts` times nothing."""

    reduced: bool = False
    counts: bool = False
    seconds: float = 2.0
    out: Path = RESULTS


@dataclass(frozen=True)
class Reproduction:
    """One figure or table of a paper.

    Attributes:
        name: of its module and of its files.
        title: of its page.
        text: what it does, the first lines of `--help` and of the page.
        measure: everything that the record holds beside machine, versions and command.
        tables: Markdown tables by name, made of a record; `docs/papers.md` shows them too.
        draw: a figure made of a record, or None where the record has not what it shows.
        counts: whether it counts operations.
        timed: whether it times something; where it does both, `--counts` leaves that out.
    """

    name: str
    title: str
    text: str
    measure: Callable[[Options], Record]
    tables: Callable[[Record], dict[str, str]]
    draw: Callable[[Any, Record], Any]
    counts: bool = True
    timed: bool = True

    @property
    def command(self) -> str:
        """That of its full size."""
        return f"python -m benchmarks.papers.{self.name}"


def main(reproduction: Reproduction, arguments: Sequence[str] | None = None) -> int:
    """Measure, and write `YYYY-MM-DD-papers-NAME.json`, `.md` and `.svg`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(reproduction, given)
    with torch_threads(1):
        about = machine()
        print(f"{reproduction.title}: {about['processor']}, {about['threads']} thread, torch {about['torch']}")
        start = time.monotonic()
        with torch.no_grad():
            measured = reproduction.measure(options)
        record = {
            "name": reproduction.name, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": " ".join([reproduction.command, *given]), "machine": about, "profile": _profile(),
            "reduced": options.reduced, "timed": reproduction.timed and not options.counts,
            "minutes": (time.monotonic() - start) / 60, **measured,
        }  # fmt: skip
    stem = write(reproduction, record, options.out)
    print(stem.with_suffix(".md").read_text())
    written = [e for e in (".json", ".md", ".svg") if stem.with_suffix(e).exists()]
    print(f"{record['minutes']:.1f} minutes; written: {stem}{', '.join(written)}")
    return 0


def parse(reproduction: Reproduction, arguments: Sequence[str]) -> Options:
    """The command line."""
    command = reproduction.command
    examples = [command, f"{command} --reduced --out runs/papers"]
    both = reproduction.counts and reproduction.timed
    if both:
        examples.append(f"{command} --counts")
    parser = argparse.ArgumentParser(
        prog=command, description=reproduction.text, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  " + "\n  ".join(examples),
    )  # fmt: skip
    parser.add_argument("--reduced", action="store_true", help="fewer and smaller cells, a minute or two")
    parser.add_argument(
        "--out", type=Path, help=f"folder of the result (default: {_shown(RESULTS)}, reduced: {REDUCED})"
    )
    if reproduction.timed:
        parser.add_argument("--seconds", type=float, help="timing per cell (default: 2, reduced: 0.3)")
    if both:
        parser.add_argument("--counts", action="store_true", help="count operations only, time nothing")
    given = parser.parse_args(arguments)
    seconds = getattr(given, "seconds", None) or (0.3 if given.reduced else 2.0)
    out = given.out or (REDUCED if given.reduced else RESULTS)
    return Options(given.reduced, getattr(given, "counts", False), seconds, out)


def write(reproduction: Reproduction, record: Record, out: Path) -> Path:
    """The record, its page and its plot; returns their path without the ending."""
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{record['date'][:10]}-papers-{record['name']}{'-reduced' if record['reduced'] else ''}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    plt = pyplot()
    figure = reproduction.draw(plt, record)
    if figure is not None:
        figure.savefig(stem.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    stem.with_suffix(".md").write_text(_page(reproduction, record, None if figure is None else f"{stem.name}.svg"))
    return stem


def _page(reproduction: Reproduction, record: Record, plot: str | None) -> str:
    lines = [f"# {reproduction.title}", "", origin(record), "", reproduction.text.strip(), ""]
    for name, text in reproduction.tables(record).items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", text, ""]
    return "\n".join([*lines, *([f"![{reproduction.title}]({plot})", ""] if plot else [])])


def origin(record: Record) -> str:
    """Date, machine, versions and command in one line."""
    about = record["machine"]
    where = f"{about['processor']}, {about['threads']} thread" if record["timed"] else "operations only"
    return (
        f"{record['date'][:10]}, {where}, torch {about['torch']}, Python {about['python']}, float32, plans by the "
        f"profile of {record['profile']}: `{record['command']}`"
    )


def _profile() -> str:
    found = load_profile()
    return f"{found.processor} ({found.date[:10]})"


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT)


# -- what measuring and writing need


def progress(cells: Iterable[Any], text: str) -> Iterable[Any]:
    """The cells with a bar."""
    return track(list(cells), text)


def timed(calls: Mapping[str, Callable[[], Any]], options: Options) -> dict[str, Any]:
    """Median and quartiles in ms of calls in turn; nothing with `--counts`."""
    if options.counts:
        return {}
    with torch.inference_mode():
        return {name: asdict(t) for name, t in interleaved(calls, options.seconds, warmup=2, rounds=5).items()}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [head, rule, *rows])


def percent(change: float, digits: int = 0) -> str:
    """`-0.118 -> -11.8 %`."""
    return f"{100 * change:+.{digits}f} %" if round(100 * change, digits) else "0 %"


def ms(record: Mapping[str, Any], variant: str) -> str:
    """Median and quartiles, or a dash where nothing was timed."""
    found = record.get(variant)
    return "-" if found is None else f"{found['median']:.3g} ({found['low']:.3g} to {found['high']:.3g})"
