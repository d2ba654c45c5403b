"""A large catalogue: how fast it is built and opened, whether answers stay whole while it changes, and files of pairs.

    python benchmarks/catalogue_scale.py [--items 1000000] [--pairs 300000] [--only build updates pairs] [--out DIR]

A ranker whose item side is a tower over a vector of 128 numbers. `build`: items come in pieces that are in memory
already; the rate is compared with that of the item stage alone, peak memory with the size of the store. `updates`: a
server with two workers and so many items; 1000 of them are put a hundred times, while 50 requests per second ask for
some of them, and each answer must be that of one edition. `pairs`: `rankhoist score` over rows that repeat 10 000
items, without marks (`plain`), with marked items (`repeats`), with a column that names them (`ids`), the same with all
rows of an id compared (`checked`), and with items in a file of their own (`catalogue`); one after the other, in rounds,
once their scores are found equal. Seconds are those of the process, beside those of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from served import about, server, write_result
from torch import Tensor, nn

import rankhoist
from rankhoist.runtime.catalogue.stage import blocks
from rankhoist.score import Options, run

WIDTH, CONTEXT, USERS = 128, 64, 1000
PUT, PUTS, RATE, ASKED = 1000, 100, 50.0, 200  # items of a request that puts some, and candidates of one that scores
PARTS = ["build", "updates", "pairs"]
RUNS: dict[str, dict[str, Any]] = {  # of pairs: what a job is given besides its model and rows
    "plain": {}, "repeats": {}, "ids": {"item_id": "item_id"}, "checked": {"item_id": "item_id", "check_items": True},
    "catalogue": {"catalogue": ["catalogue.parquet"]},
}  # fmt: skip
ROUNDS = 3
CLOCKS = {"process": time.process_time, "wall": time.perf_counter}
TOLERANCE = 1e-6  # of a score


class Ranker(nn.Module):
    """An item tower before a small ranker."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(USERS, CONTEXT)
        self.tower = nn.Sequential(nn.Linear(WIDTH, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 32))
        self.hidden, self.top = nn.Linear(CONTEXT + 32 + 1, 64), nn.Linear(64, 1)

    def forward(self, user: Tensor, text: Tensor, place: Tensor) -> Tensor:
        x = torch.relu(self.hidden(torch.cat([self.users(user), self.tower(text), place], 1)))
        scores: Tensor = self.top(x).squeeze(1)
        return scores


def ranker() -> Ranker:
    """The same one every time."""
    torch.manual_seed(0)
    return Ranker().eval()


def hoisted(marked: bool = True) -> rankhoist.HoistedModel:
    """With the items' input marked, or not."""
    rows = (torch.arange(4), torch.randn(4, WIDTH), torch.rand(4, 1))
    return rankhoist.hoist(ranker(), rows, context=["user"], item=["text"] if marked else None)


# -- build


