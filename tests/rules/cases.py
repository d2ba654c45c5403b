"""What the tests of all families share: inputs, how they are put together, and the two tests of their cases.

A family's file holds two tables. `EQUAL` has functions of (context, candidate, *weights), the inputs that they are
given, and the weights; `NEAR_MISSES` has functions of `ROWS` that are one condition away from a law, the operator that
declines, its reason, and the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import Function, assert_equal, check_model, hoisted_at, kept, rates_of, reasons, repeated
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules

N, C, K = 7, 6, 4  # candidates; widths of context and candidate
OFFSETS = [0, 3, 3, N]

Call = Callable[..., Any]
Inputs = tuple[Tensor, Tensor]  # context, candidate
Equal = tuple[Call, Inputs, Mapping[str, Tensor]]
NearMiss = tuple[Call, str, str | tuple[str, ...], Mapping[str, Tensor]]


def numbers(seed: int) -> Callable[..., Tensor]:
    """A `randn` in float64. A file has its own, so that its numbers do not depend on which other files are read."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


_randn, _ids = numbers(0), torch.Generator().manual_seed(0)

ROWS = CONTEXT, CANDIDATE = _randn(3, C), _randn(N, K)
FIELDS = _randn(3, 4, 5), _randn(N, 3, 5)  # `[rows, fields, width]`
HISTORY = _randn(3, 6, 4), _randn(N, 4)  # `[rows, length, width]` and a target
IDS = torch.randint(0, 9, (3, 4), generator=_ids), torch.randint(0, 9, (N, 4), generator=_ids)
PAIR = _randn(3, K), _randn(N, K)  # of one width, to be stacked
W = _randn(5, C + K)


# -- both sides in one tensor


def both(c: Tensor, k: Tensor) -> Tensor:
    """Context, then candidate."""
    return torch.cat([c, k], 1)


def interleaved(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c[:, :2], k[:, :1], c[:, 2:], k[:, 1:]], 1)


def fields(c: Tensor, k: Tensor) -> Tensor:
    """Those of the candidate in the middle."""
    return torch.cat([c[:, :2], k, c[:, 2:]], 1)


def behind(c: Tensor, k: Tensor) -> Tensor:
    """History, then target: `[B, T + 1, D]`."""
    return torch.cat([c, k[:, None]], 1)


# -- the two tests of a family


def equal_at_every_level(cases: Mapping[str, Equal]) -> Callable[[str], None]:
    """A test: in float64, for one row, many, several requests and none; no level does more than the one below it."""

    @pytest.mark.parametrize("name", cases)
    def test(name: str) -> None:
        call, inputs, weights = cases[name]
        models = check_model(Function(call, **weights).eval(), *inputs)
        costs = {k: m.plan.cost.multiply_adds for k, m in models.items() if k not in ("full", "kept")}
        order = list(costs.values())
        assert order == sorted(order, reverse=True), f"multiply-adds rise with the level: {costs}"

    return test


def declines(cases: Mapping[str, NearMiss]) -> Callable[[str], None]:
    """A test: the operator runs over all rows, is equal, and says why, by one of the reasons where laws differ."""

    @pytest.mark.parametrize("name", cases)
    def test(name: str) -> None:
        call, operator, reason, weights = cases[name]
        model = Function(call, **weights).eval()
        program = capture(model, (CONTEXT[torch.arange(8) % 3], CANDIDATE[torch.arange(8) % N]), ["context"])
        named = {n.name for n in program.graph.nodes if str(n.target).startswith(f"aten.{operator}.")}
        told = (reason,) if isinstance(reason, str) else reason
        expected = model(repeated(CONTEXT, OFFSETS), CANDIDATE)
        for hoisted in (hoisted_at(program, Level.REQUEST), kept(program), hoisted_at(program, Level.FULL)):
            assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS), expected)
            why = hoisted.plan.reasons
            declined = [name for name in named if any(text in why.get(name, "") for text in told)]
            assert declined, why
            outcomes = hoisted.plan.interpreter.outcomes
            assert [name for name in declined if Rate.REQUEST in outcomes[name].rates] == []
            assert not [r for r in reasons(hoisted) if "please report" in r], "a rule broke"

    return test


# -- how often


def rates(call: Call, operator: str, level: Level, inputs: Inputs, **weights: Tensor) -> set[Rate]:
    """Those of the operator's results at a level."""
    context, candidate = inputs
    rows = (context[torch.arange(4) % len(context)], candidate[:4])
    program = capture(Function(call, **weights).eval(), rows, ["context"], all_rules())
    return rates_of(hoisted_at(program, level), operator)
