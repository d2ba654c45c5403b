"""The report: all work is attributed, the amounts are the closed forms, and what stayed says why."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import live_nodes
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import make_plan
from rankhoist.compiler.rules import all_rules
from rankhoist.report import Amount, Operator, Report
from rankhoist.report.make import make_report
from rankhoist.report.text import ratio, short, shorten, table

USER, DENSE, ITEM, HIDDEN = 6, 5, 3, 8  # widths: user embedding, context, candidate, hidden layer
CALL = Workload(1000, 4)


class Tower(nn.Module):
    """Linear, relu."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


class Ranker(nn.Module):
    """A user tower, a mixed layer, a softmax over the rows of the call, an operator on weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.user_tower = nn.Embedding(9, USER), Tower(USER + DENSE)
        self.the_mixed_tower_with_a_very_long_name = Tower(HIDDEN + ITEM)
        self.gate, self.top = nn.Parameter(torch.ones(HIDDEN)), nn.Linear(HIDDEN, 1)

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> Tensor:
        context = self.user_tower(torch.cat([self.users(user), dense], 1))
        x = self.the_mixed_tower_with_a_very_long_name(torch.cat([context, item], 1))
        return self.top(x * torch.exp(self.gate)).view(-1).softmax(0)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    rows = (torch.arange(7), torch.randn(7, DENSE), torch.randn(7, ITEM))
    return capture(Ranker().eval(), rows, ["user", "dense"])


@pytest.fixture(scope="module", params=["linear", "full"])
def report(program: Program, request: pytest.FixtureRequest) -> Report:
    return make_report(make_plan(Task(program, Level[request.param.upper()], CALL)))


@pytest.fixture(scope="module")
def linear(program: Program) -> Report:
    return make_report(make_plan(Task(program, Level.LINEAR, CALL)))


def operator(report: Report, module: str, name: str) -> Operator:
    (found,) = (o for o in report.operators if o.module == module and name in o.operator)
    return found


MIXED = "the_mixed_tower_with_a_very_long_name"


# -- amounts


@pytest.mark.parametrize("level", list(Level))
def test_all_of_the_plans_work_is_attributed(program: Program, level: Level):
    plan = make_plan(Task(program, level, CALL))
    total = make_report(plan).total()
    assert total.after.multiply_adds == plan.cost.multiply_adds > 0
    assert total.after.bytes == 4 * plan.cost.elements  # all that is written is float32
    assert total.before.multiply_adds == attempt(Task(program, Level.EXPAND, CALL)).cost.multiply_adds


def test_a_mixed_layer_is_split_by_columns(linear: Report):
    layer = operator(linear, f"{MIXED}.layer", "linear")
    assert layer.before.multiply_adds == (HIDDEN + ITEM) * HIDDEN
    assert layer.request.multiply_adds == HIDDEN * HIDDEN
    assert layer.candidate.multiply_adds == ITEM * HIDDEN
    assert linear.before(layer).multiply_adds == 1000 * (HIDDEN + ITEM) * HIDDEN
    assert linear.after(layer).multiply_adds == 4 * HIDDEN * HIDDEN + 1000 * ITEM * HIDDEN


def test_a_context_layer_leaves_the_candidate_stage(linear: Report):
    layer = operator(linear, "user_tower.layer", "linear")
    assert layer.rates == ("request",)
    assert layer.candidate == Amount() and layer.reason is None
    assert layer.request.multiply_adds == layer.before.multiply_adds == (USER + DENSE) * HIDDEN


def test_bytes_are_those_of_the_dtype(linear: Report):
    lookup = operator(linear, "users", "embedding")
    assert lookup.before.bytes == lookup.request.bytes == 4 * USER


def test_modules_add_up_to_the_total(report: Report):
    modules = report.modules()
    assert sum((m.before for m in modules), Amount()) == report.total().before
    assert sum((m.after for m in modules), Amount()) == report.total().after
    assert [m.path for m in modules][:2] == ["users", ""]
    assert len({m.path for m in modules}) == len(modules)


def test_work_on_weights_alone_counts_nothing(linear: Report):
    gate = operator(linear, "", "exp")
    assert gate.rates == ("weight",) and not gate.works


def test_products_belong_to_the_layer_that_left_them_to_a_later_operator(program: Program):
    kept = attempt(Task(program, Level.FULL, CALL))  # the layer keeps a form, which relu evaluates
    makers = {n.source for n in live_nodes(kept.outputs) if n.work.multiply_adds and n.rate.per_candidate}
    report = make_report(kept)
    assert operator(report, MIXED, "relu").name in makers
    assert operator(report, f"{MIXED}.layer", "linear").candidate.multiply_adds == ITEM * HIDDEN
    assert operator(report, MIXED, "relu").candidate.multiply_adds == 0
    assert report.total().after.multiply_adds == kept.cost.multiply_adds


def test_other_products_belong_to_the_operator_that_makes_them():
    class Pair(nn.Module):
        """A dot product of context and an item tower: the tower's layer has made its own products before."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = Tower(ITEM)

        def forward(self, dense: Tensor, item: Tensor) -> Tensor:
            return (self.tower(item) * dense).sum(1)

    program = capture(Pair().eval(), (torch.randn(7, HIDDEN), torch.randn(7, ITEM)), ["dense"])
    report = make_report(attempt(Task(program, Level.FULL, CALL)))
    layer, relu, *product = report.operators
    assert layer.candidate.multiply_adds == layer.before.multiply_adds == ITEM * HIDDEN
    assert sum(o.candidate.multiply_adds for o in product) == HIDDEN
    assert layer.level is relu.level is None and layer.reason == "reads candidate inputs"


