"""What hoisting itself costs is bounded: orders are remembered, long forms evaluated, dear attempts given up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Function, assert_equal, kept, reasons, repeated

from rankhoist import HoistedModel, Workload
from rankhoist.bench.models import DisentangledFields
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra import evaluator, interpret, order
from rankhoist.compiler.algebra.forms import Factor, Label
from rankhoist.compiler.algebra.interpret import OverBudget
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Plan, Task, search
from rankhoist.compiler.plan import attempt as attempts
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import make_plan
from rankhoist.errors import HoistingWarning
from rankhoist.hoist import hoist_program

OFFSETS = [0, 3, 3, 7]
N = OFFSETS[-1]
G = torch.Generator().manual_seed(0)


class Fields:
    """A model whose forms grow: fields in pieces look at each other, layer after layer."""

    def __init__(self, context: int, candidate: int, width: int, depth: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = DisentangledFields(context + candidate, width, heads=2, depth=depth).double().eval()
        sides = ((3, context), (N, candidate))
        self.context, self.candidate = (torch.randn(*s, width, generator=G, dtype=torch.float64) for s in sides)
        self.program = capture(self.model, (self.context[torch.arange(N) % 3], self.candidate), ["context"])

    def check(self, hoisted: HoistedModel, hint: str = "") -> None:
        """Equal for three requests, one of them empty."""
        actual = hoisted(self.context, self.candidate, request_offsets=OFFSETS)
        assert_equal(actual, self.model(repeated(self.context, OFFSETS), self.candidate), hint)


@pytest.fixture(scope="module")
def small() -> Fields:
    return Fields(3, 3, 4, depth=2)


@pytest.fixture(autouse=True)
def no_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search compares where it starts from, and no more."""
    monkeypatch.setattr(search, "SECONDS", 0.0)


# -- the order of products


def chain(count: int) -> tuple[list[Factor], set[Label]]:
    """`count` matrices of the request, and a vector per candidate on the right."""
    b, labels = Builder(), [Label(16) for _ in range(count + 1)]
    factors = []
    for i in range(count + 1):
        rate, own = (Rate.REQUEST, labels[i : i + 2]) if i < count else (Rate.ITEM, labels[i:])
        factors.append(Factor(b.leaf("input", str(i), rate, [16] * len(own), torch.float32), tuple(own)))
    return factors, {labels[0]}


MATRIX, VECTOR = 16**3 + 16**2, 16**2 + 16  # units of a product with a matrix


@pytest.mark.parametrize("count", [3, 7, 12, 20])
def test_matrices_of_the_request_come_first_where_there_are_many_candidates(count: int):
    """Up to eight factors by trying all orders; beyond, by a search of bounded cost."""
    assert order.cheapest(*chain(count), Workload(1000)).cost == (count - 1) * MATRIX + 1000 * VECTOR
    assert order.cheapest(*chain(count), Workload(1)).cost == count * VECTOR


def test_an_order_can_be_read():
    assert order.cheapest(*chain(2), Workload(1000)).tree == (2, (1, 0))
    assert order.cheapest(*chain(2), Workload(1)).tree == ((2, 1), 0)


def test_products_that_are_alike_are_searched_once():
    """Other tensors under other labels; another rate, size or result is another kind."""
    order.cheapest(*chain(5), Workload(77))
    before = order.searched()
    order.cheapest(*chain(5), Workload(77))
    assert order.searched() == before
    factors, visible = chain(5)
    order.cheapest(factors, {*visible, factors[-1].labels[0]}, Workload(77))
    assert order.searched() == before + 1


# -- forms that grow


def test_forms_that_grow_are_evaluated_within_bounded_work():
    """13 + 5 fields: without a limit, the third layer has sums of thousands of products of up to eight factors."""
    fields = Fields(13, 5, 16, depth=3)
    before = order.searched()
    plan = attempt(Task(fields.program, Level.FULL, Workload()))
    assert order.searched() - before < 2000
    assert len(plan.interpreter.b.nodes) < 30_000
    fields.check(HoistedModel(fields.program, plan), "kept")


