"""Forms and graphs as text, to be read and compared.

    float64 [rows, 10]
      [0:6]   request  c1[i]
      [6:10]  pair     c2[i] + w1[i,a] k1[a]

A line for each block: its positions, its rate, and the sum of products. Factors are called by their rates, `w` for a
weight, `c` of a request, `k` of an item, `p` of a pair; axes are in brackets, and one that the block lacks is summed.
Forms import this file for their own text, so it knows them by what they have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rankhoist.compiler.graph.node import Node, Rate, Size, StageArgument
from rankhoist.compiler.graph.operators import name_of

LETTERS = {Rate.WEIGHT: "w", Rate.REQUEST: "c", Rate.ITEM: "k", Rate.PAIR: "p"}
AXES, SUMMED = "ijlmnoqrstuv", "abdefgh"


class _Names:
    """Names of nodes and of labels, in the order in which a form shows them."""

    def __init__(self) -> None:
        self.nodes: dict[int, str] = {}
        self.axes: dict[int, str] = {}

    def node(self, node: Node) -> str:
        """`w1` is the first weight."""
        if node.index not in self.nodes:
            letter = LETTERS[node.rate]
            self.nodes[node.index] = f"{letter}{sum(n.startswith(letter) for n in self.nodes.values()) + 1}"
        return self.nodes[node.index]

    def block(self, block: Any) -> None:
        """Letters for the axes of a block, the others are summed."""
        summed = dict.fromkeys(x for t in block.terms for f in t.factors for x in f.labels if x not in block.visible)
        own = zip((*block.visible, *summed), (*AXES[: len(block.visible)], *SUMMED), strict=False)
        self.axes = {id(label): letter for label, letter in own}


def form_text(form: Any) -> str:
    """A line for the whole, one for each block."""
    names = _Names()
    rows = []
    for cell, block in form.blocks.items():
        where = ", ".join(_positions(form.dims[d][k]) for d, k in enumerate(cell))
        names.block(block)
        rows.append((f"[{where}]", block.rate.name.lower(), " + ".join(_term(t, names) for t in block.terms)))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {w.ljust(widths[0])}  {r.ljust(widths[1])}  {terms}" for w, r, terms in rows]
    return "\n".join([f"{str(form.dtype).removeprefix('torch.')} {form.axes}", *lines])


def _positions(positions: Any) -> str:
    """`0:6` for neighbours, else one by one."""
    if hasattr(positions, "count"):  # however many
        return f"{positions.first}:{positions.end}"
    first, last = int(positions[0]) if len(positions) else 0, int(positions[-1]) if len(positions) else -1
    if np.array_equal(positions, np.arange(first, last + 1)):
        return f"{first}:{last + 1}"
    return " ".join(str(p) for p in positions)


def _term(term: Any, names: _Names) -> str:
    scale = [] if term.scale == 1.0 and term.factors else [f"{term.scale:g}"]
    return " ".join([*scale, *(_factor(f, names) for f in term.factors)])


def _factor(factor: Any, names: _Names) -> str:
    if factor.number is not None:
        return f"{factor.number:g}" if math.isfinite(factor.number) else str(factor.number)
    axes = ",".join(names.axes[id(label)] for label in factor.labels)
    return names.node(factor.node) + (f"[{axes}]" if axes else "")


# -- graphs


def graph_text(nodes: Iterable[Node]) -> str:
    """A line for each node: `%7 item [8, 4] = linear(%5, %6)`."""
    lines = []
    for n in nodes:
        given = [_argument(a) for a in n.args] + [f"{k}={_argument(v)}" for k, v in n.kwargs.items()]
        lines.append(f"%{n.index} {n.rate.name.lower()} {list(n.shape)} = {name_of(n.op)}({', '.join(given)})")
    return "\n".join(lines)


def _argument(value: Any) -> str:
    if isinstance(value, Node):
        return f"%{value.index}"
    if isinstance(value, Size):
        return str(value.expr)
    if isinstance(value, StageArgument):
        return value.name
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_argument(v) for v in value)}]"
    return str(value)
