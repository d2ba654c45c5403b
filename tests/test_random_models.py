"""Properties that hold for every model, on random ones (see `random_models`)."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from helpers import apart
from hypothesis import HealthCheck, given, settings
from random_models import CANDIDATES, OFFSETS, REQUESTS, VOCABULARY, WITHOUT_RULE, RandomModel, build, random_models
from random_models.items import shuffled, side, with_items
from torch import Tensor

from rankhoist import HoistedModel, Jagged, Workload
from rankhoist.capture.jagged import flat
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import OFFSETS as OFFSETS_ARGUMENT
from rankhoist.compiler.graph.node import OWNER, ROWS, Node, Rate, Size, StageArgument, join, live_nodes
from rankhoist.compiler.plan import Plan, Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import make_plan
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import ALIKE

EXAMPLES = int(os.environ.get("RANKHOIST_FUZZ_EXAMPLES", "0"))
TOLERANCE = 1e-9  # of an output's largest value, in float64
SIZE = torch.ops.aten.sym_size.int
SMALL = 1e-3  # outputs below are what cancels out: their error is absolute


def examples(share: float, usual: int) -> settings:
    """`usual` examples, always the same; with RANKHOIST_FUZZ_EXAMPLES a share of these, new ones in every run."""
    return settings(
        max_examples=max(int(EXAMPLES * share), 1) if EXAMPLES else usual,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def owners(offsets: list[int]) -> Tensor:
    counts = torch.tensor(offsets).diff()
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def head(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: rows[:count] for name, rows in inputs.items()}


def assert_close(actual: list[Any], expected: list[Any], hint: str) -> None:
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"{hint}: output {i} has shape {list(a.shape)} instead of {list(b.shape)}"
        assert a.dtype == b.dtype, f"{hint}: output {i} has dtype {a.dtype} instead of {b.dtype}"
        if not b.is_floating_point() or not b.numel():
            assert torch.equal(a, b), f"{hint}: output {i} differs"
            continue
        scale = max(float(b.nan_to_num(0, 0, 0).abs().max()), SMALL)
        error = float(apart(a, b).max()) / scale
        assert error <= TOLERANCE, f"{hint}: output {i} differs by {error:.1e} of its scale"


def plans(model: RandomModel) -> dict[str, Plan]:
    """Every level by itself, `full` as the search leaves it, and `full` with every form kept."""
    program, workload = model.program, Workload()
    found = {x.name.lower(): attempt(Task(program, x, workload)) for x in Level if x is not Level.FULL}
    return found | {
        "full": make_plan(Task(program, Level.FULL, workload)),
        "kept": attempt(Task(program, Level.FULL, workload)),
    }


@pytest.mark.parametrize("shard", range(2 if EXAMPLES else 1))  # the slowest test, halved for two workers
@examples(0.35, 60)
@given(model=random_models())
def test_equal_at_every_level(shard, model):
    made = plans(model)
    for name, plan in made.items():
        reasons = [o.reason for o in plan.interpreter.outcomes.values() if o.reason and "please report" in o.reason]
        assert not reasons, f"{name}: {reasons}"
    hoisted = {name: HoistedModel(model.program, plan) for name, plan in made.items()}
    for context, candidate in model.calls():
        assert_equal_scores(model, hoisted, context, candidate)


def assert_equal_scores(
    model: RandomModel, hoisted: dict[str, HoistedModel], context: dict[str, Any], candidate: dict[str, Any]
) -> None:
    """Of one request with few candidates and with many, and of three."""
    several = model.original(context, candidate, owners(OFFSETS))
    one = {n: model.original(head(context, 1), head(candidate, n), owners([0, n])) for n in (1, 2, CANDIDATES)}
    for name, own in hoisted.items():
        for n, expected in one.items():
            got = own(**model.call(head(context, 1), head(candidate, n)))
            assert_close(got, expected, f"{name}, {n} candidates")
        got = own(**model.call(context, candidate), request_offsets=OFFSETS)
        assert_close(got, several, f"{name}, three requests")
        own(**model.call(head(context, 1), head(candidate, 0)))


@examples(0.15, 30)
@given(random_models(mixing=3))
def test_rates_are_never_too_low(model):
    """Values per request depend on their own request alone, values per item on their own candidate alone."""
    plan = attempt(Task(model.program, Level.FULL, Workload()))
    nodes = live_nodes([o for o in plan.outputs if isinstance(o, Node)])
    for node in nodes:
        reads = [x for x in node.inputs if x.op is not SIZE]  # all requests of a call have histories of one length
        assert node.rate | join(x.rate for x in reads) == node.rate, f"{node} reads a higher rate"
    before = evaluated(plan, model, model.context, model.candidate)
    context, candidate = changed(model.context, 1), changed(model.candidate, 2)
    after = evaluated(plan, model, context, model.candidate)
    for node in nodes:
        if node.rate in (Rate.WEIGHT, Rate.ITEM):
            assert same(before[node.index], after[node.index]), f"{node} changes with the context"
        elif node.rate is Rate.REQUEST and rows_first(node, before[node.index], REQUESTS):
            assert same(*(v[node.index][[0, 2]] for v in (before, after))), f"{node} changes with another request"
    after = evaluated(plan, model, model.context, candidate)
    others = [i for i in range(CANDIDATES) if i != 2]
    for node in nodes:
        if node.rate in (Rate.WEIGHT, Rate.REQUEST):
            assert same(before[node.index], after[node.index]), f"{node} changes with the candidates"
        elif node.rate is Rate.ITEM and rows_first(node, before[node.index], CANDIDATES):
            assert same(*(v[node.index][others] for v in (before, after))), f"{node} changes with another candidate"


def changed(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """Other inputs in one row: ids stay ids, masks masks, and a bag has as many values."""
    result = {}
    for name, rows in inputs.items():
        result[name] = other = rows.clone()
        start, count = (int(rows.lengths[:row].sum()), int(rows.lengths[row])) if isinstance(rows, Jagged) else (row, 1)
        for column in other.values if isinstance(rows, Jagged) else [other]:
            own = column[start : start + count]
            if column.is_floating_point():
                own.copy_(-1.5 * own + 0.25)
            else:
                own.copy_(~own if column.dtype == torch.bool else (own + 1) % VOCABULARY)
    return result


def same(a: Any, b: Any) -> bool:
    """Equal up to the rounding that a changed row may cause in its neighbours (vectors are cut otherwise)."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return not isinstance(a, Tensor) or torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11, equal_nan=True)


