"""A model under study: captured once, hoisted at several levels, each checked against the model before it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.bench.closed_forms import Work
from rankhoist.bench.suite import error
from rankhoist.capture import Program, capture
from rankhoist.hoist import hoist_program

Call = Callable[[], Any]
Shape = tuple[int, ...]
TOLERANCE = 1e-4  # of the largest score, float32


@dataclass(frozen=True)
class Subject:
    """A model of (context `[R, *context]`, candidate `[N, *candidate]`), and its captured program."""

    model: nn.Module
    program: Program
    context: Shape
    candidate: Shape

    @classmethod
    def of(cls, build: Callable[[], nn.Module], context: Shape, candidate: Shape) -> Subject:
        """Weights from a fixed seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build().eval()
        rows = torch.zeros(4, *context), torch.zeros(4, *candidate)
        return cls(model, capture(model, rows, ["context"]), context, candidate)

    def sides(self, n: int) -> tuple[Tensor, Tensor]:
        """One request of n candidates."""
        g = torch.Generator().manual_seed(1)
        return torch.randn(1, *self.context, generator=g), torch.randn(n, *self.candidate, generator=g)

    def original(self, n: int) -> Call:
        """The model on context rows repeated as a view."""
        context, candidate = self.sides(n)
        return partial(self.model, context.expand(n, *self.context), candidate)

    def call(self, hoisted: Callable[[Tensor, Tensor], Any], n: int) -> Call:
        """A whole call, context work included; its scores were compared with the model's."""
        return checked(partial(hoisted, *self.sides(n)), self.original(n))

    def at(self, level: str, n: int) -> HoistedModel:
        """Hoisted for n candidates of one request."""
        return hoist_program(self.program, workload=Workload(n), level=level)


def checked(call: Call, original: Call) -> Call:
    """The call, whose scores were compared with the original's.

    Raises:
        AssertionError: the scores differ, so that nothing may be timed.
    """
    with torch.no_grad():
        off = error(call(), original())
    assert off < TOLERANCE, f"scores differ by {off:.0e} of the largest"
    return call


class PairsOnly:
    """RAD's "FM": the pairs at level `first`, and the layers as trained, which read all pairs of every candidate."""

    def __init__(self, subject: Subject, n: int) -> None:
        alone = copy.deepcopy(subject.model)
        self.top, alone.top = alone.top, nn.Identity()
        self.hoisted = Subject.of(lambda: alone, subject.context, subject.candidate).at("first", n)

    def __call__(self, context: Tensor, candidate: Tensor) -> Tensor:
        scores: Tensor = self.top(self.hoisted(context, candidate))
        return scores


def counted(hoisted: HoistedModel, belongs: Callable[[str], bool] = lambda module: True) -> Work:
    """Multiply-adds in the modules whose path `belongs`."""
    own = [o for o in hoisted.report().operators if belongs(o.module)]
    return Work(sum(o.request.multiply_adds for o in own), sum(o.candidate.multiply_adds for o in own))
