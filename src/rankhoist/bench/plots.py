"""Pictures of a run, as SVG. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankhoist.bench.goals import Record, foretold, median, ratio
from rankhoist.errors import ExtraError

# Okabe and Ito: told apart by colour-blind people too; line styles and markers say the same once more.
COLOURS = {"eager": "#000000", "expand": "#999999", "lookup": "#E69F00", "request": "#56B4E9", "linear": "#009E73",
           "first": "#CC79A7", "full": "#D55E00", "compile": "#0072B2", "vmap": "#F0E442"}  # fmt: skip
MARKERS = dict(zip(COLOURS, "o.v^s*DPX", strict=True))
COLUMNS = 4  # of small pictures


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ExtraError("plots need matplotlib: pip install 'rankhoist[bench]' (or pass --no-plots)") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rankhoist"  # the same run gives the same file
    from matplotlib import pyplot as plt

    return plt


def draw(record: dict[str, Any], stem: Path) -> list[Path]:
    """All pictures that the cells of a run allow, as `stem-NAME.svg`."""
    plt = pyplot()
    timed = [r for r in record["cells"] if r["time"]]
    pictures: dict[str, Callable[[Any, Sequence[Record]], Any]] = {
        "times": _times, "ratios": _ratios, "shares": _shares, "predicted": _predicted,
    }  # fmt: skip
    written = []
    for name, picture in pictures.items():
        figure = picture(plt, timed)
        if figure is not None:
            written.append(stem.with_name(f"{stem.name}-{name}.svg"))
            figure.savefig(written[-1], bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    return written


def _times(plt: Any, timed: Sequence[Record]) -> Any:
    """Time against N, one small picture per scenario, a line per level."""
    groups = _grouped([r for r in timed if r["requests"] == 1 and not r["share"]], "scenario")
    groups = {name: own for name, own in groups.items() if len(own) > 1}
    if not groups:
        return None
    rows = -(-len(groups) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3.2 * COLUMNS, 2.6 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax, (name, own) in zip(axes.flat, groups.items(), strict=False):
        for variant, colour in COLOURS.items():
            points = sorted((r["candidates"], median(r, variant)) for r in own if variant in r["time"])
            if points:
                ax.plot(*zip(*points, strict=True), color=colour, marker=MARKERS[variant], markersize=4, label=variant,
                        linewidth=2.2 if variant == "full" else 1)  # fmt: skip
        ax.set(title=name, xscale="log", yscale="log", xlabel="candidates N", ylabel="time per call, ms")
    handles = {h.get_label(): h for ax in axes.flat for h in ax.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _ratios(plt: Any, timed: Sequence[Record]) -> Any:
    """How much faster than the original for 1000 candidates."""
    own = {r["scenario"]: r for r in timed if r["requests"] == 1 and r["candidates"] == 1000}
    if not own:
        return None
    figure, ax = plt.subplots(figsize=(8, 0.5 + 0.42 * len(own)), layout="constrained")
    for offset, variant in ((0.2, "full"), (-0.2, "first")):
        values = [ratio(r, "eager", variant) for r in own.values()]
        places, lengths = [i - offset for i in range(len(own))], [v - 1 for v in values]
        bars = ax.barh(places, lengths, 0.4, left=1, color=COLOURS[variant], label=variant)  # from "as fast", both ways
        ax.bar_label(bars, [f"{v:.1f}" for v in values], padding=2, fontsize=7)
    ax.set_yticks(range(len(own)), list(own))
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel="time of the original / time of the level (1000 candidates, no unit)")
    ax.legend()
    return figure


def _shares(plt: Any, timed: Sequence[Record]) -> Any:
    """The ratio against the share of context, per model, a line per number of candidates."""
    families = _grouped([r for r in timed if r["share"] and r["requests"] == 1], "family")
    if not families:
        return None
    figure, axes = plt.subplots(1, len(families), figsize=(3.2 * len(families), 3), squeeze=False, layout="constrained")
    colours = [*list(COLOURS.values())[2:], "#000000"]
    for ax, (family, own) in zip(axes.flat, families.items(), strict=True):
        for i, (count, cells) in enumerate(sorted(_grouped(own, "candidates").items())):
            points = sorted((r["share"], ratio(r, "eager")) for r in cells)
            ax.plot(*zip(*points, strict=True), color=colours[i % len(colours)], marker="ovs^D*"[i % 6],
                    label=f"N = {count}")  # fmt: skip
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(title=family, xlabel="context, % of the columns", ylabel="time of the original / full", yscale="log")
        ax.legend(fontsize=7)
    return figure


def _predicted(plt: Any, timed: Sequence[Record]) -> Any:
    """Predicted against measured time; the band is what is asked for."""
    if not timed:
        return None
    figure, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    for label, several, marker, colour in (("one request", False, "o", "full"), ("several", True, "^", "compile")):
        own = [r for r in timed if (r["requests"] > 1) == several]
        if own:
            ax.scatter([median(r, "full") for r in own], [r["predicted"] for r in own], s=14, marker=marker,
                       color=COLOURS[colour], label=label)  # fmt: skip
    ends = [min(median(r, "full") * min(foretold(r), 1) for r in timed), max(median(r, "full") for r in timed)]
    ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.fill_between(ends, [0.6 * x for x in ends], [1.6 * x for x in ends], color="#999999", alpha=0.25)
    ax.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
    ax.legend()
    return figure


def _grouped(records: Sequence[Record], key: str) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for r in records:
        groups.setdefault(r[key], []).append(r)
    return groups
