"""A rule that breaks its promise is a fallback: scores stay right, and the report asks to be told.

One that somebody interrupts has broken nothing: whoever hoists is told.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Function, assert_equal, hoisted_at, kept, reasons, repeated

from rankhoist.capture import capture
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Form
from rankhoist.compiler.algebra.moves import take_dim
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.rules.parts import split
from rankhoist.hoist import hoist_program

OFFSETS = [0, 3, 3, 7]
CONTEXT, CANDIDATE = torch.randn(3, 4), torch.randn(7, 2)
aten = torch.ops.aten


def narrower(call: Call) -> Form:
    """Without the last element of the last axis."""
    value = call.form()
    return take_dim(call.builder, value, 0, np.arange(value.sizes[0] - 1))


def moved(call: Call) -> Form:
    """Rows behind the elements."""
    return replace(call.form(), layout=call.form().layout[::-1])


def double(call: Call) -> Form:
    return replace(call.form(), dtype=torch.float64)


def nothing(call: Call) -> None:
    return None


def raises(call: Call) -> Form:
    raise ZeroDivisionError("division by zero")


def one_wrong_part(call: Call) -> list[Form]:
    first, second = split(call)
    return [first, replace(second, dtype=torch.float16)]


def one_part(call: Call) -> list[Form]:
    return split(call)[:1]


ONE, PARTS = aten.relu.default, aten.split.Tensor
BROKEN = {
    "another_size": (ONE, narrower, "returned [rows, 5] of torch.float32 for [rows, 6] of torch.float32"),
    "rows_elsewhere": (ONE, moved, "returned [6, rows] of torch.float32 for [rows, 6] of torch.float32"),
    "another_dtype": (ONE, double, "returned [rows, 6] of torch.float64 for [rows, 6] of torch.float32"),
    "no_tensor": (ONE, nothing, "returned NoneType for a tensor"),
    "an_error": (ONE, raises, "division by zero"),
    "one_of_several": (PARTS, one_wrong_part, "returned [rows, 3] of torch.float16 for [rows, 3] of torch.float32"),
    "too_few": (PARTS, one_part, "argument 2 is longer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_is_a_fallback_that_asks_to_be_reported(name: str, monkeypatch: pytest.MonkeyPatch):
    operator, rule, problem = BROKEN[name]
    model = Function(lambda c, k: sum(torch.cat([c, k], 1).relu().split(3, 1))).eval()
    example = (CONTEXT[torch.arange(7) % 3], CANDIDATE)
    program = capture(model, example, ["context"])
    (law,) = all_rules()[operator]
    monkeypatch.setitem(all_rules(), operator, (replace(law, rule=rule),))
    for hoisted in (hoisted_at(program, Level.REQUEST), hoisted_at(program, Level.FULL), kept(program)):
        expected = model(repeated(CONTEXT, OFFSETS), CANDIDATE)
        assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS), expected, name)
    (reason,) = reasons(hoisted_at(program, Level.FULL))
    assert f"rule {rule.__name__} failed" in reason and problem in reason and "please report it" in reason


# -- rules that are interrupted


class TimeLimit(Exception):  # noqa: N818 - a user's own
    """What a program around the compiler may raise, wherever it is."""


@pytest.fixture
def alarm() -> Iterator[Callable[[type[Exception]], None]]:
    """Raise an exception, a moment later, in whatever runs then."""
    before = signal.getsignal(signal.SIGVTALRM)

    def start(error: type[Exception]) -> None:
        def handler(*_: Any) -> None:
            raise error

        signal.signal(signal.SIGVTALRM, handler)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)

    yield start
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("error", [TimeLimit, TimeoutError, MemoryError])
def test_who_interrupts_a_rule_is_heard(error: type[Exception], monkeypatch: pytest.MonkeyPatch, alarm):
    def endless(*_: Any) -> Form:
        alarm(error)
        while True:
            pass

    model = Function(lambda c, k: torch.cat([c, k], 1).relu()).eval()
    program = capture(model, (CONTEXT[torch.arange(7) % 3], CANDIDATE), ["context"])
    (law,) = all_rules()[ONE]
    monkeypatch.setitem(all_rules(), ONE, (replace(law, rule=endless),))
    with pytest.raises(error):
        hoist_program(program)
