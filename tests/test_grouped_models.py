"""Gradients of grouped models are those of rows: on random graphs, and on public models in training mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import Function, apart
from hypothesis import given
from lengthy import ALONE, ROWS, TOGETHER, reader, rows_of
from public_models import Case, cases
from random_models import CANDIDATES, OFFSETS, RandomModel, random_models
from test_random_models import examples, head, owners
from torch import Tensor, nn

from rankhoist import GroupedModel, Jagged, grouped, verify_gradients
from rankhoist.capture import capture
from rankhoist.capture.jagged import flat
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph import kernels, operators
from rankhoist.compiler.graph.node import Node, live_nodes
from rankhoist.compiler.graph.trained import Counts
from rankhoist.compiler.plan import Plan, Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.training.graph import Graph

TOLERANCE, SMALL = 1e-9, 1e-3  # of the largest gradient of a tensor, or of this
SOME = {"deepctr.DIN", "rechub.DeepFM"}  # in the ordinary run
BATCH = Workload(CANDIDATES, len(OFFSETS) - 1)
RUNNING = {torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_functional.default}
EVEN = [0, 2, 4, 6]  # as many candidates for every request: rows are blocks of one shape


def gradients(results: Sequence[Any], of: Sequence[Tensor]) -> list[Tensor] | None:
    """Of a random sum of all finite results; None where none of them has a gradient."""
    g = torch.Generator().manual_seed(0)
    floating = [x for x in results if isinstance(x, Tensor) and x.is_floating_point()]
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in floating]
    parts = [torch.where(x.detach().isfinite(), x * w, 0).sum() for x, w in zip(floating, weights, strict=True)]
    total = torch.stack(parts).sum() if parts else torch.zeros(())
    if not total.requires_grad:
        return None
    found = torch.autograd.grad(total, of, allow_unused=True)
    return [torch.zeros_like(x) if y is None else y for x, y in zip(of, found, strict=True)]


def learning(rows: Any) -> Any:
    """The same in memory of its own, with gradients."""
    if isinstance(rows, dict):
        return {name: learning(x) for name, x in rows.items()}
    if isinstance(rows, Jagged):
        return Jagged.of([learning(x) for x in rows.values], rows.lengths)
    return rows.detach().clone().requires_grad_(rows.is_floating_point())


def assert_close(actual: Sequence[Tensor] | None, expected: Sequence[Tensor]) -> None:
    """Results that are but numbers have no gradients; those of the original are then 0."""
    for a, e in zip([torch.zeros_like(e) for e in expected] if actual is None else actual, expected, strict=True):
        scale = max(float(e.nan_to_num(0, 0, 0).abs().max()), SMALL) if e.numel() else 1.0
        assert float(apart(a, e).max() if e.numel() else 0) / scale <= TOLERANCE


def plans(model: RandomModel) -> list[Plan]:
    """The graph as it is, with every form kept, to be trained."""
    program = replace(model.program, training=True)
    return [attempt(Task(program, level, BATCH)) for level in (Level.LINEAR, Level.FULL)]


@examples(0.5, 60)
@given(model=random_models(mixing=2, training=True))
def test_gradients_of_random_models(model: RandomModel):
    calls = [n for n in model.program.graph.nodes if n.target in RUNNING]
    statistics = {n.args[i].name for n in calls for i in (3, 4)}  # no gradient reaches them
    trained = (w.tensor for name, w in model.program.weights.items() if w.trained and name not in statistics)
    weights = [tensor.requires_grad_() for tensor in trained if tensor.is_floating_point()]
    graphs = [Graph.of(nn.Module(), Blueprint.of(p.interpreter.program, single(p))) for p in plans(model)]
    for (context, candidate), offsets in itertools.product(model.calls(), (OFFSETS, EVEN)):
        context, candidate = learning(context), learning(head(candidate, offsets[-1]))
        of = [*weights, *(t for side in (context, candidate) for t in flat(side).values() if t.requires_grad)]
        expected = gradients(model.original(context, candidate, owners(offsets)), of)
        for graph in graphs if expected is not None else ():
            sides = map(graph.inputs.stage_inputs, graph.inputs.of_call((), model.call(context, candidate)))
            made = graph.run(*sides, len(offsets) - 1, offsets[-1], Counts.of(torch.tensor(offsets)))
            assert_close(gradients(made, of), expected)


def test_gradients_of_what_a_candidate_picks_of_its_request():
    def picked(history: Tensor, place: Tensor, w: Tensor) -> Tensor:
        rows = history.gather(1, place[:, :, None].expand(-1, -1, 4)).sum((1, 2))
        return rows + (history @ w).gather(1, place).sum(1)

    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 5, 4, generator=g, dtype=torch.float64), torch.randint(5, (20, 2), generator=g)
    model = Function(picked, w=torch.randn(4, generator=g, dtype=torch.float64)).requires_grad_()
    program = capture(model, inputs, ["context"], all_rules(), training=True)
    plan = attempt(Task(program, Level.FULL, BATCH))
    assert kernels.request_rows in {n.op for n in live_nodes(o for o in plan.outputs if isinstance(o, Node))}
    certificate = verify_gradients(GroupedModel(model, lambda _: Blueprint.of(program, single(plan))), inputs=inputs)
    assert certificate.passed, certificate


def test_gradients_through_norms_of_channels_that_alternate():
    """Context and candidate channels in turn: a norm of the candidate's has every other weight."""

    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.randn(6)), nn.BatchNorm1d(6)
            nn.init.normal_(self.norm.weight)
            self.top = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.norm(x * self.scale)).squeeze(1)

    inputs = (torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)
    step = grouped(Alternating().double(), inputs, context={"x": [0, 2, 4]}, workload=BATCH, level="linear")
    certificate = verify_gradients(step)
    assert certificate.passed, certificate


