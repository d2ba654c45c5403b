"""The server's memory under lasting load: `python benchmarks/soak.py [--minutes 20]`.

It finds what a server of the demo's DCNv2 answers at most, puts 70 % of that on it for the given time, requests of many
sizes, some with a context key, and looks every few seconds at the memory of all its processes: unique (USS), and
proportional (PSS), which counts what they share once. Growth is from the tenth of the samples after the warm-up to the
last tenth, medians of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from rankhoist_client import Client, messages
from rich.console import Console
from served import Running, Subject, about, metrics, server

from rankhoist.bench.plots import COLOURS, pyplot
from rankhoist.lab.loadtest import Load, Options, loadtest
from rankhoist.lab.loadtest.connection import Address, http_request
from rankhoist.lab.loadtest.examples import drawn
from rankhoist.lab.loadtest.load import run

NAME = "ranker"
SHARE = 0.7
SIZES = (10, 100, 300, 1000, 1000, 1000)  # candidates; mostly those that capacity was measured with
KEYS = 60  # different context keys, each with its own context
EVERY = 5.0  # seconds between two looks
LIMIT = 0.02  # growth


def memory(pid: int) -> dict[str, float]:
    """MiB of a process and all below it."""
    root = psutil.Process(pid)
    found = []
    for process in [root, *root.children(recursive=True)]:
        try:
            found.append(process.memory_full_info())
        except psutil.NoSuchProcess:  # ended between the list and the look
            continue
    return {"processes": len(found), "uss": sum(m.uss for m in found) / 2**20, "pss": sum(m.pss for m in found) / 2**20}


class Watch(threading.Thread):
    """Looks at the server every few seconds until it is told to stop."""

    def __init__(self, running: Running, every: float) -> None:
        super().__init__(daemon=True)
        self.running, self.every = running, every
        self.rows: list[dict[str, Any]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        with Client(self.running.url) as client:
            while not self.stopped.wait(self.every):
                now = {"second": time.monotonic() - start}
                self.rows.append(now | memory(self.running.pid) | {"metrics": metrics(client)})


def bodies(url: str, seed: int = 0) -> list[bytes]:
    """Requests of many sizes, half of them with a context key."""
    with Client(url) as client:
        metadata = client.metadata(NAME)
    address, made = Address.of(url), []
    for i in range(2 * KEYS):
        (one,) = drawn(metadata, SIZES[i % len(SIZES)], 1, seed + i)
        key = f"user-{i}" if i % 2 else None
        call = messages.rank_binary(messages.Question(NAME, context_key=key), one.context, one.candidates)
        made.append(http_request(address, call.path, call.content, dict(call.headers)))
    return made


def growth(rows: list[dict[str, Any]], what: str, warm_up: float) -> float:
    """From the first tenth after the warm-up to the last tenth, as a share of the first."""
    values = [row[what] for row in rows if row["second"] >= warm_up]
    part = max(len(values) // 10, 1)
    first, last = statistics.median(values[:part]), statistics.median(values[-part:])
    return last / first - 1


def draw(record: dict[str, Any], path: Path) -> None:
    """Memory and answers against time."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    minutes = [row["second"] / 60 for row in record["samples"]]
    for what, colour in (("pss", "full"), ("uss", "linear")):
        left.plot(minutes, [row[what] for row in record["samples"]], color=COLOURS[colour], label=what.upper())
    left.set(xlabel="minute", ylabel="MiB, all processes", ylim=(0, None))
    left.legend()
    seconds = record["load"]["per_second"]
    right.plot(
        [row["second"] / 60 for row in seconds], [row.get("p99") for row in seconds], color=COLOURS["full"], lw=0.7
    )
    right.set(xlabel="minute", ylabel="p99 of each second, ms", ylim=(0, None))
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="under load (default: 20)")
    parser.add_argument("--warm-up", type=float, help="minutes that do not count (default: a tenth of all, 2 at most)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        with console.status("building the model"):
            models = {NAME: Subject.make().save(Path(folder), ["full"])["full"]}
        with server(models, options.workers) as running:
            record = soak(running, options, console)
    stem = options.out / f"{record['date'][:10]}-soak"
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, stem.with_suffix(".svg"))
    grown = record["growth"]
    console.print(
        f"{record['load']['answered']} answers, {record['load']['errors'] or 'no'} errors; memory after the warm-up: "
        f"USS {grown['uss']:+.2%}, PSS {grown['pss']:+.2%}; written: {stem}.json, .svg"
    )
    return 0 if max(grown.values()) < LIMIT and not record["load"]["errors"] else 1


def soak(running: Running, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Capacity, then the load, watched."""
    url = running.url
    most = loadtest(Options(url, NAME, Load(seconds=15.0)), console)["requests_per_second"]
    load = Load(256, SHARE * most, 60 * options.minutes, warm_up=0.0)
    warm_up = 60 * (options.warm_up if options.warm_up is not None else min(options.minutes / 10, 2.0))
    watch = Watch(running, min(EVERY, 3 * options.minutes))
    watch.start()
    with console.status(f"{options.minutes:g} minutes at {load.rate:.1f} requests per second"):
        done = asyncio.run(run(Address.of(url), bodies(url), load, lambda _: None))
    watch.stopped.set()
    watch.join()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": about(),
        "command": " ".join(["python", *sys.argv]), "workers": options.workers, "capacity": most,
        "rate": load.rate, "minutes": options.minutes, "warm_up_seconds": warm_up,
        "growth": {what: growth(watch.rows, what, warm_up) for what in ("uss", "pss")},
        "load": {**done.samples.figures(), "per_second": done.samples.per_second()}, "samples": watch.rows,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
