"""Stages that are differentiated: what is written over, split, broadcast and multiplied so that a step is lean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Function
from torch import Tensor

from rankhoist import GroupedModel, Workload, verify_gradients
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import gradients
from rankhoist.compiler.graph.trained import Counts, broadcast, linear
from rankhoist.compiler.plan import Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import this_machine
from rankhoist.compiler.targets.training import OUTER, training
from rankhoist.runtime.blueprint import Blueprint

aten = torch.ops.aten
C, K, WIDE = 6, 4, OUTER


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def operators(call: Callable[..., Tensor], level: Level = Level.FULL, **weights: Tensor) -> list[str]:
    """Names in all stages, after the check that gradients are those of rows."""
    inputs = randn(20, C), randn(20, K).flip(0)
    model = Function(call, **weights).requires_grad_()
    program = capture(model, inputs, ["context"], all_rules(), training=True)
    plan = attempt(Task(program, level, Workload(9, 3), training(this_machine())))
    step = GroupedModel(model, lambda _: Blueprint.of(program, single(plan)))
    certificate = verify_gradients(step, inputs=inputs, candidates=(9, 12), requests=(1, 3))
    assert certificate.passed, certificate
    stages = step.graph.stages
    nodes = [n for s in stages.all for n in s.module.graph.nodes]
    return [str(n.args[0] if n.target is broadcast else getattr(n.target, "__name__", "")) for n in nodes if called(n)]


def called(node: Any) -> bool:
    return bool(node.op == "call_function")


def test_parts_of_a_weight_are_split_once():
    found = operators(lambda c, k, w: torch.cat([c, k], 1) @ w, Level.LINEAR, w=randn(C + K, 5))
    assert "split_with_sizes.default" in found
    assert "slice.Tensor" not in found


def test_parts_that_overlap_are_slices():
    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return (c @ w[:, :5]).relu().sum(1, True) + (c.sin() @ w[:, 3:]).tanh().sum(1, True) + k

    found = operators(call, Level.LINEAR, w=randn(C, 8))
    assert found.count("slice.Tensor") == 2
    assert "split_with_sizes.default" not in found


def test_rows_of_requests_are_broadcast():
    found = operators(lambda c, k, w: ((k @ w).tanh() * c + c) / (2 + c.square()), w=randn(K, C))
    assert "aten.mul.Tensor" in found
    assert "spread" not in found


def test_rows_of_requests_are_repeated_for_what_does_not_broadcast():
    found = operators(lambda c, k, w: torch.maximum((k @ w).tanh(), c) * c, w=randn(K, C))
    assert "spread" in found
    assert "aten.mul.Tensor" in found


def test_what_a_gradient_does_not_read_is_written_over():
    found = operators(lambda c, k, w: (torch.cat([c, k], 1) @ w).relu() @ w.T, Level.LINEAR, w=randn(C + K, 7))
    assert "over" in found
    assert "relu.default" not in found


@pytest.mark.parametrize(("call", "kept"), [
    (lambda c, k, w: (k @ w).tanh() + c, "aten.add.Tensor"),  # the gradient of tanh reads its result
    (lambda c, k, w: (k @ w) * c, "aten.mul.Tensor"),  # that of a product its operands
    (lambda c, k, w: (k @ w).relu() @ (k @ w).T, "relu.default"),  # which is read once more
], ids=["result", "operands", "two_readers"])  # fmt: skip
def test_what_a_gradient_reads_is_kept(call: Callable[..., Tensor], kept: str):
    assert kept in operators(call, Level.LINEAR, w=randn(K, C))


def test_a_gradient_that_others_have_a_part_in_is_kept():
    """What a sum hands on is its own gradient as well."""
    found = operators(lambda c, k, w: (k @ w[:K]).relu() + (c @ w[:C] + k @ w[:K]).tanh(), Level.LINEAR, w=randn(C, 5))
    assert "over" not in found


def test_a_number_per_row_times_a_wide_row_is_a_product():
    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return (k.sum(1).tanh()[:, None] * w).sigmoid() + (k[:, :1].sin() * (c @ w[None].expand(C, -1))).sin()

    found = operators(call, w=randn(WIDE))
    assert "request_linear" in found
    assert "linear" in found
    narrow = operators(call, w=randn(WIDE - 1))
    assert "request_linear" not in narrow


def unit(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A history of 3 events, each beside the candidate: `[N, 3, 4] x [4, 40]`, a matrix `[2, 3 * 40]` per request."""
    history, q = c.view(-1, 3, 2), k[:, None, :2].expand(-1, 3, -1)
    return (torch.cat([history * q, q], -1) @ w).relu().sum((1, 2))


def test_a_large_result_of_small_operands_is_made_as_it_is_read():
    found = operators(unit, w=randn(4, 40))
    assert "request_linear" in found
    assert "clone.default" in found  # of the events, not of the matrices


def test_a_large_operand_is_arranged_after():
    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        seen = (k @ w).view(-1, 5, 6).tanh() * c[:, None]
        return seen.permute(0, 2, 1).reshape(len(k), 30).cumsum(1)

    found = operators(call, w=randn(K, 30))
    assert "permute.default" in found
    assert "clone.default" not in found


@pytest.mark.parametrize("op", gradients.BACKWARD, ids=lambda op: op.__name__)
def test_functions_over_what_they_read(op: Callable[[Tensor], Tensor]):
    plain = getattr(torch, op.__name__.partition("_.")[0])
    x, w = randn(5, 3).requires_grad_(), randn(3, 3)
    made, expected = gradients.over(x * 1, op) @ w, plain(x) @ w
    assert torch.equal(made, expected)
    for _ in range(2):  # the result that is kept is as it was
        own, other = (torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (made, expected))
        assert torch.allclose(own[0], other[0])
    second = [
        torch.autograd.grad(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].square().sum(), x)[0]
        for y in (made, expected)
    ]
    assert torch.allclose(*second)


def test_the_gradient_is_written_over():
    given = []
    x = randn(5, 3).requires_grad_()
    made = gradients.over(x * 1, aten.relu_.default)
    made.register_hook(lambda g: given.append(g) or None)
    made.backward(own := randn(5, 3))
    assert given[0] is own or given[0].data_ptr() == own.data_ptr()
    assert torch.equal(own, x.grad)


def test_rows_that_are_not_contiguous_broadcast():
    x, y = randn(3, 2, 6).permute(2, 0, 1), randn(3, 3, 2)
    got = broadcast(aten.sub.Tensor, y, x, False, Counts.of(torch.tensor([0, 2, 4, 6])))
    assert torch.equal(got, y.repeat_interleave(2, 0) - x)


def test_a_layer_over_several_axes_is_no_view():
    """The gradient of what is written over a view copies all that it looks at, twice."""
    x, w, bias = randn(5, 3, K), randn(2, K), randn(2)
    made = linear(x, w, bias)
    assert made._base is None
    assert torch.equal(made, torch.nn.functional.linear(x, w, bias))