@pytest.mark.parametrize("limit", ["TERMS", "PRODUCT"])
def test_the_report_names_the_limit(small: Fields, monkeypatch: pytest.MonkeyPatch, limit: str):
    monkeypatch.setattr({"TERMS": interpret, "PRODUCT": evaluator}[limit], limit, 5)
    hoisted = kept(small.program)
    small.check(hoisted)
    told = {"TERMS": "its form has more than 5 terms and is evaluated", "PRODUCT": "would have more than 5 terms"}
    assert any(told[limit] in reason for reason in reasons(hoisted))


def test_a_long_sum_times_a_matrix_stays_a_form(monkeypatch: pytest.MonkeyPatch):
    """Only products of sums multiply terms: an affine form of many terms goes through a linear layer."""
    monkeypatch.setattr(evaluator, "PRODUCT", 4)
    weights = {name: torch.randn(4, 4, generator=G, dtype=torch.float64) for name in "pqrstu"}

    def call(c: torch.Tensor, k: torch.Tensor, u: torch.Tensor, **w: torch.Tensor) -> torch.Tensor:
        terms = [torch.tanh(k * i) @ matrix * c for i, matrix in enumerate(w.values(), 1)]
        return sum(terms[1:], terms[0]) @ u

    context, candidate = (torch.randn(n, 4, generator=G, dtype=torch.float64) for n in (3, N))
    model = Function(call, **weights).eval()
    program = capture(model, (context[torch.arange(N) % 3], candidate), ["context"])
    hoisted = kept(program)
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    assert reasons(hoisted) == []


# -- attempts that are too dear


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is the number of times that somebody has looked at it."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(interpret.time, "thread_time", lambda: float(next(ticks)))


@pytest.mark.usefixtures("clock")
def test_an_attempt_that_is_given_up_leaves_the_memo_right(small: Fields):
    memo = Memo(Builder())
    for seconds in (10, 30, 50):
        with pytest.raises(OverBudget):
            attempt(Task(small.program, Level.FULL, Workload()), memo=memo, seconds=seconds)
    plan = attempt(Task(small.program, Level.FULL, Workload()), memo=memo)
    fresh = attempt(Task(small.program, Level.FULL, Workload()))
    assert (plan.cost, plan.reasons) == (fresh.cost, fresh.reasons)
    small.check(HoistedModel(small.program, plan))


@pytest.mark.parametrize("level", ["full", "first"])
def test_the_search_goes_on_without_dear_attempts(small: Fields, monkeypatch: pytest.MonkeyPatch, level: str):
    """Where nothing else is affordable, the plan is the model as it was written, which is said."""
    monkeypatch.setattr(search, "ATTEMPT", 0.0)
    with pytest.warns(HoistingWarning, match="every attempt at a plan took more than 0 s and was given up"):
        hoisted = hoist_program(small.program, level=level)
    assert hoisted.plan.level is Level.EXPAND
    small.check(hoisted)


def test_a_dear_level_leaves_the_plans_of_the_lower_ones(small: Fields, monkeypatch: pytest.MonkeyPatch):
    usual = [p.cost for p in found(small.program)]

    def affordable(task: Task, *given: Any, **named: Any) -> Any:
        return None if task.level is Level.FULL else attempt(task, *given, **named)

    monkeypatch.setattr(search, "affordable", affordable)
    assert [p.cost for p in found(small.program)] == usual[:-1]
    small.check(hoist_program(small.program))


def found(program: Program) -> list[Plan]:
    return search.search(Task(program, Level.FULL, Workload()))


@pytest.mark.parametrize("level", [Level.REQUEST, Level.FIRST, Level.FULL])
def test_a_plan_is_explained_by_what_the_search_has_seen(small: Fields, monkeypatch: pytest.MonkeyPatch, level: Level):
    """Only the plan itself is interpreted once more; its reasons are those of the level that was asked for."""
    expected = attempt(Task(small.program, level, Workload())).reasons
    seen = []

    def counted(task: Task, evaluated: frozenset[str] = frozenset(), *given: Any, **named: Any) -> Plan:
        seen.append((task.level, evaluated))
        return attempt(task, evaluated, *given, **named)

    for own in (search, attempts):
        monkeypatch.setattr(own, "attempt", counted)
    plan = make_plan(Task(small.program, level, Workload()))
    assert plan.level < Level.FULL
    assert plan.reasons == expected
    assert seen.count((level, frozenset())) == 1 + (plan.level is level)
