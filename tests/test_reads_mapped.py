"""Maps of what a candidate reads of its request are maps of what it reads from: `W x[i] = (W x)[i]`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, kept, repeated
from torch import Tensor

from rankhoist import GroupedModel, Workload, verify_gradients
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Plan, Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.runtime import load_onnx
from rankhoist.runtime.blueprint import Blueprint

T, D, K, N = 30, 6, 4, 7
G = torch.Generator().manual_seed(23)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


HISTORY, TARGET = randn(3, T, D), randn(N, D)
W, V, B = randn(D, 5), randn(5, 3), randn(5)
Read = Callable[[Tensor, Tensor], Tensor]


def top(x: Tensor, q: Tensor, count: int = K) -> Tensor:
    """Places of the entries that are most like the candidate: `[B, K]`."""
    return torch.einsum("btd,bd->bt", x, q).topk(count, 1).indices


def found(x: Tensor, q: Tensor) -> Tensor:
    return torch.take_along_dim(x, top(x, q)[:, :, None], dim=1)


def two_layers(x: Tensor) -> Tensor:
    return F.relu(x @ W + B) @ V


def of_heads(x: Tensor, q: Tensor) -> Tensor:
    """Other places for every head."""
    parts = x.view(-1, T, 2, D // 2).transpose(1, 2)
    places = torch.einsum("bhtd,bhd->bht", parts, q.view(-1, 2, D // 2)).topk(K, 2).indices
    return parts.gather(2, places[..., None].expand(-1, -1, -1, D // 2))


def gated(x: Tensor) -> Tensor:
    return (x @ W) * torch.sigmoid(x @ W)


MAPS: dict[str, Read] = {
    "linear": lambda x, q: found(x, q) @ W + B,
    "two_layers": lambda x, q: two_layers(found(x, q)),
    "summed": lambda x, q: two_layers(found(x, q)).sum(1),
    "averaged": lambda x, q: found(x, q).mean(1) @ W,
    "layer_norm": lambda x, q: F.layer_norm(found(x, q) @ W, [5], B, B) @ V,
    "softmax_of_columns": lambda x, q: torch.softmax(found(x, q) @ W, -1) @ V,
    "largest_of_columns": lambda x, q: (found(x, q) @ W).amax(-1),
    "with_itself": lambda x, q: gated(found(x, q)) @ V,
    "gate_of_the_request": lambda x, q: torch.tanh(found(x, q) * x[:, :1].sigmoid()) @ W,
    "residual": lambda x, q: found(x, q) + F.relu(found(x, q) @ W) @ W.T,
    "by_rank": lambda x, q: F.relu((found(x, q) + torch.ones_like(V[:1, :1]).expand(K, D).cumsum(0)) @ W) @ V,
    "flat": lambda x, q: found(x, q).flatten(1) @ torch.ones_like(V[:1]).expand(K * D, 3).cumsum(0),
    "first": lambda x, q: two_layers(found(x, q)[:, 0]),
    "some": lambda x, q: two_layers(found(x, q)[:, 1:3]),
    "backwards": lambda x, q: two_layers(found(x, q).flip(1)),
    "halves": lambda x, q: two_layers(found(x, q).to(torch.float32).to(torch.float64)),
    "heads": lambda x, q: F.relu(of_heads(x, q) @ W[: D // 2]) @ V,
    "mask_of_the_history": lambda x, q: (
        (found(x, q) @ W).masked_fill(torch.take_along_dim(x[..., 0] > 0, top(x, q), 1)[..., None], 0.0) @ V
    ),
    "other_columns": lambda x, q: F.relu(torch.cat([found(x, q) @ W, found(x, q).tanh()], 2)).sum(2),
}


def model(*reads: Read) -> Function:
    return Function(lambda c, k: [read(c, k) for read in reads]).eval()


def program_of(*reads: Read) -> Program:
    return capture(model(*reads), (HISTORY[torch.arange(N) % 3], TARGET), ["context"], all_rules())


def left(plan: Plan) -> int:
    """Multiply-adds of a candidate."""
    return sum(n.work.multiply_adds for n in plan.nodes if n.rate.per_candidate)


def test_equal_and_no_map_is_left():
    plan = check_model(model(*MAPS.values()), HISTORY, TARGET)["kept"].plan
    assert left(plan) == 2 * T * D  # both searches
    assert not any(n.op is kernels.places for n in plan.nodes)


NEAR_MISSES: dict[str, tuple[Read, int]] = {  # a map of so many multiply-adds is left
    "softmax_of_what_is_read": (lambda x, q: torch.softmax(found(x, q) @ W, 1) @ V, K * 5 * 3),
    "norm_of_what_is_read": (lambda x, q: F.layer_norm(found(x, q) @ W, [K, 5]) @ V, K * 5 * 3),
    "joined_with_the_candidate": (lambda x, q: F.relu(found(x, q) @ W + (q @ W)[:, None]) @ V, D * 5 + K * 5 * 3),
    "hidden_by_the_candidate": (
        lambda x, q: F.relu(found(x, q) @ W).masked_fill(top(x, q)[..., None] > 3, 0.0) @ V,
        K * 5 * 3,
    ),
    "sums_of_heads": (lambda x, q: F.relu(of_heads(x, q).transpose(1, 2).flatten(2) @ W) @ V, K * 5 * 3),
    "other_places": (
        lambda x, q: F.relu(torch.take_along_dim(x, top(x, q).flip(1)[..., None], 1) + found(x, q)) @ W,
        K * D * 5,
    ),
}


def test_what_meets_others_is_mapped_after_it_is_read():
    reads = [read for read, _ in NEAR_MISSES.values()]
    check_model(model(*reads), HISTORY, TARGET)
    for name, (read, work) in NEAR_MISSES.items():
        plan = attempt(Task(program_of(read), Level.FULL, Workload()))
        assert left(plan) == T * D + work, name


@pytest.mark.parametrize("candidates", [1, 5, 8, 1000])
@pytest.mark.parametrize("requests", [1, 3])
def test_what_is_read_is_mapped_where_it_is_less(candidates, requests):
    plan = attempt(Task(program_of(MAPS["two_layers"]), Level.FULL, Workload(candidates, requests)))
    early = requests * T <= candidates * K
    assert left(plan) == T * D + (0 if early else K * (D * 5 + 5 * 3))
    request = sum(n.work.multiply_adds for n in plan.nodes if n.rate is Rate.REQUEST)
    assert request == (T * (D * 5 + 5 * 3) if early else 0)


@pytest.mark.parametrize("offsets", [None, [0, 4, 4, N]])
def test_a_place_that_there_is_not_is_an_error(offsets):
    shifted = Function(lambda c, k: two_layers(torch.take_along_dim(c, k[:, :1, None].long(), 1))).eval()
    program = capture(shifted, (HISTORY[torch.arange(N) % 3], TARGET.mul(0)), ["context"], all_rules())
    hoisted, context = kept(program), HISTORY[:1] if offsets is None else HISTORY
    assert left(hoisted.plan) == 0
    for wrong in (T, -1):
        with pytest.raises((IndexError, RuntimeError)):
            hoisted(context, torch.full_like(TARGET, wrong), request_offsets=offsets)


def test_gradients_of_maps_before_a_read():
    def call(c: Tensor, k: Tensor, w: Tensor, v: Tensor) -> Tensor:
        rows = F.relu(found(c, k) @ w)
        return (torch.softmax(rows @ v, 2) * rows.mean(2, keepdim=True)).sum((1, 2))

    mapped = Function(call, w=W.clone(), v=V.clone()).requires_grad_()
    inputs = HISTORY[torch.arange(20) // 7], randn(20, D)
    program = capture(mapped, inputs, ["context"], all_rules(), training=True)
    plan = attempt(Task(program, Level.FULL, Workload(40, 3)))
    assert left(plan) == T * D
    certificate = verify_gradients(GroupedModel(mapped, lambda _: Blueprint.of(program, single(plan))), inputs=inputs)
    assert certificate.passed, certificate


def test_exported_to_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    program = program_of(MAPS["layer_norm"], MAPS["heads"])
    kept(program).export_onnx(tmp_path, several=True)
    runner = load_onnx(tmp_path)
    for offsets in ([0, N], [0, 4, 4, N]):
        context = HISTORY[: len(offsets) - 1]
        expected = model(MAPS["layer_norm"], MAPS["heads"])(repeated(context, offsets), TARGET)
        made = runner(context, TARGET, request_offsets=offsets)
        assert_equal([torch.as_tensor(x) for x in made], expected)
