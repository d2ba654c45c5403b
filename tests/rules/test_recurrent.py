"""Recurrences over a history, then a target: the state after the history is the request's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import check_model, hoisted_at
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.capture.operators import module_path, operator_name
from rankhoist.compiler.algebra.memo import Outcome
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rules.cases import HISTORY, Equal, N, NearMiss, behind, both, declines, equal_at_every_level, numbers, rates

D, H, T = 4, 3, 3

randn = numbers(14)


EQUAL: dict[str, Equal] = {
    "recurrence": (
        lambda c, k, wi, wh, b: torch.gru(
            behind(c, k), torch.zeros(1, c.shape[0], 3, dtype=c.dtype), [wi, wh, b, b], True, 1, 0.0, False, False, True
        )[0][:, -1],
        HISTORY,
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
    "recurrent_cell": (
        lambda c, k, wi, wh, b: torch.gru_cell(k, c[:, 0, :3].tanh(), wi, wh, b, b),
        HISTORY,
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
    "cell_of_tokens": (
        lambda c, k, wi, wh, b: (
            torch.gru_cell(x := behind(c, k).reshape(-1, 4), x[:, :3].tanh(), wi, wh, b, b).view(-1, 7, 3).sum(1)
        ),
        HISTORY,
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "steps_over_rows": (
        lambda c, k, wi, wh, b: torch.gru(
            both(c, k)[:, None], torch.zeros(1, 1, 3, dtype=c.dtype), [wi, wh, b, b], True, 1, 0.0, False, False, False
        )[0][:, 0],
        "gru",
        "are not on axis 1",
        dict(wi=randn(9, 10), wh=randn(9, 3), b=randn(9)),
    ),
}

test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize(
    ("dropout", "reason"), [("rows", "draws for every row"), ("request", "dropout in training mode")]
)
def test_dropout_between_layers_while_training(dropout, reason):
    layers = Steps(nn.GRU, num_layers=2, dropout=0.5).double().train()
    captured = capture(layers, (randn(6, T, D), randn(6, D)), ["context"], all_rules(), training=True)
    plan = attempt(Task(replace(captured, dropout=dropout), Level.FULL, Workload()))
    assert [told for name, told in plan.reasons.items() if "gru" in name and reason in told]


# -- layers and cells, as authors write them


class Steps(nn.Module):
    """A recurrent layer over history and target: all of its results, rows first."""

    def __init__(self, kind: type[nn.RNNBase], start: str = "zeros", order: str = "last", **how: Any) -> None:
        super().__init__()
        self.steps, self.start, self.order = kind(D, H, batch_first=how.pop("batch_first", True), **how), start, order

    def forward(self, context: Tensor, candidate: Tensor) -> list[Tensor]:
        target = candidate[:, None]
        x = {
            "last": lambda: torch.cat([context, target], 1),
            "first": lambda: torch.cat([target, context], 1),
            "middle": lambda: torch.cat([context, target, target.exp(), context], 1),
            "reversed": lambda: torch.cat([context, target], 1).flip(1),
            "beside": lambda: context * target,
        }[self.order]()
        out, state = self.steps(x if self.steps.batch_first else x.transpose(0, 1), self._states(context, candidate))
        states = state if isinstance(state, tuple) else (state,)
        rows_first = [s.transpose(0, 1) for s in states]
        return [out if self.steps.batch_first else out.transpose(0, 1), *rows_first]

    def _states(self, context: Tensor, candidate: Tensor) -> Any:
        if self.start == "zeros":
            return None
        state = (context[:, 0] if self.start == "context" else candidate)[None, :, :H].contiguous()
        return (state, state.exp()) if isinstance(self.steps, nn.LSTM) else state


class Cells(nn.Module):
    """A loop over a cell."""

    def __init__(self, kind: type[nn.RNNCellBase], **how: Any) -> None:
        super().__init__()
        self.cell = kind(D, H, **how)

    def forward(self, context: Tensor, candidate: Tensor) -> list[Tensor]:
        state = None
        for x in torch.cat([context, candidate[:, None]], 1).unbind(1):
            state = self.cell(x, state)
        return list(state) if isinstance(state, tuple) else [state]


class Gated(nn.Module):
    """Interest evolution: a GRU over the history, and one whose update gate is scaled by attention to the target."""

    def __init__(self) -> None:
        super().__init__()
        self.interest, self.cell = nn.GRU(D, D, batch_first=True), nn.GRUCell(D, D)

    def forward(self, context: Tensor, candidate: Tensor) -> list[Tensor]:
        interest, _ = self.interest(context)
        weights = torch.softmax((interest @ candidate[:, :, None]).squeeze(2), 1)
        state = torch.zeros_like(candidate)
        for x, weight in zip(interest.unbind(1), weights.unbind(1), strict=True):
            state = torch.lerp(state, self.cell(x, state), weight[:, None])
        return [state]


class All(nn.Module):
    """Every model of a table, one after the other."""

    def __init__(self, models: Any) -> None:
        super().__init__()
        self.models = nn.ModuleList(make() for make in models)

    def forward(self, context: Tensor, candidate: Tensor) -> list[Tensor]:
        return [y for model in self.models for y in model(context, candidate)]


LAYERS = {
    "gru": lambda: Steps(nn.GRU),
    "lstm": lambda: Steps(nn.LSTM),
    "rnn": lambda: Steps(nn.RNN),
    "rnn_relu": lambda: Steps(nn.RNN, nonlinearity="relu"),
    "gru_of_two_layers": lambda: Steps(nn.GRU, num_layers=2, bias=False),
    "lstm_of_two_layers": lambda: Steps(nn.LSTM, num_layers=2),
    "lstm_with_projections": lambda: Steps(nn.LSTM, proj_size=2, num_layers=2),
    "lstm_with_projections_alone": lambda: Steps(nn.LSTM, proj_size=2, bias=False),
    "time_first": lambda: Steps(nn.GRU, batch_first=False),
    "state_of_the_context": lambda: Steps(nn.GRU, "context"),
    "states_of_the_context": lambda: Steps(nn.LSTM, "context"),
    "gru_cell": lambda: Cells(nn.GRUCell),
    "lstm_cell": lambda: Cells(nn.LSTMCell, bias=False),
    "rnn_cell": lambda: Cells(nn.RNNCell),
    "rnn_relu_cell": lambda: Cells(nn.RNNCell, nonlinearity="relu"),
}
HALVES = {
    "gru_both_ways": lambda: Steps(nn.GRU, bidirectional=True),
    "lstm_both_ways": lambda: Steps(nn.LSTM, bidirectional=True, num_layers=2),
    "target_first_both_ways": lambda: Steps(nn.GRU, order="first", bidirectional=True),
    "target_in_the_middle": lambda: Steps(nn.GRU, order="middle"),
    "gates_of_attention": Gated,
}
BEGUN = {
    "target_first": (lambda: Steps(nn.GRU, order="first"), "its first step reads the candidate"),
    "reversed": (lambda: Steps(nn.LSTM, order="reversed"), "its first step reads the candidate"),
    "state_of_the_candidate": (lambda: Steps(nn.GRU, "candidate"), "its first state exists per candidate"),
}
WHOLE = {
    "beside": (lambda: Steps(nn.GRU, order="beside"), "all steps are the candidate's"),
}
ALL = LAYERS | HALVES | {name: make for name, (make, _) in (BEGUN | WHOLE).items()}
if torch.__version__ < "2.13":  # exports an LSTM's states with an axis too many: these models are refused
    ALL = {name: make for name, make in ALL.items() if not any(isinstance(m, nn.LSTM) for m in make().modules())}


@pytest.fixture(scope="module")
def levels() -> dict[str, HoistedModel]:
    """All models in one, equal at every level."""
    return check_model(All(ALL.values()).double().eval(), randn(3, T, D), randn(N, D))


def outcomes(hoisted: HoistedModel, name: str) -> dict[str, Outcome]:
    """What became of the recurrent operators of one of the models."""
    prefix, found = f"models.{list(ALL).index(name)}.", hoisted.plan.interpreter.outcomes
    calls = [n for n in hoisted.program.graph.nodes if n.op == "call_function" and n.name in found]
    nodes = [n for n in calls if operator_name(n).split("_")[0] in ("gru", "lstm", "rnn")]
    return {n.name: found[n.name] for n in nodes if module_path(n).startswith(prefix)}


@pytest.mark.parametrize("name", [n for n in ALL if n not in WHOLE])
def test_the_last_of_its_operators_is_taken_apart(name, levels):
    *_, last = outcomes(levels["linear"], name).values()
    assert last.law == "recurrences"
    *_, below = outcomes(levels["request"], name).values()
    assert below.law == "one side alone"


@pytest.mark.parametrize("name", [n for n in BEGUN if n in ALL])
def test_the_report_says_why_all_steps_are_the_candidates(name, levels):
    (only,) = outcomes(levels["linear"], name).values()
    assert BEGUN[name][1] in str(only.reason)


@pytest.mark.parametrize("name", WHOLE)
def test_where_all_steps_are_the_candidates_it_runs_whole(name, levels):
    (only,) = outcomes(levels["linear"], name).values()
    assert only.declined["recurrences"] == WHOLE[name][1]
    assert only.rates == {Rate.PAIR}


def test_a_cell_reads_the_tokens_that_are_folded_with_the_rows_apart():
    call, inputs, weights = EQUAL["cell_of_tokens"]
    assert rates(call, "gru_cell", Level.LINEAR, inputs, **weights) == {Rate.REQUEST, Rate.ITEM}
    assert rates(lambda c, k, wi, wh, b: call(c, c[:, 0], wi, wh, b), "gru_cell", Level.LINEAR, inputs, **weights) == {
        Rate.REQUEST
    }


def test_without_a_history():
    check_model(Steps(nn.GRU).double().eval(), randn(3, 0, D), randn(N, D))


def multiply_adds(model: nn.Module, level: Level) -> int:
    program = capture(model.double().eval(), (randn(4, T, D), randn(4, D)), ["context"], all_rules())
    return hoisted_at(program, level).plan.cost.multiply_adds


def test_the_candidate_multiplies_its_own_input_only():
    inputs, states = 3 * H * D, 3 * H * H  # of one step
    assert multiply_adds(Steps(nn.GRU), Level.EXPAND) == 1000 * (T + 1) * (inputs + states)
    assert multiply_adds(Steps(nn.GRU), Level.LINEAR) == 1000 * inputs + T * (inputs + states) + states


def test_behind_the_candidate_a_history_is_multiplied_once():
    inputs, states = 3 * H * D, 3 * H * H
    found = multiply_adds(Steps(nn.GRU, order="first"), Level.LINEAR)
    assert found == 1000 * (inputs + T * states) + T * inputs  # the first state is a constant
