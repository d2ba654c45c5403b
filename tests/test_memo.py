"""What interpretations of one program share: nothing is computed or copied twice, and no choice is overlooked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from helpers import Function, assert_equal, hoisted_at, repeated

from rankhoist import HoistedModel, Workload
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import Settled, attempt

N = 7
OFFSETS = [0, 3, 3, N]
G = torch.Generator().manual_seed(0)
CONTEXT, CANDIDATE = (torch.randn(n, 3, 5, generator=G, dtype=torch.float64) for n in (3, N))
W = torch.randn(5, 5, generator=G, dtype=torch.float64)


def pairs(c, k, w):
    """A linear map of field i for every pair that it is in, written out again each time."""
    x = torch.cat([c, k], 1)
    return torch.stack([(x[:, i] @ w * x[:, j]).sum(1) for i, j in itertools.combinations(range(6), 2)], 1)


def captured(call, **weights) -> Program:
    return capture(Function(call, **weights).eval(), (CONTEXT[torch.arange(N) % 3], CANDIDATE), ["context"])


def original(call, **weights) -> torch.Tensor:
    return Function(call, **weights)(repeated(CONTEXT, OFFSETS), CANDIDATE)


def interpreted(
    program: Program, memo: Memo, level: Level = Level.FULL, evaluated: frozenset[str] = frozenset()
) -> set[str]:
    """The operators for which there was a choice."""
    return attempt(Task(program, level, Workload()), evaluated, memo).interpreter.choices


def operators(program: Program) -> list[str]:
    return [n.name for n in program.graph.nodes if n.op == "call_function"]


def test_what_the_author_repeats_is_computed_once():
    program, memo = captured(pairs, w=W), Memo(Builder())
    interpreted(program, memo, Level.FIRST)
    fields, products = 6, 15
    assert len(operators(program)) == 1 + 5 * products + 1
    # cat, a select per field, a map of all fields but the last, products and their sums, stack
    assert len(memo.results) == 1 + fields + fields - 1 + 2 * products + 1


def test_a_choice_that_changes_nothing_is_computed_once():
    """Only operators with a form to keep have two results, and every repetition of one is known to have the choice."""
    program, memo = captured(pairs, w=W), Memo(Builder())
    choices = interpreted(program, memo)
    before = len(memo.results)
    assert interpreted(program, memo, evaluated=frozenset(operators(program)) - choices) == choices
    assert len(memo.results) == before
    assert len(memo.lowered) == 1


def test_repetitions_are_chosen_for_one_by_one():
    """The same product twice, one kept and one evaluated: both are known as choices, and both are right."""

    def twice(c, k, w):
        return (k[:, 0, :1] * c[:, 0]) @ w + (k[:, 0, :1] * c[:, 0]) @ w.t()

    program, memo = captured(twice, w=W), Memo(Builder())
    interpreted(program, memo)
    products = [n for n in operators(program) if n.startswith("mul")]
    assert len(products) == 2
    for evaluated in (frozenset(), frozenset(products[:1]), frozenset(products)):
        assert interpreted(program, memo, evaluated=evaluated) >= set(products)
        hoisted = HoistedModel(program, attempt(Task(program, Level.FULL, Workload()), evaluated))
        assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS), original(twice, w=W), str(evaluated))


def test_sizes_that_depend_on_data_are_not_shared():
    """Each `masked_select` names the size of its result; the second name must be known too."""

    def call(c, k):
        first, second = (torch.masked_select(c[:, 0], k[:, 0] > 0) for _ in range(2))
        numbers = [torch.arange(x.shape[0], dtype=x.dtype) for x in (first, second)]
        return k[:, 0] + (first * numbers[0]).sum() + (second * numbers[1]).sum()

    program = captured(call)
    for level in (Level.EXPAND, Level.FULL):
        scores = hoisted_at(program, level)(CONTEXT, CANDIDATE, request_offsets=OFFSETS)
        assert_equal(scores, original(call), level.name)


def test_what_is_taken_twice_is_copied_once():
    """A gather of a gather, or of a slice, reads the source; along another axis it reads the first."""
    b = Builder()
    x = b.leaf("input", "x", Rate.ITEM, [10, 3], torch.float64)
    some, every_other = b.take(x, 0, np.array([5, 2, 7, 9])), b.take(x, 0, np.array([1, 3, 5, 7]))
    assert b.take(some, 0, np.array([2, 0])) is b.take(x, 0, np.array([7, 5]))
    assert b.take(every_other, 0, np.array([3, 0, 1])) is b.take(x, 0, np.array([7, 1, 3]))
    assert b.take(some, 1, np.array([2, 0])).args[0] is some
    assert b.take(b.take(some, 0, np.array([2, 0])), 0, np.array([1, 0])) is b.take(x, 0, np.array([5, 7]))


def test_zeros_of_both_signs_are_told_apart():
    def signed(c, k):
        return [torch.copysign(k, torch.full_like(k, zero)) + 1 / torch.full_like(c, zero) for zero in (0.0, -0.0)]

    program = captured(signed)
    for level in (Level.EXPAND, Level.FULL):
        made = hoisted_at(program, level)(CONTEXT, CANDIDATE, request_offsets=OFFSETS)
        for got, want in zip(made, original(signed), strict=True):
            assert torch.equal(got, want), level


def test_plans_that_are_kept_share_what_they_do_alike():
    """Over one builder they are what each makes by itself."""
    program, builder = captured(pairs, w=W), Builder()
    choices = frozenset(), frozenset(operators(program))
    plans = [attempt(Task(program, Level.FULL, Workload()), evaluated) for evaluated in choices]
    alone = [attempt(plan.task, plan.evaluated, Memo(builder)) for plan in plans]
    settled = Settled(Builder())
    shared = [settled(plan) for plan in plans]
    assert [str(plan) for plan in shared] == [str(plan) for plan in alone]
    first, second = (plan.interpreter.memo for plan in shared)
    assert first is second
    assert str(shared[0]) != str(shared[1])


def test_plans_that_are_kept_measure_sizes_that_depend_on_data_each_by_itself():
    program = captured(lambda c, k: (k * (c.masked_select(c > 0).sum() + k[k > 0].sum())).sum((1, 2)))
    settled, plan = Settled(Builder()), attempt(Task(program, Level.FULL, Workload()))
    first, second = (settled(plan).interpreter.memo for _ in range(2))
    assert first.measured and first.measured == second.measured
    assert first is not second


def test_plans_under_other_limits_share_how_they_are_interpreted():
    program = captured(pairs, w=W)
    settled, plan = Settled(Builder()), attempt(Task(program, Level.FULL, Workload()))
    other = replace(plan.target.limits, attended=not plan.target.limits.attended)
    own, under = settled(plan), settled.limited(plan, other)
    assert own.interpreter.memo is under.interpreter.memo
    assert len(own.interpreter.memo.lowered) == 2