def rows_first(node: Node, value: Any, rows: int) -> bool:
    """Whether a node's value is `[rows, *shape]`, as all are but those of operators without a rule."""
    return node.rows_first and isinstance(value, Tensor) and tuple(value.shape) == (rows, *node.sizes)


def evaluated(plan: Plan, model: RandomModel, context: dict[str, Any], candidate: dict[str, Any]) -> dict[int, Any]:
    """The value of every node of a plan for the three requests, node by node: independent of how stages are emitted."""
    b, program = plan.interpreter.b, model.program
    owner, offsets = owners(OFFSETS), torch.tensor(OFFSETS)
    known: dict[int, Any] = {}

    def measured(size: Size) -> dict[Any, int]:
        return {symbol: known[node.index] for symbol, node in size.measured}

    def argument(value: Any, rows: int) -> Any:
        if isinstance(value, Node):
            return known[value.index]
        if isinstance(value, list | tuple):
            return [argument(v, rows) for v in value]
        if isinstance(value, Size):
            return int(value.expr.subs({program.rows: rows, **program.lengths, **measured(value)}))
        if isinstance(value, StageArgument):
            return {ROWS: rows, OWNER: owner, OFFSETS_ARGUMENT: offsets}[value]
        return value

    for node in live_nodes([o for o in plan.outputs if isinstance(o, Node)]):
        rows = REQUESTS if node.rate is Rate.REQUEST else CANDIDATES
        if isinstance(node.op, str):
            known[node.index] = leaf(node, model, b.constants, context, candidate)
        else:
            named = {k: argument(v, rows) for k, v in node.kwargs.items()}
            known[node.index] = node.op(*(argument(a, rows) for a in node.args), **named)
    return known


def leaf(
    node: Node,
    model: RandomModel,
    constants: dict[str, Tensor],
    context: dict[str, Any],
    candidate: dict[str, Any],
) -> Tensor:
    name = str(node.args[0])
    if node.op == "weight":
        return model.program.weights[name].tensor
    if node.op == "constant":
        return constants[name]
    inputs = flat(context if node.rate is Rate.REQUEST else candidate)
    return inputs[name] if name in inputs else inputs[name.split(".")[0]]


