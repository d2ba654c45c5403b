"""Along a history, then a target: windows and scans that do not reach the target are the request's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, hoisted_at, rates_of
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules

D, N = 4, 7
G = torch.Generator().manual_seed(11)
MIXED, EARLY, LATE = {Rate.REQUEST, Rate.PAIR}, {Rate.REQUEST}, {Rate.PAIR}

Call = Callable[..., Tensor | tuple[Tensor, ...]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def behind(c: Tensor, k: Tensor) -> Tensor:
    """History, then target: `[B, T + 1, D]`."""
    return torch.cat([c, k[:, None]], 1)


def channels(c: Tensor, k: Tensor) -> Tensor:
    """`[B, D, T + 1]`."""
    return behind(c, k).mT


def image(c: Tensor, k: Tensor) -> Tensor:
    """`[B, 1, T + 1, D]`, as Caser reads it."""
    return behind(c, k)[:, None]


W = {"w": randn(3, D, 3), "b": randn(3)}
SCANS: dict[str, Call] = {
    "cumsum": lambda c, k: behind(c, k).cumsum(1),
    "cumsum.dtype": lambda c, k: (behind(c, k) * 4).long().cumsum(1, dtype=torch.float64),
    "cumsum.whole": lambda c, k: (behind(c, k) > 0).cumsum(1),
    "cumprod": lambda c, k: behind(c, k).cumprod(1),
    "logcumsumexp": lambda c, k: behind(c, k).logcumsumexp(-2),
    "cummax": lambda c, k: torch.cummax(behind(c, k).mul(2).round(), 1),
    "cummin": lambda c, k: torch.cummin(behind(c, k).mul(2).round(), 1),
    "cumsum.in_the_middle": lambda c, k: torch.cat([c, k[:, None], c], 1).cumsum(1),
    "cumsum.two_targets": lambda c, k: torch.cat([c, k[:, None], k[:, None].exp()], 1).cumsum(1),
}
WINDOWS: dict[str, Call] = {
    "conv1d": lambda c, k, w, b: F.conv1d(channels(c, k), w, b, padding=1),
    "conv1d.same": lambda c, k, w, b: F.conv1d(channels(c, k), w[:, :, :2], b, padding="same"),
    "conv1d.dilated": lambda c, k, w, b: F.conv1d(channels(c, k), w, b, padding=4, dilation=2),
    "conv1d.strided": lambda c, k, w, b: F.conv1d(channels(c, k), w, padding=2, stride=2),
    "conv1d.groups": lambda c, k, w, b: F.conv1d(channels(c, k)[:, :3], w[:, :1], b, padding=2, groups=3),
    "conv1d.causal": lambda c, k, w, b: F.conv1d(F.pad(channels(c, k), (2, 0)), w, b),
    "conv2d": lambda c, k, w, b: F.conv2d(image(c, k), w[:, :1, :, None].expand(-1, -1, -1, D), b, padding=(2, 0)),
    "conv2d.padded": lambda c, k, w, b: F.conv2d(image(c, k), w[:, None, :3], b, padding=(3, 1), stride=(1, 2)),
    "avg_pool1d": lambda c, k, w, b: F.avg_pool1d(channels(c, k), 2, 1, padding=1),
    "max_pool1d": lambda c, k, w, b: F.max_pool1d(channels(c, k), 2, 1, padding=1),
    "max_pool2d": lambda c, k, w, b: F.max_pool2d(image(c, k), (2, 1), 1, padding=(1, 0)),
    "avg_pool2d": lambda c, k, w, b: F.avg_pool2d(image(c, k), (2, 3), (1, 2), padding=(1, 1)),
    "unfold": lambda c, k, w, b: behind(c, F.relu(k)).unfold(1, 1, 1).amax(-1),
    "diff": lambda c, k, w, b: torch.diff(behind(c, k), dim=1, prepend=behind(c, k)[:, :1]),
}


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_scans_are_equal(length):
    check_model(Function(lambda c, k: [f(c, k) for f in SCANS.values()]).eval(), randn(3, length, D), randn(N, D))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_are_equal(length):
    def call(c: Tensor, k: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        return [f(c, k, w, b) for f in WINDOWS.values()]

    check_model(Function(call, **W).eval(), randn(3, length, D), randn(N, D))


def rates(call: Call, operator: str, level: Level, length: int = 5) -> set[Rate]:
    """Of the operator's result, or of the elementwise operators that it was made of."""
    names = W if call in WINDOWS.values() else {}
    model = Function(call, **names).eval()
    program = capture(model, (randn(4, length, D), randn(4, D)), ["context"], all_rules())
    return rates_of(hoisted_at(program, level), operator)


@pytest.mark.parametrize("name", [*SCANS, *(n for n in WINDOWS if n not in ("diff",))])
def test_most_of_it_is_the_requests(name):
    call, operator = {**SCANS, **WINDOWS}[name], name.split(".")[0]
    assert Rate.REQUEST in rates(call, operator, Level.LINEAR)
    assert Rate.REQUEST not in rates(call, operator, Level.REQUEST)


def test_differences_are_followed_through_their_parts():
    assert rates(WINDOWS["diff"], "sub", Level.LINEAR) == MIXED


def test_multiply_adds_of_a_convolution_are_counted_by_window():
    """Width 4 to 3, windows of 3: one window reads the target as its last, one as its middle position."""
    model = Function(WINDOWS["conv1d"], **W).eval()
    program = capture(model, (randn(4, 50, D), randn(4, D)), ["context"], all_rules())
    cost = hoisted_at(program, Level.LINEAR).plan.cost.multiply_adds
    assert cost == 1000 * 2 * D * 3 + (49 * 3 + 2 + 1) * D * 3  # of the last window, one is a zero


NEAR_MISSES: dict[str, tuple[Call, str, set[Rate]]] = {
    "target_in_front": (lambda c, k: torch.cat([k[:, None], c], 1).cumsum(1), "cumsum", LATE),
    "window_of_all": (lambda c, k: F.avg_pool1d(channels(c, k), 6), "avg_pool1d", LATE),
    "every_other_position": (
        lambda c, k: torch.stack([c, k[:, None].expand(-1, 5, -1)], 2).flatten(1, 2).cumsum(1), "cumsum", LATE,
    ),
    "further_than_the_end": (lambda c, k: F.avg_pool1d(channels(c, k), 4, 3, ceil_mode=True), "avg_pool1d", LATE),
    "zeros_that_do_not_count": (
        lambda c, k: F.avg_pool1d(channels(c, k), 2, 1, 1, count_include_pad=False), "avg_pool1d", LATE,
    ),
    "transposed": (lambda c, k: F.conv_transpose1d(channels(c, k), torch.ones(D, 1, 2).double()), "convolution", LATE),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_all_of_it_is_the_candidates(name):
    call, operator, expected = NEAR_MISSES[name]
    models = check_model(Function(call).eval(), randn(3, 5, D), randn(N, D))
    assert rates_of(models["full"], operator) in (expected, set())