def build(count: int) -> dict[str, Any]:
    """In this process, whose memory is measured: run as a process of its own."""
    torch.set_num_threads(1)
    model = hoisted()
    piece = torch.randn(16_384, WIDTH)
    stage = model._item_stage()
    start = time.perf_counter()
    for first, end in blocks(len(piece)):
        stage({"text": piece}, first, end)
    alone = len(piece) / (time.perf_counter() - start)

    def pieces() -> Iterator[tuple[Any, dict[str, Tensor]]]:
        for first in range(0, count, len(piece)):
            own = min(len(piece), count - first)
            yield np.arange(first, first + own), {"text": piece[:own]}

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = model.catalogue_in_pieces(pieces(), count, path=Path(folder) / "store")
        rate = count / (time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        start = time.perf_counter()
        opened = model.open_catalogue(Path(folder) / "store")
        seconds = time.perf_counter() - start
        assert len(opened) == count
    return {"stage_per_second": alone, "built_per_second": rate, "bytes": store.bytes, "peak_bytes": peak,
            "open_seconds": seconds}  # fmt: skip


# -- updates


def updates(count: int, folder: Path) -> dict[str, Any]:
    """Answers while items change."""
    own = ranker()
    hoisted().save(folder / "ranker.rankhoist")
    generator = torch.Generator().manual_seed(1)
    with pq.ParquetWriter(folder / "items.parquet", _table(np.arange(1), torch.zeros(1, WIDTH)).schema) as writer:
        for first in range(0, count, 50_000):
            ids = np.arange(first, min(first + 50_000, count))
            writer.write_table(_table(ids, torch.randn(len(ids), WIDTH, generator=generator).half().float()))
    editions = [torch.randn(PUT, WIDTH, generator=generator) for _ in range(PUTS)]
    rows, places = torch.randint(PUT, (ASKED,), generator=generator), torch.rand(ASKED, 1, generator=generator)
    with torch.inference_mode():
        expected = torch.stack([own(torch.full((ASKED,), 7), text[rows], places) for text in editions]).numpy()
    asked = {"context": {"user": 7}, "candidates": {"item_id": rows.tolist(), "place": places.tolist()}}
    flags = ("--catalogue", str(folder / "items.parquet"), "--put-items", "--max-body-bytes", str(2**26))
    with server({"ranker": folder / "ranker.rankhoist"}, 2, *flags) as running:
        asking = Asking(f"{running.url}/v1/models/ranker/rank", asked, expected)
        seconds = []
        with httpx.Client(timeout=60) as client:
            for number, text in enumerate(editions):
                body = json.dumps({"items": {"item_id": list(range(PUT)), "text": text.tolist()}})
                start = time.perf_counter()
                client.put(f"{running.url}/v1/models/ranker/items", content=body).raise_for_status()
                seconds.append(time.perf_counter() - start)
                if number == 0:
                    asking.start()
        asking.end()
    return {"updates": PUT * PUTS, "put_ms": 1e3 * float(np.median(seconds)), **asking.found()}


class Asking:
    """Requests at a steady rate, whose answers are compared with those of every edition."""

    def __init__(self, url: str, body: Any, expected: Any) -> None:
        self._url, self._body, self._expected = url, json.dumps(body), expected
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(4)]
        self._errors: list[float] = []
        self._editions: set[int] = set()
        self._refused = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def found(self) -> dict[str, Any]:
        return {"answers": len(self._errors), "refused": self._refused, "largest_error": max(self._errors),
                "editions_seen": len(self._editions)}  # fmt: skip

    def _ask(self, number: int) -> None:
        pause = len(self._threads) / RATE
        due = time.monotonic() + number / RATE
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                time.sleep(max(due - time.monotonic(), 0))
                due += pause
                answer = client.post(self._url, content=self._body)
                if answer.status_code != 200:
                    self._refused += 1
                    continue
                off = np.abs(np.array(answer.json()["scores"]) - self._expected).max(1)
                self._errors.append(float(off.min()))
                self._editions.add(int(off.argmin()))


def _table(ids: Any, text: Tensor, **more: Any) -> pa.Table:
    return pa.table({"item_id": pa.array(ids), "text": _column(text), **more})


def _column(x: Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1).numpy()), x.shape[1])


# -- pairs


def pairs(count: int, folder: Path, items: int = 10_000, each: int = 100) -> dict[str, Any]:
    """Rows per second of files of pairs."""
    for name in ("plain", "repeats"):
        hoisted(name == "repeats").save(folder / f"{name}.rankhoist")
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(items, WIDTH, generator=generator)
    pq.write_table(_table(np.arange(items), text), folder / "catalogue.parquet")
    chunk = 10_000
    writers: dict[str, pq.ParquetWriter] = {}
    for first in range(0, count, chunk):
        drawn = torch.randint(items, (chunk,), generator=generator)
        request = torch.arange(first, first + chunk) // each
        left = {"request_id": pa.array(request.numpy()), "user": pa.array((request % USERS).numpy()),
                "place": _column(torch.rand(chunk, 1, generator=generator))}  # fmt: skip
        tables = {"whole": _table(drawn.numpy(), text[drawn], **left),
                  "named": pa.table({"item_id": pa.array(drawn.numpy()), **left})}  # fmt: skip
        for name, table in tables.items():
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema)
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()
    scores = {name: _pairs_scored(name, folder)[1] for name in RUNS}
    error = max(float(np.abs(own - scores["plain"]).max()) for own in scores.values())
    assert error < TOLERANCE, error
    took = [{name: _pairs_scored(name, folder)[0] for name in RUNS} for _ in range(ROUNDS)]
    speeds = {
        clock: {name: count / float(np.median([round_[name][clock] for round_ in took])) for name in RUNS}
        for clock in CLOCKS
    }
    return {"rows_per_second": speeds, "largest_difference": error, "seconds": took}


