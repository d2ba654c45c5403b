"""What the tests share: the one comparison, and hoisting a function at every level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist import HoistedModel, Workload
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import Settled, attempt
from rankhoist.compiler.plan.search import choice, explained, make_plan, search
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import this_machine

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2}
LEVELS = list(Level)


class Function(nn.Module):
    """A function of (context, candidate) tensors as a model; tensors named in `weights` are parameters or buffers."""

    def __init__(self, call: Callable[..., Any], **weights: Tensor) -> None:
        super().__init__()
        self.call = call
        for name, value in weights.items():
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(name, value)

    def forward(self, context: Tensor, candidate: Tensor) -> Any:
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return self.call(context, candidate, **own)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """How far numbers are apart: NaN and NaN by 0, an infinity and itself, too; by NaN or infinity beside others."""
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())


def assert_equal(actual: Any, expected: Any, hint: str = "") -> None:
    """Same structure, shapes and dtypes; numbers within the tolerance of the dtype, of the output's scale."""
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    assert left_spec == right_spec, f"{hint}: structure {left_spec} instead of {right_spec}"
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        if not isinstance(b, Tensor):
            assert a == b, f"{hint}: output {i}"
            continue
        assert a.shape == b.shape, f"{hint}: output {i} has shape {list(a.shape)} instead of {list(b.shape)}"
        assert a.dtype == b.dtype, f"{hint}: output {i} has dtype {a.dtype} instead of {b.dtype}"
        if not b.is_floating_point() or b.numel() == 0:
            assert torch.equal(a, b), f"{hint}: output {i}"
            continue
        scale = b.abs().nan_to_num(0, 0, 0).max().clamp_min(1e-30)
        error = (apart(a, b) / scale).max().item()
        assert error <= TOLERANCE[b.dtype], f"{hint}: output {i} differs by {error:.1e} of its scale"


def repeated(context: Tensor, offsets: Sequence[int]) -> Tensor:
    """Context rows repeated for every candidate of their request: what the original model is given."""
    counts = torch.tensor(offsets).diff()
    return context[torch.repeat_interleave(torch.arange(len(counts)), counts)]


def hoisted_at(program: Program, level: Level, workload: Workload | None = None) -> HoistedModel:
    """A captured program hoisted at one level."""
    return HoistedModel(program, make_plan(Task(program, level, workload or Workload())))


def at_every_level(program: Program, levels: Sequence[Level] = LEVELS) -> dict[Level, HoistedModel]:
    """The same at several levels, by one search: it makes the plans of the lower levels as well."""
    found, made = search(Task(program, max(levels), Workload(), this_machine())), {}
    for level in levels:
        own = [plan for plan in found if plan.level <= level]
        plan = explained(level, Settled(Builder(program.device))(choice(level, own)), own[-1])
        made[level] = HoistedModel(program, plan)
    return made


def kept(program: Program) -> HoistedModel:
    """Level `full` with every form kept, whatever it costs: the plan that exercises the algebra most."""
    return HoistedModel(program, attempt(Task(program, Level.FULL, Workload())))


def check_model(model: nn.Module, context: Tensor, candidate: Tensor) -> dict[str, HoistedModel]:
    """Equality at every level, for one request and for three ragged ones; returns the hoisted models by level."""
    rows = max(len(candidate), 2)
    example = (context[torch.arange(rows) % len(context)], candidate)
    program = capture(model, example, ["context"], all_rules())
    models = {level.name.lower(): made for level, made in at_every_level(program).items()} | {"kept": kept(program)}
    offsets = [0, 3, 3, len(candidate)]
    for name, hoisted in models.items():
        for count in (1, 2, len(candidate)):
            expected = model(repeated(context[:1], [0, max(count, 2)]), candidate[: max(count, 2)])
            expected = pytree.tree_map(lambda t, n=count: t[:n] if t.dim() else t, expected) if count == 1 else expected
            assert_equal(hoisted(context[:1], candidate[:count]), expected, f"{name}, {count} candidates")
        expected = model(repeated(context[:3], offsets), candidate)
        assert_equal(hoisted(context[:3], candidate, request_offsets=offsets), expected, f"{name}, three requests")
        hoisted(context[:1], candidate[:0])
        assert not [r for r in reasons(hoisted) if "please report" in r], "a rule broke"
    return models


def rates_of(hoisted: HoistedModel, operator: str) -> set[Rate]:
    """Rates at which the results of the captured operators of this name are known."""
    outcomes = hoisted.plan.interpreter.outcomes
    names = [n.name for n in hoisted.program.graph.nodes if operator in str(n.target)]
    return {rate for name in names if name in outcomes for rate in outcomes[name].rates}


def reasons(hoisted: HoistedModel) -> list[str]:
    """Why rules declined."""
    return list(hoisted.plan.reasons.values())