READERS = [
    pytest.param(name, marks=[] if name in ("last_of_gru", "activation_unit") else [pytest.mark.slow])
    for name in (*ALONE, *TOGETHER)
]


@pytest.mark.parametrize("name", READERS)
def test_gradients_where_histories_vary_in_length(name: str):
    """With every form kept; batches are drawn with lengths of their own."""
    model = reader(name).train().requires_grad_()
    context, candidate = rows_of(9, ROWS)
    program = capture(model, context | candidate, [*context], all_rules(), training=True, dynamic={"history": 1})
    plan = attempt(Task(program, Level.FULL, BATCH))
    certificate = verify_gradients(GroupedModel(model, lambda _: Blueprint.of(program, single(plan))))
    assert certificate.passed, certificate


@pytest.mark.parametrize("level", [Level.LINEAR, Level.FULL])
@pytest.mark.parametrize("joined", [False, True], ids=["history", "history_and_item"])
def test_gradients_where_a_query_sees_nothing(joined: bool, level: Level):
    """PyTorch's attention to nothing is zero, and so are its gradients: those of 0 / 0 would be no numbers."""

    def attended(history: Tensor, item: Tensor, w: Tensor) -> Tensor:
        x = torch.cat([history, item[:, None]], 1) if joined else history
        shown = x[:, None, :, 0] > 0
        queries = x if joined else item[:, None]
        return nn.functional.scaled_dot_product_attention(queries @ w, x @ w, x, attn_mask=shown).sum((1, 2))

    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 5, 4, generator=g, dtype=torch.float64), torch.randn(20, 4, generator=g).double()
    inputs[0][::2, :, 0], inputs[1][::4, 0] = -1.0, -1.0
    model = Function(attended, w=torch.randn(4, 4, generator=g, dtype=torch.float64)).requires_grad_()
    program = capture(model, inputs, ["context"], all_rules(), training=True)
    plan = attempt(Task(program, level, BATCH))
    certificate = verify_gradients(GroupedModel(model, lambda _: Blueprint.of(program, single(plan))), inputs=inputs)
    assert certificate.passed, certificate


def test_what_is_told_of_requests_can_be_trained():
    told = {k for k in vars(kernels).values() if {"owner", "offsets"} & {*getattr(k, "__annotations__", ())}}
    public = {k for k in told if not k.__name__.startswith("_") and k.__module__ == kernels.__name__}
    assert not {k for k in public if operators.row(k).trained is None}


PUBLIC = [c for c in cases() if c.dtype == torch.float64]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.name in SOME else [pytest.mark.slow]) for c in PUBLIC]
)
def test_gradients_of_public_models(case: Case):
    """In training mode, batch norms included, with every form kept."""
    model = case.model().requires_grad_(True).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    program = capture(model, case.original_inputs(case.rows(6)), case.context, all_rules(), training=True)
    plan = attempt(Task(program, Level.FULL, BATCH))
    step = GroupedModel(model, lambda _: Blueprint.of(program, single(plan)))
    certificate = verify_gradients(step, inputs=case.original_inputs(case.rows(20, seed=3)))
    assert certificate.passed, certificate
