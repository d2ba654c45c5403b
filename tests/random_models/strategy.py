"""A whole model: inputs, steps and outputs, from Hypothesis or from any other source of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import event
from hypothesis import strategies as st
from torch import fx
from torch.utils import _pytree as pytree

from random_models.draft import Draft, UnstableError, aten
from random_models.inputs import draw_inputs
from random_models.model import RandomModel
from random_models.rows import LENGTHS, length, product, row_count, varies
from random_models.steps import MIX_ROWS, STEPS, STEPS_IN_TRAINING
from rankhoist.capture import Program
from rankhoist.capture.defaults import fill
from rankhoist.capture.signature import Arguments

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def random_models(draw: Draw, steps: int = 8, mixing: int = 10, training: bool = False) -> RandomModel:
    """Small ranking models of up to `steps` steps; one in `mixing` has an operator that mixes rows (0: none).

    Those in `training` mode also have batch norms by the statistics of the batch.
    """
    model = build(lambda low, high: int(draw(st.integers(low, high))), steps, mixing, training)
    for kind in model.kinds:
        event(kind)  # counted with --hypothesis-show-statistics
    return model


def build(number: Callable[[int, int], int], steps: int = 8, mixing: int = 10, training: bool = False) -> RandomModel:
    """A model from a source of numbers."""
    table = STEPS_IN_TRAINING if training else STEPS
    draft = Draft(number, torch.Generator().manual_seed(number(0, 2**31 - 1)))
    with torch.no_grad():
        draw_inputs(draft)
        wanted = draft.number(1, steps)
        rows_meet = draft.number(1, wanted) if mixing and draft.number(1, mixing) == mixing else None
        for i in range(1, wanted + 1):
            step = MIX_ROWS if i == rows_meet else draft.pick(table)
            try:
                step.take(draft)
            except UnstableError:
                continue
        return _finished(draft)


def _finished(draft: Draft) -> RandomModel:
    outputs = _outputs(draft)
    draft.graph.output(tuple(outputs))
    draft.graph.eliminate_dead_code()
    used = {n.name for n in draft.graph.nodes if n.op == "placeholder" and n.users}
    for node in [n for n in draft.graph.nodes if n.op == "placeholder" and n.name in draft.weights]:
        if node.name not in used:
            del draft.weights[node.name]
            draft.graph.erase_node(node)
    kinds = {name for name, drawn in KINDS.items() if drawn(draft)}
    fill(draft.graph)
    live = set(draft.graph.nodes)
    names = list(draft.inputs)
    example = {n: draft.example(n) for n in names}
    lengths = {length(): max(LENGTHS)} if draft.varies else {}

    program = Program(
        draft.graph, row_count(), draft.inputs, draft.weights, outputs, pytree.tree_structure([0] * len(outputs)),
        pytree.tree_structure((tuple(names), {})), Arguments.named(names), torch.float64, torch.device("cpu"), example,
        bags=draft.bags, lengths=lengths,
    )  # fmt: skip
    return RandomModel(program, draft.context, draft.candidate, bool(draft.mixed & live), frozenset(kinds))


def _leaves_out(node: fx.Node) -> bool:
    """Whether an operator is called without an argument that it takes by position."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and len(node.args) < sum(not a.kwarg_only for a in schema.arguments)


def _by_batch(node: fx.Node) -> bool:
    """Whether it is a batch norm in training mode."""
    return "_native_batch_norm_legit" in str(node.target)


KINDS: dict[str, Callable[[Draft], bool]] = {
    "jagged inputs": lambda draft: bool(draft.bags),
    "a length that varies": lambda draft: draft.varies,
    "rows under rows": lambda draft: any(x.users for x in draft.stacked),
    "defaults left out": lambda draft: any(_leaves_out(node) for node in draft.graph.nodes),
    "rows that meet": lambda draft: bool(draft.mixed),
    "batch statistics": lambda draft: any(_by_batch(node) for node in draft.graph.nodes),
}


def _outputs(draft: Draft) -> list[fx.Node]:
    """All that nothing reads, one by one or under one linear layer; in some models a value from within as well, or only
    some places of what is there."""
    made = [v for v in draft.values if v.op != "placeholder" and v in draft.dry] or draft.values
    ends = [v for v in made if not v.users] or made[-1:]
    if draft.number(0, 2) == 2:
        ends = [_places(draft, v) for v in ends]
    heads = [v for v in ends if draft.is_float(v) and _per_row(draft, v)]
    if len(heads) > 1 and draft.number(0, 2):
        flat = [draft.view(v, [-1, product(draft.extent(v)[1:])]) for v in heads]
        joined = draft.call(aten.cat.default, flat, 1)
        weight = draft.random(2, draft.extent(joined)[1], scale=0.3)
        made = [*made, draft.call(aten.linear.default, joined, weight)]
        ends = [v for v in ends if v not in heads] + made[-1:]
    return ends + ([draft.pick(made[::-1])] if draft.number(0, 3) == 3 else [])


def _places(draft: Draft, x: fx.Node) -> fx.Node:
    """One place of an axis, or several in a row."""
    axes = [i for i, n in enumerate(draft.extent(x)) if n > 1 and not varies(n)]
    if not axes:
        return x
    axis = draft.pick(axes)
    first = draft.number(0, draft.extent(x)[axis] - 1)
    if draft.flag():
        return draft.call(aten.select.int, x, axis, first)
    return draft.call(aten.slice.Tensor, x, axis, first, draft.number(first + 1, draft.extent(x)[axis]), 1)


def _per_row(draft: Draft, x: fx.Node) -> bool:
    """x is `[rows, ...]`, with something in every row, as much in any call."""
    extent = draft.extent(x)
    return extent[:1] == (-1,) and all(n > 0 and not varies(n) for n in extent[1:])
