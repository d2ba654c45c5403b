"""The picture of a load test: latency by percentile, and what happened second by second. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankhoist.bench.plots import COLOURS, pyplot


def draw(result: dict[str, Any], path: Path) -> None:
    """One result, as an SVG."""
    plt = pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    curve(left, result, "latency", COLOURS["full"])
    seconds = [row["second"] for row in result["per_second"]]
    middle.plot(seconds, [row["answers"] for row in result["per_second"]], color=COLOURS["linear"], label="answers")
    middle.plot(seconds, [row["errors"] for row in result["per_second"]], color=COLOURS["full"], label="errors", ls=":")
    middle.set(xlabel="second", ylabel="per second", ylim=(0, None))
    for name, colour in (("p50", "linear"), ("p99", "full")):
        right.plot(seconds, [row.get(name) for row in result["per_second"]], color=COLOURS[colour], label=name)
    right.set(xlabel="second", ylabel="latency, ms", ylim=(0, None))
    for axes in (middle, right):
        axes.legend()
    figure.suptitle(title(result), fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def curve(axes: Any, result: dict[str, Any], label: str, colour: str) -> None:
    """Latency against its percentile, the rare ones drawn apart: each tick is ten times rarer than the one before."""
    points = [(1 - float(name[1:]) / 100, ms) for name, ms in result["curve_ms"].items()]
    axes.plot([share for share, _ in points], [ms for _, ms in points], color=colour, marker=".", label=label)
    axes.set(xscale="log", xlim=(1, 1e-4), xlabel="percentile", ylabel="latency, ms")
    axes.set_xticks([1, 0.1, 0.01, 0.001, 0.0001], ["0", "90", "99", "99.9", "99.99"])
    axes.grid(alpha=0.3)


def title(result: dict[str, Any]) -> str:
    """Model, load and rate in a line."""
    load = f"{result['in_flight']} in flight" if result["rate"] is None else f"{result['rate']:g}/s, Poisson"
    return (
        f"{result['model']}: {result['candidates']:g} candidates, {load}; {result['requests_per_second']:.1f} answers/s"
    )
