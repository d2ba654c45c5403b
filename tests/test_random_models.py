"""Properties that hold for every model, on random ones (see `random_models`)."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_models import CANDIDATES, OFFSETS, REQUESTS, VOCABULARY, WITHOUT_RULE, RandomModel, build, random_models
from random_models.items import shuffled, side, with_items
from torch import Tensor

from rankhoist import HoistedModel, Workload
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import OFFSETS as OFFSETS_ARGUMENT
from rankhoist.compiler.graph.node import OWNER, ROWS, Node, Rate, Size, StageArgument, join, live_nodes
from rankhoist.compiler.plan import single
from rankhoist.compiler.plan.search import Plan, attempt, make_plan
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import ALIKE

EXAMPLES = int(os.environ.get("RANKHOIST_FUZZ_EXAMPLES", "0"))
TOLERANCE = 1e-9  # of an output's largest value, in float64
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


def head(inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: tensor[:count] for name, tensor in inputs.items()}


def assert_close(actual: list[Any], expected: list[Any], hint: str) -> None:
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"{hint}: output {i} has shape {list(a.shape)} instead of {list(b.shape)}"
        assert a.dtype == b.dtype, f"{hint}: output {i} has dtype {a.dtype} instead of {b.dtype}"
        if not b.is_floating_point() or not b.numel():
            assert torch.equal(a, b), f"{hint}: output {i} differs"
            continue
        assert torch.equal(a.isfinite(), b.isfinite()), f"{hint}: output {i} is infinite elsewhere"
        scale = max(float(b.nan_to_num(0, 0, 0).abs().max()), SMALL)
        error = float((a - b).nan_to_num(0, 0, 0).abs().max()) / scale
        assert error <= TOLERANCE, f"{hint}: output {i} differs by {error:.1e} of its scale"


def plans(model: RandomModel) -> dict[str, Plan]:
    """Every level by itself, `full` as the search leaves it, and `full` with every form kept."""
    program, workload = model.program, Workload()
    found = {x.name.lower(): attempt(program, x, workload, frozenset()) for x in Level if x is not Level.FULL}
    return found | {
        "full": make_plan(program, Level.FULL, workload),
        "kept": attempt(program, Level.FULL, workload, frozenset()),
    }


@pytest.mark.parametrize("shard", range(2 if EXAMPLES else 1))  # the slowest test, halved for two workers
@examples(0.35, 60)
@given(model=random_models())
def test_equal_at_every_level(shard, model):
    context, candidate = model.context, model.candidate
    several = model.original(context, candidate, owners(OFFSETS))
    one = {n: model.original(head(context, 1), head(candidate, n), owners([0, n])) for n in (1, 2, CANDIDATES)}
    for name, plan in plans(model).items():
        reasons = [o.reason for o in plan.interpreter.outcomes.values() if o.reason and "please report" in o.reason]
        assert not reasons, f"{name}: {reasons}"
        hoisted = HoistedModel(model.program, plan)
        for n, expected in one.items():
            got = hoisted(**model.call(head(context, 1), head(candidate, n)))
            assert_close(got, expected, f"{name}, {n} candidates")
        got = hoisted(**model.call(context, candidate), request_offsets=OFFSETS)
        assert_close(got, several, f"{name}, three requests")
        hoisted(**model.call(head(context, 1), head(candidate, 0)))


@examples(0.15, 30)
@given(random_models(mixing=3))
def test_rates_are_never_too_low(model):
    """Values per request depend on their own request alone, values per item on their own candidate alone."""
    plan = attempt(model.program, Level.FULL, Workload(), frozenset())
    nodes = live_nodes([o for o in plan.outputs if isinstance(o, Node)])
    for node in nodes:
        assert node.rate | join(x.rate for x in node.inputs) == node.rate, f"{node} reads a higher rate"
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


def changed(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """Other inputs in one row: ids stay ids, masks masks."""
    result = {}
    for name, tensor in inputs.items():
        result[name] = other = tensor.clone()
        if tensor.is_floating_point():
            other[row] = -1.5 * tensor[row] + 0.25
        else:
            other[row] = ~tensor[row] if tensor.dtype == torch.bool else (tensor[row] + 1) % VOCABULARY
    return result


def same(a: Any, b: Any) -> bool:
    """Equal up to the rounding that a changed row may cause in its neighbours (vectors are cut otherwise)."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return not isinstance(a, Tensor) or torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11, equal_nan=True)


def rows_first(node: Node, value: Any, rows: int) -> bool:
    """Whether a node's value is `[rows, *shape]`, as all are but those of operators without a rule."""
    return isinstance(value, Tensor) and tuple(value.shape) == (rows, *node.shape)


def evaluated(
    plan: Plan, model: RandomModel, context: dict[str, Tensor], candidate: dict[str, Tensor]
) -> dict[int, Any]:
    """The value of every node of a plan for the three requests, node by node: independent of how stages are emitted."""
    b, program = plan.interpreter.b, model.program
    owner, offsets = owners(OFFSETS), torch.tensor(OFFSETS)
    known: dict[int, Any] = {}

    def argument(value: Any, rows: int) -> Any:
        if isinstance(value, Node):
            return known[value.index]
        if isinstance(value, list | tuple):
            return [argument(v, rows) for v in value]
        if isinstance(value, Size):
            return int(value.expr.subs(program.rows, rows))
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
    context: dict[str, Tensor],
    candidate: dict[str, Tensor],
) -> Tensor:
    name = str(node.args[0])
    if node.op == "weight":
        return model.program.weights[name].tensor
    if node.op == "constant":
        return constants[name]
    return (context if node.rate is Rate.REQUEST else candidate)[name.split(".")[0]]


@examples(0.05, 12)
@given(random_models(steps=5))
def test_no_level_costs_more_than_a_lower_one(model):
    """Multiply-adds below `full`, where predicted time decides (but for what is as fast)."""
    for count in (1, 100, 1000):
        costs = {x: make_plan(model.program, x, Workload(count)).cost for x in Level}
        order = [costs[x].multiply_adds for x in Level if x is not Level.FULL]
        assert order == sorted(order, reverse=True), f"{count} candidates: {costs}"
        assert costs[Level.FULL].seconds <= ALIKE * min(c.seconds for c in costs.values()), f"{count}: {costs}"


@examples(0.1, 40)
@given(random_models())
def test_a_prepared_request_scores_several_times_and_in_any_order(model):
    """`prepare` once and `score` twice is two calls; shuffled candidates get shuffled results."""
    hoisted = HoistedModel(model.program, attempt(model.program, Level.FULL, Workload(), frozenset()))
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
    program, order = with_items(model.program), [3, 1, 6, 0, 2, 5, 4]
    expected = model.original(model.context, model.candidate, owners(OFFSETS))
    items, pairs = shuffled(side(model, program, "item"), order), side(model, program, "pair")
    rows = torch.tensor(order).argsort()
    for level in Level:
        b = Builder()
        plain, stored = (
            single(attempt(program, level, workload, frozenset(), Memo(b)))
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
