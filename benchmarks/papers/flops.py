"""RAD, Table 3: multiply-adds of interaction, fully connected layers and total, for its DCN and its DLRM family.

Searches the widths of the fully connected layers with which the published totals come out, counts what hoisted models
of these widths do, shows where the published numbers do not follow from the formulas, and adds what the table lacks:
level `full` on the unmodified models, in operations and in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from math import comb
from typing import Any

from benchmarks.papers import models
from benchmarks.papers.common import Options, Record, Reproduction, main, ms, percent, progress, table, timed
from benchmarks.papers.subject import PairsOnly, Subject, counted
from rankhoist import HoistedModel
from rankhoist.bench import closed_forms
from rankhoist.bench.closed_forms import Work
from rankhoist.bench.plots import COLOURS

PUBLISHED = {  # change of interaction, fully connected layers, total, in percent
    ("DCN", "first"): (-18, -36, -20),
    ("DCN", "rDCN"): (-72, -36, -67),
    ("DLRM", "FM"): (-87, 0, -17),
    ("DLRM", "FM + FC"): (-87, -69, -73),
}
N = 1000
MORE = [100, 10_000, 100_000]  # candidates for which `full` is counted too
STEPS = {"DCN": 64, "DLRM": 8}  # of the widths that are searched


# -- the widths of the fully connected layers


def widths(family: str, most: int = 1024) -> Iterator[tuple[int, ...]]:
    """Two or three falling widths."""
    sizes = range(most, 0, -STEPS[family])
    return (hidden for k in (2, 3) for hidden in itertools.combinations(sizes, k))


def connected(family: str, hidden: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds of the fully connected layers per candidate, and those among them that read context alone."""
    if family == "DCN":
        inputs, of_context, last = models.CONTEXT + models.CANDIDATE, models.CONTEXT, models.CONTEXT + models.CANDIDATE
    else:
        inputs, of_context, last = comb(models.FIELDS + models.ITEMS, 2), comb(models.FIELDS, 2), 0
    inner = sum(a * b for a, b in itertools.pairwise(hidden))
    return inputs * hidden[0] + inner + hidden[-1] + last, of_context * hidden[0]


@cache
def interaction(family: str) -> tuple[int, dict[str, float]]:
    """Its multiply-adds per candidate, and the share of them that each of RAD's variants saves by RAD's own account."""
    if family == "DCN":
        form = closed_forms.rdcn(models.CONTEXT, models.CANDIDATE, models.LAYERS)
        return form.plain.each, {"first": 0.18, "rDCN": float(form.saved)}
    form = closed_forms.gram(models.FIELDS, models.ITEMS, models.WIDTH)
    return form.plain.each, {"FM": float(form.saved), "FM + FC": float(form.saved)}


def fits(family: str, hidden: tuple[int, ...]) -> bool:
    """Whether all published percentages come out, each rounded."""
    fc, once = connected(family, hidden)
    work, shares = interaction(family)
    for name, share in shares.items():
        saved = 0 if name == "FM" else once
        found = share, saved / fc, (share * work + saved) / (work + fc)
        if tuple(round(-100 * x) for x in found) != PUBLISHED[family, name]:
            return False
    return True


def search(family: str) -> list[tuple[int, ...]]:
    """All widths that fit."""
    return sorted(hidden for hidden in widths(family) if fits(family, hidden))


# -- counting


def subjects() -> dict[str, Subject]:
    """The three models."""
    columns = (models.CONTEXT,), (models.CANDIDATE,)
    return {
        "DCN": Subject.of(models.dcnv2, *columns),
        "rDCN": Subject.of(models.rdcn, *columns),
        "DLRM": Subject.of(models.dlrm, (models.FIELDS, models.WIDTH), (models.ITEMS, models.WIDTH)),
    }


def variants(own: dict[str, Subject], n: int) -> dict[str, dict[str, Any]]:
    """What each family is compared in, the plain model first; each is called with (context, candidate)."""
    dcn, rdcn, dlrm = own["DCN"], own["rDCN"], own["DLRM"]
    return {
        "DCN": {
            "plain": dcn.at("expand", n), "first": dcn.at("first", n), "full": dcn.at("full", n),
            "rDCN": rdcn.at("full", n),
        },
        "DLRM": {
            "plain": dlrm.at("expand", n), "FM": PairsOnly(dlrm, n), "FM + FC": dlrm.at("first", n),
            "full": dlrm.at("full", n),
        },
    }  # fmt: skip


def is_interaction(module: str) -> bool:
    """Of a module's path: the cross network, or the pairs, which belong to no layer."""
    return module.startswith("cross") or not module


def is_connected(module: str) -> bool:
    """Of a module's path: a fully connected layer."""
    return not is_interaction(module)


def parts(variant: Any, plain: HoistedModel) -> dict[str, tuple[int, int]]:
    """Multiply-adds per request and per candidate."""
    if isinstance(variant, PairsOnly):
        found = {"interaction": counted(variant.hoisted), "fc": counted(plain, is_connected)}
    else:
        found = {"interaction": counted(variant, is_interaction), "fc": counted(variant, is_connected)}
    found["total"] = found["interaction"] + found["fc"]
    return {name: (work.once, work.each) for name, work in found.items()}


def measure(options: Options) -> Record:
    n = 100 if options.reduced else N
    own = subjects()
    families: Record = {}
    for family, chosen in progress(variants(own, n).items(), "families"):
        calls = {x: (own["rDCN"] if x == "rDCN" else own[family]).call(found, n) for x, found in chosen.items()}
        families[family] = {
            "fitting": search(family), "counts": {x: parts(found, chosen["plain"]) for x, found in chosen.items()},
            "time": timed({"original": own[family].original(n), **calls}, options),
            "full_at": {str(m): own[family].at("full", m).plan.cost.multiply_adds for m in sorted({n, *MORE})},
        }  # fmt: skip
    return {"candidates": n, "families": families}


