"""Targets: another machine, another best plan; a target that is made up here changes nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal

from rankhoist.bench.scenarios import CrossLayers, Scenario
from rankhoist.capture import Program, capture
from rankhoist.compiler.graph.node import Node, Rate
from rankhoist.compiler.graph.operators import row
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.targets import CPU, Target, this_machine
from rankhoist.compiler.targets.profile import BUILT_IN, Profile
from rankhoist.hoist import hoist_program

CROSS = Scenario("cross", lambda: CrossLayers(200, 3, 64), (160,), (40,))


@dataclass(frozen=True)
class Launches:
    """A table of a form of its own: only the number of operators counts."""

    seconds: float
    machine: str = "a made-up machine"


def launched(node: Node) -> bool:
    return node.rate is not Rate.WEIGHT and not isinstance(node.op, str) and not row(node.op).view


def seconds(node: Node, table: Launches, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    return np.full(np.shape(candidates), table.seconds * launched(node))


MADE_UP = Target(
    name="made-up-bfloat16", device="made-up", dtype=torch.bfloat16,
    limits=Limits(wide=10_000, small=2**20, tables=2, copied=2**30),
    profile=Launches(1e-5), start=lambda table: 5 * table.seconds, kind=launched, seconds=seconds,
)  # fmt: skip


def operators(plan: Plan) -> int:
    return sum(map(launched, plan.nodes))


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(CROSS.model(), CROSS.inputs(4, 4), ["context"])


@pytest.fixture(scope="module")
def here(program: Program) -> Plan:
    return hoist_program(program, target=CPU).plan


def test_where_calls_are_dear_the_plan_has_fewer_operators(program, here):
    """The same functions, another table."""
    real = Profile.load(BUILT_IN)
    dear = replace(CPU, name="dear-calls", profile=replace(real, call=100 * real.call, view=100 * real.view))
    there = hoist_program(program, target=dear).plan
    assert operators(there) < operators(here) and there.cost.multiply_adds > here.cost.multiply_adds


def test_a_target_with_a_table_and_functions_of_its_own(program, here):
    hoisted = hoist_program(program, target=MADE_UP)
    assert operators(hoisted.plan) < operators(here)
    for plan in hoisted.plans.plans:
        assert plan.target is MADE_UP
        assert float(MADE_UP.predicted(plan.nodes, plan.outputs, 50, 2)) == pytest.approx(1e-5 * (5 + operators(plan)))
    assert hoisted.plan.cost.seconds == pytest.approx(1e-5 * (5 + operators(hoisted.plan)))
    assert hoisted.report().curves.machine == "a made-up machine"
    context, candidate = CROSS.inputs(1, 33)
    assert_equal(hoisted(context, candidate), CROSS.model()(context.expand(33, -1), candidate))


def test_without_a_target_plans_are_made_for_this_machine(program, here):
    hoisted = hoist_program(program)
    assert hoisted.plan.target == this_machine() != CPU, "tests have a profile of their own"
    assert replace(hoisted.plan.target, profile=CPU.profile) == CPU == here.target


def test_what_the_cpu_names_is_known():
    assert (CPU.name, CPU.device, CPU.dtype) == ("cpu-float32", "cpu", torch.float32)
