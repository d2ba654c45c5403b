"""RAD, equations 6 to 8, 11, 12, 15, 19 and 20, section 4.3, and MaRI's formula: counted work beside the closed form.

A small model per equation, of the sizes that RAD's table has, hoisted; its counted multiply-adds, as trained and at
level `first` (of rDCN at `full`), must equal `rankhoist.bench.closed_forms` to the last one. Nothing is timed.
`tests/test_closed_forms.py` does the same for many small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.papers.common import Options, Record, Reproduction, main, percent, progress, table
from benchmarks.papers.models import CANDIDATE, CONTEXT, FIELDS, ITEMS, LAYERS, PAIRS_HIDDEN, WIDTH, Joined
from benchmarks.papers.subject import Shape, Subject
from rankhoist.bench import closed_forms
from rankhoist.bench.closed_forms import Split
from rankhoist.bench.models import DotPairs
from rankhoist.nn import RDCN, CrossNetV2

N = [1, 1000]
HIDDEN = PAIRS_HIDDEN[0]


class Gram(nn.Module):
    """All dot products of fields, in both orders."""

    def forward(self, fields: Tensor) -> Tensor:
        return torch.bmm(fields, fields.mT)


class Pairs(nn.Module):
    """Each dot product of two fields once."""

    pairs: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.triu_indices(fields, fields, 1))

    def forward(self, fields: Tensor) -> Tensor:
        return torch.einsum("npd,npd->np", fields[:, self.pairs[0]], fields[:, self.pairs[1]])


class SelfAttention(nn.Module):
    """One layer over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(tokens, tokens, tokens, need_weights=False)[0]
        return out


@dataclass(frozen=True)
class Equation:
    """What it is about, a model of it, and its closed form."""

    name: str
    about: str
    build: Callable[[], nn.Module]
    context: Shape
    candidate: Shape
    form: Split
    level: str = "first"


def equations(k: int, m: int, d: int, c: int, t: int, h: int, layers: int) -> list[Equation]:
    """K context and M candidate fields of width D; C context and T candidate columns; H outputs."""
    f, fields, columns = closed_forms, ((k, d), (m, d)), ((c,), (t,))
    width, stack = c + t, f.gram(k, m, d) + f.linear_over_pairs(k, m, h)
    return [
        Equation("RAD, table", "pairs by a Gram matrix", lambda: Joined(Gram()), *fields, f.gram(k, m, d)),
        Equation("RAD 6, 7, 8", "each pair once", lambda: Joined(Pairs(k + m)), *fields, f.dot_pairs(k, m, d)),
        Equation("RAD 11, MaRI", "linear over both", lambda: Joined(nn.Linear(width, h)), *columns, f.linear(c, t, h)),
        Equation("RAD 12", "pairs, and a linear over them", lambda: DotPairs(k + m, h), *fields, stack),
        Equation("RAD 15", "first cross layer", lambda: Joined(CrossNetV2(width, 1)), *columns, f.cross_layer(c, t)),
        Equation("RAD 4.3", "first attention layer", lambda: Joined(SelfAttention(d)), *fields,
                 f.attention_layer(k, m, d)),
        Equation("RAD 19, 20", "rDCN", lambda: RDCN(c, t, layers), *columns, f.rdcn(c, t, layers), "full"),
    ]  # fmt: skip


def measure(options: Options) -> Record:
    sizes = (5, 2, 8, 12, 5, 6, 2) if options.reduced else (FIELDS, ITEMS, WIDTH, CONTEXT, CANDIDATE, HIDDEN, LAYERS)
    return {"equations": [_compared(e) for e in progress(equations(*sizes), "equations")]}


def _compared(equation: Equation) -> Record:
    """Counted work for several N; rDCN as trained is another model than the one that its form has as plain.

    Raises:
        AssertionError: it is not that of the closed form, or the scores of the hoisted model are off.
    """
    subject = Subject.of(equation.build, equation.context, equation.candidate)
    counted: dict[str, dict[str, int]] = {"plain": {}, "split": {}}
    for n in N:
        hoisted = subject.at(equation.level, n)
        subject.call(hoisted, n)
        counted["split"][str(n)] = hoisted.plan.cost.multiply_adds
        if equation.level == "first":
            counted["plain"][str(n)] = subject.at("expand", n).plan.cost.multiply_adds
    for side, found in counted.items():
        expected = {n: getattr(equation.form, side).of(int(n)) for n in found}
        assert found == expected, f"{equation.name}, {side}: counted {found}, closed form {expected}"
    return {
        "name": equation.name, "about": equation.about, "counted": counted, "saved": float(equation.form.saved),
        "plain": equation.form.plain.of(N[-1]), "split": equation.form.split.of(N[-1]),
    }  # fmt: skip


def tables(record: Record) -> dict[str, str]:
    rows = [
        [e["name"], e["about"], f"{e['plain']:,}", f"{e['split']:,}", f"{e['counted']['split'][str(N[-1])]:,}",
         percent(-e["saved"], 1)]
        for e in record["equations"]
    ]  # fmt: skip
    head = ["equation", "about", f"as trained, N = {N[-1]}", "closed form", "counted", "many candidates"]
    return {"equations": table(head, rows, left=2)}


def draw(plt: Any, record: Record) -> Any:
    """Multiply-adds as trained, by the closed form and as counted."""
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    own = record["equations"]
    places = range(len(own))
    ax.bar(places, [e["plain"] for e in own], 0.7, color="#999999", label="as trained")
    ax.bar(places, [e["split"] for e in own], 0.45, color="#D55E00", label="closed form")
    counted = [e["counted"]["split"][str(N[-1])] for e in own]
    ax.plot(places, counted, "k_", markersize=22, label="counted")
    ax.set_xticks(places, [e["name"] for e in own], fontsize=8)
    ax.set(yscale="log", ylabel=f"multiply-adds, N = {N[-1]}")
    ax.legend()
    return figure


REPRODUCTION = Reproduction("equations", "RAD's equations, counted", __doc__, measure, tables, draw, timed=False)

if __name__ == "__main__":
    raise SystemExit(main(REPRODUCTION))