@examples(0.05, 12)
@given(random_models(steps=5))
def test_no_level_costs_more_than_a_lower_one(model):
    """Multiply-adds below `full`, where predicted time decides (but for what is as fast)."""
    for count in (1, 100, 1000):
        costs = {x: make_plan(Task(model.program, x, Workload(count))).cost for x in Level}
        order = [costs[x].multiply_adds for x in Level if x is not Level.FULL]
        assert order == sorted(order, reverse=True), f"{count} candidates: {costs}"
        assert costs[Level.FULL].seconds <= ALIKE * min(c.seconds for c in costs.values()), f"{count}: {costs}"


@examples(0.1, 40)
@given(random_models())
def test_a_prepared_request_scores_several_times_and_in_any_order(model):
    """`prepare` once and `score` twice is two calls; shuffled candidates get shuffled results."""
    hoisted = HoistedModel(model.program, attempt(Task(model.program, Level.FULL, Workload())))
    context, candidate = head(model.context, 1), model.candidate
    first = hoisted(**model.call(context, candidate))
    state = hoisted.prepare(context)
    assert_close(hoisted.score(state, candidate), first, "prepared")
    if model.mixes_rows:
        return
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    again = hoisted.score(state, {name: tensor[order] for name, tensor in candidate.items()})
    axes = [row_axis(o.meta["val"]) for o in model.program.outputs]
    moved = [(a, b, axis) for a, b, axis in zip(again, first, axes, strict=True) if axis is not None]
    assert_close([a for a, _, _ in moved], [b.index_select(axis, order) for _, b, axis in moved], "shuffled")


def row_axis(fake: Tensor) -> int | None:
    """The axis that is the rows and nothing else."""
    axes = [i for i, n in enumerate(fake.shape) if isinstance(n, torch.SymInt)]
    return axes[0] if len(axes) == 1 and fake.shape[axes[0]].node.expr.is_Symbol else None


def test_operators_meant_to_have_no_rule_have_none():
    assert not all_rules().keys() & set(WITHOUT_RULE)


def test_a_model_can_be_read_and_made_again():
    first, second = (build(random.Random(3).randint) for _ in range(2))
    assert repr(first) == repr(second)
    assert " = context input  # [rows" in repr(first)
    torch.testing.assert_close(first.context, second.context)


def test_a_wrong_rule_is_found(monkeypatch):
    """The check of the check: differences that are sums, found within a few models (one in twenty shows them)."""
    rules = all_rules()
    monkeypatch.setitem(rules, torch.ops.aten.sub.Tensor, rules[torch.ops.aten.add.Tensor])
    with pytest.raises(AssertionError, match="of its scale"):
        for seed in range(200):
            test_equal_at_every_level.hypothesis.inner_test(0, build(random.Random(seed).randint, steps=3))


@examples(0.1, 25)
@given(model=random_models())
def test_scores_by_a_store_of_items_are_equal(model):
    """At every level, and for items that are computed in one block or in several."""
    if model.program.lengths:
        return  # no store has items whose model reads a history of any length
    program, order = with_items(model.program), [3, 1, 6, 0, 2, 5, 4]
    expected = model.original(model.context, model.candidate, owners(OFFSETS))
    items, pairs = shuffled(side(model, program, "item"), order), side(model, program, "pair")
    rows = torch.tensor(order).argsort()
    for level in Level:
        b = Builder()
        plain, stored = (
            single(attempt(Task(program, level, workload), memo=Memo(b)))
            for workload in (Workload(), Workload(item_bytes=10**6))
        )
        hoisted = HoistedModel(program, plain, stored)
        store = hoisted.catalogue(items)
        state = hoisted.prepare(model.context, store=store)
        got = hoisted.score(state, None, OFFSETS, store=store, rows=rows, pair_inputs=pairs)
        assert_close(got, expected, f"{level.name.lower()}, by a store")
    stage = hoisted._item_stage()
    given, count = stage.checked(items)
    for whole, *parts in zip(stage(given, 0, count), stage(given, 0, 3), stage(given, 3, count), strict=True):
        assert same(whole, torch.cat(parts)), "an item changes with another one"
