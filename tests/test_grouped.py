"""Grouped models: the original's parameters, and the gradients that it has on rows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import repeated
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rankhoist import GroupedModel, Split, Workload, grouped, verify_gradients
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import trained as kernels
from rankhoist.compiler.plan import Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import this_machine
from rankhoist.compiler.targets.training import training
from rankhoist.errors import (
    CaptureError,
    ContextError,
    ExportError,
    InputError,
    UnsupportedModelError,
    VocabularyError,
    WeightsError,
)
from rankhoist.runtime.blueprint import Blueprint

SMALL = Workload(9, 3)
OFFSETS = [0, 4, 4, 9]


class Ranker(nn.Module):
    """Batch norms over both sides, one of them used twice, a cross layer, attention, and statistics by hand."""

    def __init__(self, sparse: bool = False, stop: bool = False) -> None:
        super().__init__()
        self.user = nn.Embedding(10, 4, padding_idx=0, sparse=sparse)
        self.norm, self.plain = nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False, track_running_stats=False)
        self.cross, self.top = nn.Linear(8, 8), nn.Linear(8, 1)
        self.register_buffer("order", torch.tensor([3, 1, 2, 0]))
        self.stop = stop

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        who = self.user(user[:, 0])
        first = x = self.norm(torch.cat([who, item], 1))
        x = first * self.cross(x) + x
        tokens = torch.stack([who[:, self.order], self.user(user[:, 1]), item], 1)
        seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum((1, 2))
        again = self.norm(x).sum(1)
        x = self.plain(x).tanh()
        return self.top(x - x.mean(0)).squeeze(1) + seen + (again.detach() if self.stop else again)


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    users = torch.randint(0, 10, (count, 2), generator=g)
    return users, torch.randn(count, 4, generator=g, dtype=torch.float64)


def made(**options: bool) -> Ranker:
    torch.manual_seed(1)
    return Ranker(**options).double()


def group(model: nn.Module, level: str = "linear", **options: Any) -> GroupedModel:
    return grouped(model, rows(6), context=["user"], workload=SMALL, level=level, **options)


@pytest.fixture(scope="module")
def ranker() -> GroupedModel:
    return group(made(), "full")


def test_it_has_the_parameters_of_the_model_themselves(ranker):
    model = ranker.original
    for of in (nn.Module.named_parameters, nn.Module.named_buffers, nn.Module.named_children):
        assert [(n, id(x)) for n, x in of(ranker)] == [(n, id(x)) for n, x in of(model)]
    assert list(ranker.state_dict()) == list(model.state_dict())
    assert [n for n, _ in ranker.named_modules()] == [n for n, _ in model.named_modules()]
    ranker.eval()
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in (ranker.train(), *model.modules()))


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(made(), rows(6), ["user"], all_rules(), training=True)


@pytest.mark.parametrize("level", list(Level))
def test_gradients_and_statistics_are_those_of_rows(level: Level, program):
    plan = single(attempt(Task(program, level, SMALL, training(this_machine()))))
    certificate = verify_gradients(GroupedModel(made(), lambda _: Blueprint.of(program, plan)))
    assert certificate.passed, certificate
    assert [c.name for c in certificate.checks] == ["scores", "gradients", "buffers"]


def test_in_eval_mode_too():
    certificate = verify_gradients(group(made().eval(), "first"), candidates=(2, 17), requests=(1, 3))
    assert certificate.passed, certificate


def test_a_detached_value_has_no_gradient_and_its_absence_is_noticed(ranker):
    assert verify_gradients(group(made(stop=True)))
    certificate = verify_gradients(ranker, made(stop=True))
    assert [c.name for c in certificate.failures] == ["gradients"]


def test_sparse_gradients_have_an_entry_per_request():
    model = made(sparse=True)
    step = group(model)
    assert verify_gradients(step)
    users, items = rows(9)
    step(users[:3].clamp_min(1), items, request_offsets=OFFSETS).sum().backward()
    assert model.user.weight.grad.is_sparse
    assert model.user.weight.grad._nnz() == 6  # two lookups of three requests


def trained(call: Callable[[Tensor, Tensor, Sequence[int]], Tensor], model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for k in range(steps):
        users, items = rows(60, seed=k)
        offsets = [0, 7, 7 + k % 5, 30, 60]
        target = (items.sum(1) > 0).double()
        optimizer.zero_grad()
        scores = call(users[:4], items, offsets)
        nn.functional.binary_cross_entropy_with_logits(scores, target).backward()
        optimizer.step()
    return model


def test_weights_are_equal_after_fifty_steps_of_adam():
    model = made()
    step = group(model)
    ours = trained(lambda u, i, o: step(u, i, request_offsets=o), model, 50)
    theirs = made()
    trained(lambda u, i, o: theirs(repeated(u, o), i), theirs, 50)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7), name
    assert int(ours.norm.num_batches_tracked) == 100  # it is used twice
    assert not torch.allclose(ours.norm.running_mean, made().norm.running_mean, atol=1e-2)


def test_an_input_of_items_is_one_of_candidates_and_may_repeat(ranker):
    step = group(made(), item=["item"])
    assert verify_gradients(step)
    users, items = rows(9)
    items[5:] = items[:4]
    own, same = (x(users[:3], items, request_offsets=OFFSETS) for x in (step, ranker.train()))
    assert torch.allclose(own, same)
    with pytest.raises(ContextError, match="'user'"):
        group(made(), item=["user"])


def test_lengths_that_vary():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.top = nn.Embedding(10, 4), nn.Linear(8, 1)

        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            return self.top(torch.cat([self.table(history).mean(1), item], 1)).squeeze(1)

    model = Pooled().double()
    step = grouped(model, rows(6), context=["history"], workload=SMALL, dynamic={"history": 1})
    assert verify_gradients(step, trials=2)
    history, items = torch.randint(0, 10, (3, 7)), rows(9)[1]
    scores = step(history, items, request_offsets=OFFSETS)
    assert torch.allclose(scores, model(repeated(history, OFFSETS), items))


# -- dropout


def test_dropout_is_off_where_gradients_are_compared():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1)).double()
    step = grouped(model, (torch.randn(6, 8).double(),), context={"input": [0, 1, 2]}, workload=SMALL)
    certificate = verify_gradients(step)
    assert certificate.passed, certificate
    assert certificate.note == "dropout is off in 1"
    loss = step(Split(torch.randn(2, 3).double(), torch.randn(9, 5).double()), request_offsets=[0, 5, 9]).sum()
    loss.backward()
    assert model[0].weight.grad.abs().sum() > 0


# -- what cannot be trained so


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Middle(nn.Module):
    """Something in the middle of a model."""

    def __init__(self, middle: Callable[[Tensor], Tensor] | nn.Module, **table: Any) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(10, 4, **table), middle

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.middle(self.table(user[:, 0]).to(item.dtype) * item).sum(1)


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode():
        share = x.sum(1, keepdim=True)
    return x * share.clone()


def hooked(x: Tensor) -> Tensor:
    x = x * 2
    x.register_hook(lambda g: -g)
    return x


REFUSED = {
    "synchronised": (nn.SyncBatchNorm(4), {}, UnsupportedModelError, r"module 'middle' \(SyncBatchNorm\)"),
    "cumulative": (
        nn.BatchNorm1d(4, momentum=None),
        {},
        UnsupportedModelError,
        r"'middle' \(BatchNorm1d, momentum=None\)",
    ),
    "random": (nn.RReLU(), {}, UnsupportedModelError, "rrelu.* in middle draws random numbers"),
    "no gradient": (without_gradient, {}, UnsupportedModelError, "gradients are switched on or off"),
    "own gradient": (Reversed.apply, {}, ExportError, "autograd.Function computes its own gradient"),
    "inferred": (inferred, {}, ExportError, "inference_mode leaves gradients out"),
    "inferred by a decorator": (torch.inference_mode()(hooked), {}, ExportError, "inference_mode leaves gradients out"),
    "hooked": (hooked, {}, ExportError, "register_hook is told a gradient"),
    "by frequency": (nn.Identity(), {"scale_grad_by_freq": True}, UnsupportedModelError, "in table scales gradients"),
    "renormed": (nn.Identity(), {"max_norm": 1.0}, UnsupportedModelError, "writes to its parameter 'table.weight'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str):
    middle, table, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        group(Middle(middle, **table))


def test_near_misses_are_grouped():
    assert verify_gradients(group(Middle(nn.BatchNorm1d(4)).double()))
    assert verify_gradients(group(Middle(nn.RReLU().eval()).double()))
    assert verify_gradients(group(Middle(nn.BatchNorm1d(4, momentum=None).eval()).double()))


def test_an_unknown_dropout_is_refused():
    with pytest.raises(CaptureError, match="unknown dropout 'batch'"):
        group(made(), dropout="batch")


def test_an_index_that_the_plan_was_made_from_must_not_change():
    model = made()
    step = group(model)
    users, items = rows(9)
    step(users[:3], items, request_offsets=OFFSETS)
    model.order.copy_(model.order.clone())  # written, and the same
    step(users[:3], items, request_offsets=OFFSETS)
    model.order.copy_(torch.arange(4))
    with pytest.raises(WeightsError, match="'order' decides what is computed"):
        step(users[:3], items, request_offsets=OFFSETS)


def test_inputs_are_checked(ranker):
    users, items = rows(9)
    with pytest.raises(InputError, match="request_offsets"):
        ranker(users[:3], items)
    for count in (0, 1):  # of which no batch norm has a variance
        with pytest.raises(InputError, match=f"has {count} values per channel in a batch of {count} candidates"):
            ranker.train()(users[:1], items[:count])


def test_an_id_outside_of_its_table_is_told_by_its_input():
    step = group(Middle(nn.Identity()).double())
    items = rows(9)[1]
    with pytest.raises(VocabularyError, match="input 'user' has id 10 in row 1, expected 0 to 9"):
        step(torch.tensor([[1, 0], [10, 0]]), items, request_offsets=[0, 4, 9])


@pytest.mark.parametrize("level", ["expand", "full"])
def test_a_batch_of_no_requests(level: str):
    step = group(Middle(nn.Linear(4, 4)).double(), level)
    users, items = rows(0)
    scores = step(users, items, request_offsets=[0])
    assert scores.shape == (0,)
    scores.sum().backward()
    assert not any(p.grad.any() for p in step.parameters())  # and none is missing, as of the model on rows


NONE = kernels.Counts([], None)
OF_NONE = {
    "linear": (lambda x, m: kernels.request_linear(x, m, NONE), [(0, 3), (0, 3, 2)]),
    "matmul": (lambda x, m: kernels.request_matmul(x, m, NONE), [(0, 2, 5, 3), (0, 2, 3, 2)]),
    "attention": (lambda q, k, v: kernels.request_attention(q, k, v, 1.0, NONE), [*[(0, 2, 5, 3)] * 2, (0, 2, 5, 2)]),
    "rows": (lambda x, y: y + kernels.spread(x, NONE), [(0, 2), (0, 2)]),
}


@pytest.mark.parametrize("name", OF_NONE)
def test_kernels_of_no_requests(name: str):
    kernel, shapes = OF_NONE[name]
    given = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    made = kernel(*given)
    assert made.shape == (*shapes[0][:-1], 2)
    made.sum().backward()
    assert [x.grad.shape for x in given] == shapes


# -- what others do with a module


def test_copies_averages_and_other_dtypes(ranker):
    users, items = rows(9)
    average = AveragedModel(ranker)
    average.update_parameters(ranker)
    other = copy.deepcopy(ranker).float()
    assert other.original is not ranker.original
    got = other.eval()(users[:3], items.float(), request_offsets=OFFSETS)
    expected = average.module.eval()(users[:3], items, request_offsets=OFFSETS)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-4)
    assert ranker.top.weight.dtype == torch.float64


class Twice(nn.Module):
    """Two layers of one weight, a setting, and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layers = nn.Embedding(10, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.layers[1].weight, self.steps, self.temperature = self.layers[0].weight, 0, 1.0
        self.act = nn.LeakyReLU(0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        who, what = self.layers[0](self.table(user[:, 0])), self.layers[1](item)
        return self.act(who * what / self.temperature).sum(1)


def test_what_the_graph_was_made_of_may_change():
    torch.manual_seed(0)
    model = Twice().double()
    step = group(model)

    def apart() -> None:
        model.layers[1].weight = nn.Parameter(2 * model.layers[0].weight.detach())

    def replaced() -> None:
        model.layers[1] = nn.Linear(4, 4).double()

    def setting() -> None:
        model.act.negative_slope = 0.7

    def temperature() -> None:
        model.temperature = 3.0

    for change in (apart, replaced, setting, temperature):
        before = step.graphs
        model.steps += 1
        assert step.graphs is before, "nothing that a graph is made of has changed"
        change()
        assert step.graphs is not before, change
        certificate = verify_gradients(step)
        assert certificate.passed, f"{change}: {certificate}"
    model.act.negative_slope = 0.2
    other = copy.deepcopy(step)
    assert verify_gradients(other).passed, "a copy takes along what still holds"


def test_autocast_is_of_the_call():
    users, items = rows(9)[0], rows(9)[1].float()
    with torch.autocast("cpu", torch.bfloat16):
        step = grouped(Twice(), (users, items), context=["user"], workload=SMALL)
        assert step(users[:3], items, request_offsets=OFFSETS).dtype == torch.bfloat16
    assert step(users[:3], items, request_offsets=OFFSETS).dtype == torch.float32


def test_pickled(ranker):
    users, items = rows(9)
    other = pickle.loads(pickle.dumps(ranker.eval()))
    assert other.original is not ranker.original
    got, expected = (step(users[:3], items, request_offsets=OFFSETS) for step in (other, ranker))
    assert torch.allclose(got, expected)
    assert verify_gradients(other)


def test_compiled(ranker):
    """One graph, whatever the requests' sizes are: what is in tensors only stays in Python."""
    step, (users, items) = copy.deepcopy(ranker).train(), rows(9)
    compiled = torch.compile(step, backend="aot_eager")
    for offsets in (OFFSETS, [0, 3, 6, 9]):
        found = []
        for call in (step, compiled):
            step.zero_grad()
            call(users[:3], items, request_offsets=offsets).square().sum().backward()
            found.append([p.grad.clone() for p in step.parameters()])
        assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True))