def _pairs_scored(name: str, folder: Path) -> tuple[dict[str, float], Any]:
    """Seconds of one job, by each clock, and its scores."""
    out = folder / "scores"
    shutil.rmtree(out, ignore_errors=True)
    artifact = folder / f"{'plain' if name == 'plain' else 'repeats'}.rankhoist"
    rows = folder / f"{'named' if name == 'catalogue' else 'whole'}.parquet"
    more = {flag: [str(folder / x) for x in own] if flag == "catalogue" else own for flag, own in RUNS[name].items()}
    given = Options(str(artifact), str(out), candidates=[str(rows)], **more)
    start = {clock: read() for clock, read in CLOCKS.items()}
    run(given)
    seconds = {clock: read() - start[clock] for clock, read in CLOCKS.items()}
    return seconds, pq.read_table(out)["scores"].to_numpy()


# -- all of it


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["# A large catalogue", "", f"{record['date']}, {record['machine']['processor']}, torch "
             f"{record['machine']['torch']}; `{record['command']}`; the machine did other work, too.", ""]  # fmt: skip
    if b := record.get("build"):
        share, over = b["built_per_second"] / b["stage_per_second"], (b["peak_bytes"] - b["bytes"]) / 1e6
        lines += [
            f"* {record['items']:,} items built at {b['built_per_second']:,.0f} items/s, {share:.0%} of the item stage "
            f"alone ({b['stage_per_second']:,.0f}); {b['bytes'] / 1e6:,.0f} MB, peak memory of the process {over:,.0f} "
            f"MB above that; opened in {b['open_seconds']:.2f} s.",
        ]  # fmt: skip
    if u := record.get("updates"):
        lines += [
            f"* {u['updates']:,} updates in {PUTS} requests ({u['put_ms']:.0f} ms each, median) while {u['answers']:,} "
            f"requests were answered and {u['refused']} refused: no answer is further than {u['largest_error']:.1e} "
            f"from that of one of {u['editions_seen']} editions that were seen.",
        ]  # fmt: skip
    if p := record.get("pairs"):
        lines += [f"* {record['pairs_count']:,} pairs of 10,000 items, rows/s, medians of {ROUNDS} rounds; largest "
                  f"difference of scores {p['largest_difference']:.1e}.", "",
                  "| | of process time | | of the clock | |", "|---|---:|---:|---:|---:|"]  # fmt: skip
        for name in RUNS:
            own = [(p["rows_per_second"][clock][name], p["rows_per_second"][clock]["plain"]) for clock in CLOCKS]
            lines += [f"| {name} | " + " | ".join(f"{x:,.0f} | {x / plain:.1f}x" for x, plain in own) + " |"]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(build(options.items)))
        return 0
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": about(),
        "command": " ".join(["python", *sys.argv]), "items": options.items, "pairs_count": options.pairs,
    }  # fmt: skip
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if "build" in options.only:
            command = [sys.executable, __file__, "--in-this-process", "--items", str(options.items)]
            record["build"] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if "updates" in options.only:
            record["updates"] = updates(options.items, Path(folder))
        if "pairs" in options.only:
            record["pairs"] = pairs(options.pairs, Path(folder))
    parts = "scale" if options.only == PARTS else "-".join(options.only)
    stem = options.out / f"{record['date'][:10]}-catalogue-{parts}"
    write_result(record, page(record), stem)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
