"""A stage for compilers and exporters: functional, no Python control flow on tensors, row counts read from tensors.

Its arguments are `owner [N]` and `slots [R, M]`, if it reads them, then what the stage is passed and its leaves. There
are two spellings. For one request nothing is gathered. For several, the rows of each request are padded to a block as
long as the longest, M rows, so that products with one matrix per request are one `bmm`:

    slots[r, j] = min(offsets[r] + j, N - 1)        place[i] = min(owner[i] * M + i - slots[owner[i], 0], R * M - 1)
    [N, k]  - rows of slots ->  [R, M, k]  - bmm with [R, k, n] ->  [R * M, n]  - rows of place ->  [N, n]

That needs memory for R * M rows, where one gathered matrix per row would need N * k * n elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rankhoist.compiler.emit import lookups, pooled
from rankhoist.compiler.emit.stages import Stage
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.graph.operators import anew, row
from rankhoist.errors import BackendError

COLUMN = re.compile(r"\.values_\d+$")  # of a leaf that is a column of a jagged input; no placeholder has a dot


@dataclass(frozen=True)
class Traceable:
    """`module(*arguments, *passed, *leaves)` computes what the stage does; `arguments` of `owner`, `slots`.

    `guards` says of each guarded lookup what is wrong if its ids are outside: then the last result counts such ids.
    """

    module: fx.GraphModule
    arguments: tuple[str, ...]
    guards: tuple[str, ...] = ()


def traceable(stage: Stage, several: bool) -> Traceable:
    """The stage spelled for one request, or for several; it reads one leaf at least, whose rows are counted."""
    rows, owner, offsets, *nodes = stage.module.graph.nodes
    graph, arguments = fx.Graph(), []
    values: dict[fx.Node, Any] = dict.fromkeys((rows, owner, offsets))
    if several and (owner.users or offsets.users):
        arguments.append("owner")
        values[owner] = graph.placeholder("owner")
    if several and offsets.users:
        arguments.append("slots")
        slots = graph.placeholder("slots")
    given = [node for node in nodes if node.op == "placeholder"]
    values |= {node: graph.node_copy(node) for node in given}
    if rows.users:
        values[rows] = graph.call_function(aten.sym_size.int, (values[_counted(stage, given)], 0))
    if several and offsets.users:
        values[offsets] = slots, graph.call_function(_place, (values[owner], slots))
    counts, guards = [], []
    for node in nodes:
        if node.op != "placeholder":
            values[node] = made = graph.node_copy(node, lambda n: values[n])
            made.target = _functional(node.target, several)
            if node.name in stage.guards:
                values[node], number = lookups.guard(graph, made)
                counts.append(number)
                guards.append(stage.guards[node.name])
    if counts:
        lookups.count(graph, counts)
    graph.lint()
    return Traceable(fx.GraphModule(nn.Module(), graph), tuple(arguments), tuple(guards))


def _counted(stage: Stage, given: Sequence[fx.Node]) -> fx.Node:
    """The last leaf that has the call's rows: columns of bags have values."""
    for node, leaf in zip(reversed(given), reversed(stage.leaves), strict=False):
        if not COLUMN.search(leaf):
            return node
    raise BackendError("a stage reads values of bags only, which do not say how many rows a call has")


def slots_of(offsets: Tensor) -> Tensor:
    """`[R, M]`: the rows of each request, padded with rows of others; M >= 2, for a size of one is a constant."""
    longest = max(int(offsets.diff().max()), 2)
    return (offsets[:-1, None] + torch.arange(longest)).clamp_max_(int(offsets[-1]) - 1)


def _place(owner: Tensor, slots: Tensor) -> Tensor:
    """Where each row stands in the padded blocks."""
    rows = torch.arange(owner.shape[0], device=owner.device)
    place = owner * slots.shape[1] + rows - slots[:, 0].index_select(0, owner)
    return place.clamp_max(slots.numel() - 1)  # of rows behind the last request's, which pad a call


def _functional(target: Any, several: bool) -> Any:
    """What writes over nothing, and puts values where their bags are; for several requests, over padded blocks."""
    plain = pooled.embedding_bag if target in pooled.BAGS else anew(target)
    return (row(plain).padded or plain) if several else plain
