"""How long hoisting may take, and what is shown of it."""

from __future__ import annotations

import io
import time

import pytest
import torch
from helpers import assert_equal
from rich.console import Console
from torch import nn

from rankhoist import hoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Task, make_plans, watched
from rankhoist.compiler.plan.watch import watch
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import InputError
from rankhoist.report.progress import late_progress


class Cross(nn.Module):
    """A cross network over context and candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))

    def forward(self, context: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        x = first = torch.cat([context, candidate], 1)
        for layer in self.layers:
            x = first * layer(x) + x
        return x


CONTEXT, CANDIDATE = torch.randn(1, 16, dtype=torch.float64), torch.randn(9, 8, dtype=torch.float64)


def test_a_search_without_time_leaves_a_right_model():
    model = Cross().double().eval()
    hoisted = hoist(model, (CONTEXT.repeat(9, 1), CANDIDATE), context=["context"], seconds=1e-9)
    assert hoisted.plan.level.name == "EXPAND" and hoisted.level == "full"
    assert_equal(hoisted(CONTEXT, CANDIDATE), model(CONTEXT.repeat(9, 1), CANDIDATE), "scores")
    with pytest.raises(InputError, match="given 0 seconds: give it more than 0"):
        hoist(model, (CONTEXT.repeat(9, 1), CANDIDATE), context=["context"], seconds=0)


def test_a_search_tells_what_it_tries():
    heard: list[str] = []
    program = capture(Cross().eval(), (torch.randn(3, 16), torch.randn(3, 8)), ["context"], all_rules())
    with watched(None, heard.append):
        make_plans(Task(program, Level.FULL, Workload()))
    assert any("operators, level linear" in text for text in heard)
    assert any("plan 2; the best so far takes" in text for text in heard)


def test_a_watch_is_over_when_it_is_left():
    with watched(5.0, print):
        assert 0 < watch().left <= 5
        with watched(None, print):
            assert watch().left == float("inf")
        assert watch().left <= 5
    assert watch().left == float("inf")


def shown(after: float, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with late_progress("hoisting", after, console) as told:
        told("plan 3; the best so far takes 0.5 ms by prediction")
        time.sleep(0.15)  # a status is drawn eight times a second
    return console.file.getvalue()


def test_progress_is_shown_late_and_where_somebody_looks():
    assert "hoisting: plan 3; the best so far takes 0.5 ms by prediction" in shown(0.0, terminal=True)
    assert shown(60.0, terminal=True) == ""
    assert shown(0.0, terminal=False) == ""
