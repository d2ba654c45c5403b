"""`rankhoist loadtest`: choose requests, put the load on the server, say what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rankhoist_client import Client, messages
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rankhoist.compiler.targets.machine import machine
from rankhoist.lab.loadtest import examples
from rankhoist.lab.loadtest.connection import Address, http_request
from rankhoist.lab.loadtest.load import Load, run
from rankhoist.lab.loadtest.samples import Samples

DIFFERENT = 32  # requests that are drawn, and then sent in turn
RECENT = 500  # requests that the progress line speaks of


@dataclass(frozen=True)
class Options:
    """Of one load test.

    requests   a JSON file of requests to send in turn; else they are drawn at random, with `candidates` each
    protocol   "binary" (v2) or "json" (/v1 rank)
    """

    url: str
    model: str
    load: Load = field(default_factory=Load)
    candidates: int = 1000
    requests: Path | None = None
    protocol: messages.Protocol = "binary"


def loadtest(options: Options, console: Console | None = None) -> dict[str, Any]:
    """Run it, with progress on the console; the result as plain data.

    Raises:
        CallError: the server or the model is not there, or refuses the first request.
        CommandError: the URL or the file of requests cannot be used.
    """
    address = Address.of(options.url)
    given = chosen(options)
    encode = messages.rank_json if options.protocol == "json" else messages.rank_binary
    calls = [encode(messages.Question(options.model), e.context, e.candidates) for e in given]
    with Client(options.url) as client:
        client.send(calls[0])  # a load of refused requests would measure nothing
    bodies = [http_request(address, call.path, call.content, dict(call.headers)) for call in calls]
    done = _with_progress(options.load, console or Console(), lambda watch: run(address, bodies, options.load, watch))
    sizes = [len(next(iter(e.candidates.values()))) for e in given if e.candidates]
    return {
        "url": options.url, "model": options.model, "protocol": options.protocol,
        "in_flight": options.load.connections, **asdict(options.load),
        "candidates": sum(sizes) / len(sizes), "body_bytes": sum(map(len, bodies)) / len(bodies),
        **done.samples.figures(), "sent_late_ms": done.samples.lateness(), "generator_cores": done.cores,
        "per_second": done.samples.per_second(), "machine": machine(),
    }  # fmt: skip


def chosen(options: Options) -> list[examples.Example]:
    """The requests of a test, read or drawn."""
    with Client(options.url) as client:
        metadata = client.metadata(options.model)
    if options.requests is not None:
        return examples.read(options.requests, metadata)
    return examples.drawn(metadata, options.candidates, DIFFERENT, options.load.seed)


def _with_progress(load: Load, console: Console, start: Callable[[Callable[[Samples], None]], Any]) -> Any:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("warm-up", total=load.warm_up + load.seconds, state="")

        def watch(samples: Samples) -> None:
            if not samples.due:
                return
            passed = samples.done[-1] - samples.due[0]
            recent = samples.latest(RECENT).figures()
            state = f"{recent['requests_per_second']:.0f}/s  p99 {recent['latency_ms'].get('p99', float('nan')):.1f} ms"
            state += f"  {recent['errors']}" if recent["errors"] else ""
            about = "warm-up" if passed < load.warm_up else "measuring"
            progress.update(task, completed=passed, description=about, state=state)

        return asyncio.run(start(watch))


def table(result: dict[str, Any]) -> Table:
    """The figures of a result for people."""
    shown = Table(title=f"{result['model']} at {result['url']}", show_header=False)
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    shown.add_row("answers per second", f"{result['requests_per_second']:.1f}")
    for name, value in result["latency_ms"].items():
        shown.add_row(f"latency {name}", f"{value:.2f} ms")
    for kind, number in result["errors"].items():
        shown.add_row(f"failed: {kind}", f"{number}")
    shown.add_row("sent late (p99)", f"{result['sent_late_ms'].get('p99', 0.0):.2f} ms")
    shown.add_row("the generator's own processor time", f"{result['generator_cores']:.2f} cores")
    return shown
