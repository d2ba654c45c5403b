"""MaRI: one linear fusion layer over user and item columns, neat and fragmented.

User columns are 1, 3 or 10 times as many as item columns; the model takes one matrix of both. Neat is [user, item];
fragmented interleaves both sides in up to 64 pieces. Beside levels `expand`, `linear` and `full` run two splits as one
would write them by hand: "sliced" takes the pieces' columns out of weight and inputs at run time and adds their
products, "gathered" collects the weight's columns at run time and multiplies once per side. Here the layout is resolved
when the model is hoisted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.papers.common import Options, Record, Reproduction, main, ms, percent, progress, table, timed
from benchmarks.papers.subject import checked
from rankhoist import HoistedModel, Split, Workload
from rankhoist.bench import closed_forms
from rankhoist.bench.plots import COLOURS
from rankhoist.capture import capture
from rankhoist.hoist import hoist_program

ITEM, OUT = 128, 256  # columns of the item, outputs of the layer
NEAT = 2  # pieces
LAYOUT_N = 1000  # candidates with which layouts are compared
LEVELS = ["expand", "linear", "full"]


@dataclass(frozen=True)
class Size:
    """User columns per item column, candidates of the neat layout, pieces."""

    ratios: Sequence[int]
    candidates: Sequence[int]
    pieces: Sequence[int]


FULL = Size([1, 3, 10], [100, 500, 1000, 2000], [NEAT, 4, 8, 16, 32, 64])
REDUCED = Size([1, 3, 10], [100, 2000], [NEAT, 64])


class Fusion(nn.Module):
    """`W x + b` over one matrix `[N, user + item]`, in which pieces of both sides take turns, the user's first."""

    def __init__(self, user: int, item: int, out: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(user + item, out)
        sides = (_cuts(user, pieces // 2), _cuts(item, pieces // 2))
        self.order = [(side, own) for both in zip(*sides, strict=True) for side, own in enumerate(both)]

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.linear(rows)
        return out

    def pieces(self) -> Iterator[tuple[int, slice, slice]]:
        """Of each piece: its side (0 the user), its columns there, and its columns in the matrix."""
        ends = accumulate((own.stop - own.start for _, own in self.order), initial=0)
        for (side, own), (start, stop) in zip(self.order, pairwise(ends), strict=True):
            yield side, own, slice(start, stop)

    def columns(self, side: int) -> list[int]:
        """Those of one side in the matrix, in the order of that side."""
        return [c for s, _, own in self.pieces() if s == side for c in range(own.start, own.stop)]

    def packed(self, user: Tensor, item: Tensor) -> Tensor:
        """`[1, user]` and `[N, item]` as the model takes them, `[N, user + item]`."""
        sides = user.expand(len(item), -1), item
        return torch.cat([sides[side][:, own] for side, own in self.order], 1)


def _cuts(width: int, count: int) -> list[slice]:
    """Pieces whose widths differ by at most one."""
    ends = accumulate((width // count + (i < width % count) for i in range(count)), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def sliced(model: Fusion, pieces: list[tuple[int, slice, slice]], user: Tensor, item: Tensor) -> Tensor:
    """A product per piece, columns sliced at run time."""
    weight, once, each = model.linear.weight, model.linear.bias, None
    for side, own, columns in pieces:
        if side == 0:
            once = once + user[:, own] @ weight[:, columns].T
        elif each is None:
            each = item[:, own] @ weight[:, columns].T
        else:
            each = torch.addmm(each, item[:, own], weight[:, columns].T)
    assert each is not None
    return each + once


def gathered(model: Fusion, columns: list[Tensor], user: Tensor, item: Tensor) -> Tensor:
    """A product per side, the weight's columns collected at run time."""
    of_user, of_item = (model.linear.weight.index_select(1, own) for own in columns)
    return F.linear(item, of_item) + F.linear(user, of_user, model.linear.bias)


def measure(options: Options) -> Record:
    """What is compared takes turns: the variants of a size, and all layouts of a ratio."""
    size = REDUCED if options.reduced else FULL
    groups = [[(r, n, NEAT)] for r in size.ratios for n in size.candidates if n != LAYOUT_N]
    groups += [[(r, LAYOUT_N, p) for p in size.pieces] for r in size.ratios]
    measured = [cell for group in progress(groups, "groups of cells") for cell in _group(group, options)]
    return {"item": ITEM, "out": OUT, "cells": measured}


def _group(sizes: Sequence[tuple[int, int, int]], options: Options) -> list[Record]:
    cells, calls = [], {}
    for i, (ratio, n, pieces) in enumerate(sizes):
        cell, own = _cell(ratio, n, pieces)
        cells.append(cell)
        calls.update({(i, variant): call for variant, call in own.items()})
    names = {f"{i} {variant}": call for (i, variant), call in calls.items()}
    times = timed(names, replace(options, seconds=options.seconds * len(cells)))
    for i, cell in enumerate(cells):
        cell["time"] = {v: times[f"{i} {v}"] for at, v in calls if at == i} if times else {}
    return cells


def _cell(ratio: int, n: int, pieces: int) -> tuple[Record, dict[str, Callable[[], Any]]]:
    user = ratio * ITEM
    torch.manual_seed(0)
    model = Fusion(user, ITEM, OUT, pieces).eval()
    hoisted = hoisted_levels(model, n)
    calls, original = _calls(model, hoisted, torch.randn(1, user), torch.randn(n, ITEM))
    cell = {
        "ratio": ratio, "candidates": n, "pieces": pieces,
        "multiply_adds": {level: h.plan.cost.multiply_adds for level, h in hoisted.items()},
        "operators": {level: operators(h) for level, h in hoisted.items()},
    }  # fmt: skip
    return cell, {"original": original, **calls}


def hoisted_levels(model: Fusion, n: int) -> dict[str, HoistedModel]:
    """The user's columns are those that `context` names, wherever they are."""
    rows = torch.zeros(4, model.linear.in_features)
    program = capture(model, (rows,), {"rows": model.columns(0)})
    return {level: hoist_program(program, workload=Workload(n), level=level) for level in LEVELS}


def operators(hoisted: HoistedModel) -> int:
    """Of both stages, without inputs."""
    return sum(node.op != "input" and bool(node.rate) for node in hoisted.plan.nodes)


def _calls(
    model: Fusion, hoisted: dict[str, HoistedModel], user: Tensor, item: Tensor
) -> tuple[dict[str, Callable[[], Any]], Callable[[], Any]]:
    """Every variant, compared with the original; the original on a matrix that is packed before the clock starts."""
    original = partial(model, model.packed(user, item))
    columns = [torch.tensor(model.columns(side)) for side in (0, 1)]
    calls = {level: partial(h, Split(context=user, candidate=item)) for level, h in hoisted.items()}
    calls["sliced"] = partial(sliced, model, list(model.pieces()), user, item)
    calls["gathered"] = partial(gathered, model, columns, user, item)
    return {name: checked(call, original) for name, call in calls.items()}, original


def fewer(cell: Record, level: str = "linear") -> float:
    """How many times fewer multiply-adds than level `expand`."""
    return float(cell["multiply_adds"]["expand"] / cell["multiply_adds"][level])


def tables(record: Record) -> dict[str, str]:
    return {"neat": _neat(record), "layout": _layout(record)}


def _neat(record: Record) -> str:
    head = ["user : item", "N", "multiply-adds, expand / linear", "(1 + r) N / (r + N)", "expand, ms", "linear, ms",
            "full, ms", "expand / linear"]  # fmt: skip
    rows = []
    neat = [c for c in record["cells"] if c["pieces"] == NEAT]
    for cell in sorted(neat, key=lambda c: (c["ratio"], c["candidates"])):
        form = closed_forms.linear(cell["ratio"] * ITEM, ITEM, OUT)
        n, r = cell["candidates"], cell["ratio"]
        rows.append([
            f"{r} : 1", n, f"{fewer(cell):.2f}x", f"{float(form.ratio(n)):.2f}x",
            *(ms(cell["time"], x) for x in LEVELS), _times_faster(cell, "expand", "linear"),
        ])  # fmt: skip
    return table(head, rows, left=0)


def _times_faster(cell: Record, slow: str, fast: str) -> str:
    return f"{cell['time'][slow]['median'] / cell['time'][fast]['median']:.2f}x" if cell["time"] else "-"


def _layout(record: Record) -> str:
    """Against the neat layout of the same variant: throughput, as the paper's -38 % is."""
    head = ["user : item", "pieces", "multiply-adds", "operators, `linear`", "`linear`, ms", "sliced, ms",
            "gathered, ms", "change of speed by layout: `linear`", "sliced", "gathered"]  # fmt: skip
    shown = ["linear", "sliced", "gathered"]
    rows = []
    own = [c for c in record["cells"] if c["candidates"] == LAYOUT_N]
    for cell in sorted(own, key=lambda c: (c["ratio"], c["pieces"])):
        neat = _neat_cell(record, cell)
        changes = [
            percent(neat["time"][x]["median"] / cell["time"][x]["median"] - 1) if cell["time"] else "-" for x in shown
        ]
        rows.append([
            f"{cell['ratio']} : 1", cell["pieces"], f"{cell['multiply_adds']['linear']:,}", cell["operators"]["linear"],
            *(ms(cell["time"], x) for x in shown), *changes,
        ])  # fmt: skip
    return table(head, rows, left=0)


def _neat_cell(record: Record, cell: Record) -> Record:
    alike = {"ratio": cell["ratio"], "candidates": cell["candidates"], "pieces": NEAT}
    return next(c for c in record["cells"] if alike.items() <= c.items())


def draw(plt: Any, record: Record) -> Any:
    """Time against pieces, a picture per ratio."""
    if not record["timed"]:
        return None
    ratios = sorted({c["ratio"] for c in record["cells"]})
    figure, axes = plt.subplots(1, len(ratios), figsize=(11, 3.4), squeeze=False, layout="constrained")
    styles = {
        "expand": ("expand", "s"),
        "sliced": ("linear", "^"),
        "gathered": ("request", "v"),
        "linear": ("full", "o"),
    }
    for ax, ratio in zip(axes[0], ratios, strict=True):
        own = [c for c in record["cells"] if (c["ratio"], c["candidates"]) == (ratio, LAYOUT_N)]
        own.sort(key=lambda c: c["pieces"])
        for variant, (colour, marker) in styles.items():
            times = [c["time"][variant]["median"] for c in own]
            label = "hoisted, level linear" if variant == "linear" else variant
            ax.plot([c["pieces"] for c in own], times, color=COLOURS[colour], marker=marker, label=label)
        ax.set(title=f"user : item = {ratio} : 1, N = {LAYOUT_N}", xscale="log", xlabel="pieces", ylim=(0, None))
    axes[0][0].set(ylabel="ms per call")
    axes[0][0].legend()
    return figure


REPRODUCTION = Reproduction("mari", "MaRI: fusion, neat and fragmented", __doc__, measure, tables, draw)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