def test_work_of_the_outputs_themselves_has_its_own_line():
    class Passing(nn.Module):
        """Returns a concatenation: hoisted, its blocks are joined only for the caller."""

        def forward(self, dense: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([dense, item], 1), item.sum(1)

    program = capture(Passing().eval(), (torch.randn(7, DENSE), torch.randn(7, ITEM)), ["dense"])
    report = make_report(make_plan(Task(program, Level.LINEAR, CALL)))
    line = report.operators[-1]
    assert (line.name, line.operator, line.candidate.bytes) == ("output", "", 4 * (DENSE + ITEM))
    assert line.reason == "every result has one row per candidate"


# -- levels and reasons


@pytest.mark.parametrize(
    ("module", "name", "level"),
    [
        ("users", "embedding", "lookup"),
        ("user_tower.layer", "linear", "request"),
        ("user_tower", "relu", "request"),
        (f"{MIXED}.layer", "linear", "linear"),
        (MIXED, "relu", None),
        ("", "softmax", None),
    ],
)
def test_the_lowest_level_that_moved_it(linear: Report, module: str, name: str, level: str | None):
    assert operator(linear, module, name).level == level


def test_a_report_names_no_level_above_its_own(program: Program):
    report = make_report(make_plan(Task(program, Level.REQUEST, CALL)))
    assert {o.level for o in report.operators} == {None, "lookup", "request"}
    assert operator(report, f"{MIXED}.layer", "linear").level is None


def test_blocking_operators_are_sorted_and_have_reasons(report: Report):
    blocking = report.blocking()
    work = [o.candidate.multiply_adds for o in blocking]
    assert work == sorted(work, reverse=True) and work[0] > 0
    assert all(o.reason for o in blocking)
    assert {o.name for o in blocking} == {o.name for o in report.operators if o.candidate}


def test_a_rules_own_reason_is_shown(linear: Report, program: Program):
    softmax = operator(linear, "", "softmax")
    told = make_plan(Task(program, Level.LINEAR, CALL)).reasons[softmax.name]
    assert softmax.reason == told != ""


def test_other_reasons(program: Program, linear: Report):
    assert operator(linear, MIXED, "relu").reason == "its result depends on context and candidate"
    expand = make_report(make_plan(Task(program, Level.EXPAND, CALL)))
    assert operator(expand, "user_tower", "relu").reason == "level expand runs it on all rows"
    lower = make_report(dataclasses.replace(make_plan(Task(program, Level.EXPAND, CALL)), asked=Level.FULL))
    assert operator(lower, "user_tower", "relu").reason == "the plan predicted to be fastest runs it on all rows"


# -- as data and as text


def test_a_hoisted_model_has_a_report(program: Program, linear: Report):
    assert HoistedModel(program, make_plan(Task(program, Level.LINEAR, CALL))).report() == linear


def test_to_dict_is_json(report: Report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["workload"] == {"candidates": 1000, "requests": 4, "item_bytes": None}
    assert [o["name"] for o in data["operators"]] == [o.name for o in report.operators]
    assert data["blocking"][0]["name"] == report.blocking()[0].name
    assert data["total"]["after"]["multiply_adds"] == report.total().after.multiply_adds


def test_text_has_every_operator_with_work_and_counts_the_others(report: Report):
    text = str(report)
    lines = text.splitlines()
    shown = [o for o in report.operators if o.works]
    table_rows = lines[5 : 5 + len(shown)]
    assert [row.split()[0] for row in table_rows] == [o.name for o in shown]
    hidden = len(report.operators) - len(shown)
    assert hidden and lines[5 + len(shown)].startswith(f"and {hidden} without work")
    assert f"level {report.level}, planned for 1000 candidates of 4 requests" in lines[0]
    assert report.curves is not None and lines[1].startswith(report.curves.verdict)


def test_it_says_where_nothing_pays(report: Report):
    curves = report.curves
    assert curves is not None
    assert curves.pays_from is not None and curves.verdict.startswith("Predicted to be faster than the original from")
    nothing = dataclasses.replace(report, curves=dataclasses.replace(curves, chosen=curves.original))
    assert "Nothing pays: predicted to be no faster than the original at any number of candidates." in str(nothing)


def test_a_check_of_a_number_out_of_data_is_no_operator():
    """PyTorch adds some of these checks after values are known: such a node has no value at all, not even None."""

    class Places(nn.Module):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (item > 0).nonzero().sum() + user.sum(1) * item[:, 0]

    program = capture(Places().eval(), (torch.randn(8, 2), torch.randn(8, 3)), ["user"], all_rules())
    checks = [node for node in program.graph.nodes if node.target is torch.ops.aten._assert_scalar.default]
    assert checks
    for node in checks:
        node.meta.pop("val")
    names = {vertex.name for vertex in make_report(attempt(Task(program, Level.FULL, CALL))).graph.vertices}
    assert "nonzero" in names and not names & {node.name for node in checks}


def test_text_shortens_long_names_and_says_why(linear: Report):
    text = str(linear)
    assert MIXED not in text and "the_mixed_towe..long_name.layer" not in text
    assert shorten(f"{MIXED}.layer") in text
    first = linear.blocking()[0]
    assert f"{first.name} in {shorten(first.module)}: " in text and first.reason in text


def test_long_names_are_shortened_in_the_middle():
    assert shorten("layers.0") == "layers.0"
    assert shorten("abcdefghijklmnop", 10) == "abcd..mnop"
    assert len(shorten("x" * 100, 31)) == 31


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "."), (7, "7"), (999, "999"), (1000, "1k"), (12345, "12.3k"), (999_999, "1M"), (2_500_000_000, "2.5G")],
)
def test_short_numbers(number: int, text: str):
    assert short(number) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(0, 5, "."), (8, 0, "all"), (3, 2, "1.50x"), (1, 4, "0.25x"), (1000, 4, "250x")],
)
def test_ratios(before: int, after: int, text: str):
    assert ratio(before, after) == text


def test_a_table_is_aligned():
    assert table(["name", "n"], [["a", "10"], ["long name", "2"]], left=1) == [
        "name        n",
        "---------  --",
        "a          10",
        "long name   2",
    ]