# -- tables


def change(counts: Record, variant: str, part: str, n: int | None = None) -> float:
    """Against the plain model: for n candidates, or in the limit of many."""
    new, old = (Work(*counts[x][part]) for x in (variant, "plain"))
    return (new.each / old.each if n is None else new.of(n) / old.of(n)) - 1


def tables(record: Record) -> dict[str, str]:
    return {
        "operations": _operations(record), "contradictions": _contradictions(), "widths": _widths(record),
        "full by candidates": _full(record), "time": _time(record),
    }  # fmt: skip


def _operations(record: Record) -> str:
    n = record["candidates"]
    head = ["family", "variant", "published: interaction / FC / total", "many candidates", f"N = {n}"]
    rows = []
    for family, own in record["families"].items():
        for variant in list(own["counts"])[1:]:
            published = PUBLISHED.get((family, variant))
            ours = [
                " / ".join(
                    percent(change(own["counts"], variant, part, m), 1) for part in ("interaction", "fc", "total")
                )
                for m in (None, n)
            ]
            shown = "-" if published is None else " / ".join(percent(x / 100) for x in published)
            rows.append([family, variant, shown, *ours])
    return table(head, rows, left=2)


def _contradictions() -> str:
    c, t, layers, k, m, d = (
        models.CONTEXT, models.CANDIDATE, models.LAYERS, models.FIELDS, models.ITEMS, models.WIDTH,
    )  # fmt: skip
    exact, rdcn = closed_forms.cross_network(c, t, layers), closed_forms.rdcn(c, t, layers)
    rows = [
        ["first cross layer of DCNv2", "-18 %", "first layer exact, C / (D L)", _saved(exact)],
        ["", "", "a quarter of rDCN's, (1 - (T / D)^2) / L", percent(-float(rdcn.saved) / layers, 1)],
        ["rDCN", "-72 %", "1 - (T / D)^2", _saved(rdcn)],
        ["", "", "with C T per candidate, as printed", _saved(closed_forms.rdcn_as_printed(c, t, layers))],
        ["pairs (FM)", "-87 %", "K / (K + M), Gram matrix", _saved(closed_forms.gram(k, m, d))],
        ["", "", "Eq. 8, each pair once", _saved(closed_forms.dot_pairs(k, m, d))],
    ]  # fmt: skip
    return table(["part", "published", "formula", "gives"], rows, left=3)


def _saved(form: closed_forms.Split) -> str:
    return percent(-float(form.saved), 1)


def _widths(record: Record) -> str:
    chosen = {"DCN": models.CROSS_HIDDEN, "DLRM": models.PAIRS_HIDDEN}
    rows = []
    for family, own in record["families"].items():
        fitting = sorted(tuple(h) for h in own["fitting"])
        shown = "; ".join(", ".join(map(str, h)) for h in fitting[:4])
        rows.append([family, ", ".join(map(str, chosen[family])), STEPS[family], len(fitting), shown])
    return table(["family", "taken", "in steps of", "that fit", "the first of them"], rows, left=2)


def _full(record: Record) -> str:
    counts = list(record["families"]["DCN"]["full_at"])
    rows = []
    for family, own in record["families"].items():
        plain = Work(*own["counts"]["plain"]["total"])
        lower = Work(*own["counts"]["first" if family == "DCN" else "FM + FC"]["total"])
        found = [work / plain.of(int(n)) - 1 for n, work in own["full_at"].items()]
        rows.append([family, "`first`", *(percent(lower.of(int(n)) / plain.of(int(n)) - 1, 1) for n in counts)])
        rows.append([family, "`full`", *(percent(x, 1) for x in found)])
    return table(["family", "total multiply-adds", *(f"N = {n}" for n in counts)], rows, left=2)


def _time(record: Record) -> str:
    rows = []
    for family, own in record["families"].items():
        for variant, found in own["time"].items():
            faster = own["time"]["original"]["median"] / found["median"]
            rows.append([family, variant, ms(own["time"], variant), f"{faster:.2f}x"])
    if not rows:
        return "Not timed in this run."
    return table(["family", "variant", f"ms, N = {record['candidates']}", "original / variant"], rows, left=2)


def draw(plt: Any, record: Record) -> Any:
    """Changes by part, published beside counted."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    labels = [f"{family}\n{variant}" for family, variant in PUBLISHED]
    for ax, (i, part) in zip(axes, enumerate(("interaction", "fc", "total")), strict=True):
        ours = [100 * change(record["families"][f]["counts"], v, part) for f, v in PUBLISHED]
        for offset, values, colour, name in (
            (-0.2, [p[i] for p in PUBLISHED.values()], COLOURS["expand"], "published"),
            (0.2, ours, COLOURS["full"], "counted"),
        ):
            bars = ax.bar([x + offset for x in range(len(labels))], values, 0.4, color=colour, label=name)
            ax.bar_label(bars, [f"{v:.0f}" for v in values], fontsize=7, padding=1)
        ax.set_xticks(range(len(labels)), labels, fontsize=8)
        ax.set(title=part, ylabel="change of multiply-adds per candidate, %" if not i else None)
    axes[0].legend()
    return figure


REPRODUCTION = Reproduction("flops", "RAD, Table 3: operations", __doc__, measure, tables, draw)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
