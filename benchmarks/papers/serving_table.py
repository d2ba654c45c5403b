"""RAD, Table 4: requests per second of one process at a fixed p99, for its DLRM family.

Open loop: requests arrive at random whether or not others still wait, and one process with one thread answers them in
order. The bound on p99 is the same for all variants: five times what one call of the plain model takes alone. Searched
is the highest rate that stays within it; then all are given the plain model's rate, which is what p50 and p99 compare.

"FM" splits the pairs alone: they are hoisted at level `first`, and the layers run as trained. "FM + FC" is level
`first` of the whole model, which also splits the layer that reads the pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.papers import models
from benchmarks.papers.common import Options, Record, Reproduction, main, percent, progress, table, timed
from benchmarks.papers.load import Call, highest_rate, open_loop
from benchmarks.papers.subject import PairsOnly, Subject
from rankhoist.bench.plots import COLOURS

N, REQUESTS, BOUND = 500, 400, 5.0  # candidates, requests per run, p99 as a multiple of the plain call
PUBLISHED = {"FM": 25.0, "FM + FC": 87.5}  # more requests, in percent
LATENCY = {"p50": -30, "p99": -33}  # of FM + FC, in percent
DRAWN = {"expand": "expand", "FM": "linear", "FM + FC": "first", "full": "full"}


def calls(n: int) -> dict[str, Call]:
    """The variants, each compared with the original first."""
    subject = Subject.of(models.dlrm, (models.FIELDS, models.WIDTH), (models.ITEMS, models.WIDTH))
    variants = {
        "expand": subject.at("expand", n), "FM": PairsOnly(subject, n), "FM + FC": subject.at("first", n),
        "full": subject.at("full", n),
    }  # fmt: skip
    return {name: subject.call(variant, n) for name, variant in variants.items()}


def measure(options: Options) -> Record:
    n, requests = (100, 60) if options.reduced else (N, REQUESTS)
    chosen = calls(n)
    service = {name: t["median"] for name, t in timed(chosen, options).items()}
    bound = BOUND * service["expand"]
    steps = 3 if options.reduced else 7
    rates = {
        name: highest_rate(call, bound, service[name], requests, steps)
        for name, call in progress(chosen.items(), "highest rates")
    }
    if not rates["expand"]:
        raise SystemExit(
            f"no rate keeps p99 of the plain model within {bound:.2f} ms: something else uses this machine"
        )
    latency = {name: _latency(call, rates["expand"], requests) for name, call in chosen.items()}
    return {
        "candidates": n, "requests": requests, "bound_ms": bound, "service_ms": service, "rates": rates,
        "latency_ms": latency,
    }  # fmt: skip


def _latency(call: Call, rate: float, requests: int) -> Record:
    """At one rate, over three runs together."""
    taken = np.concatenate([open_loop(call, rate, requests, seed) for seed in range(3)])
    return {"p50": float(np.quantile(taken, 0.5)), "p99": float(np.quantile(taken, 0.99))}


def tables(record: Record) -> dict[str, str]:
    rates, latency = record["rates"], record["latency_ms"]
    rows = []
    for name, rate in rates.items():
        more = percent(rate / rates["expand"] - 1) if name != "expand" else ""
        at = latency[name]
        changes = [percent(at[q] / latency["expand"][q] - 1) if name != "expand" else "" for q in LATENCY]
        rows.append([
            name, f"+{PUBLISHED[name]:g} %" if name in PUBLISHED else "", more, f"{rate:.1f}",
            f"{record['service_ms'][name]:.2f}",
            *(f"{at[q]:.2f}" for q in LATENCY),
            *(f"{change} ({LATENCY[q]} %)" if name == "FM + FC" else change
              for change, q in zip(changes, LATENCY, strict=True)),
        ])  # fmt: skip
    n, bound, low = record["candidates"], record["bound_ms"], rates["expand"]
    head = ["variant", "published: more requests", "ours", f"requests/s at p99 of {bound:.1f} ms",
            f"one call, ms, N = {n}", f"p50, ms, at {low:.1f} requests/s", "p99, ms", "p50 (published)",
            "p99 (published)"]  # fmt: skip
    return {"requests": table(head, rows)}


def draw(plt: Any, record: Record) -> Any:
    """Requests per second of each variant."""
    figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    rates = record["rates"]
    bars = ax.bar(list(rates), list(rates.values()), color=[COLOURS[DRAWN[name]] for name in rates])
    ax.bar_label(bars, [f"{rate:.0f}" for rate in rates.values()], padding=2)
    ax.set(ylabel=f"requests per second, p99 within {record['bound_ms']:.0f} ms")
    return figure


REPRODUCTION = Reproduction(
    "serving_table", "RAD, Table 4: requests at a fixed p99", __doc__, measure, tables, draw, counts=False
)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
