"""Windows along a history, then a target: those that do not reach the target are the request's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, hoisted_at, rates_of
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rules.cases import (
    FIELDS,
    HISTORY,
    ROWS,
    Call,
    Equal,
    N,
    NearMiss,
    behind,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
    rates,
)

randn = numbers(10)


def channels(c: Tensor, k: Tensor) -> Tensor:
    """`[B, D, T + 1]`."""
    return behind(c, k).mT


def image(c: Tensor, k: Tensor) -> Tensor:
    """`[B, 1, T + 1, D]`, as Caser reads it."""
    return behind(c, k)[:, None]


def corner(c: Tensor, k: Tensor) -> Tensor:
    """`[B, 1, T + 1, D]`, the last place of all the candidate's alone."""
    return torch.cat([c, torch.cat([c[:, 0, 1:], k[:, :1]], 1)[:, None]], 1)[:, None]


def of_patches(x: Tensor) -> Tensor:
    """A number of each, for which every place of it counts otherwise."""
    return (x * torch.arange(1, x.shape[1] + 1)[:, None]).amax(1)


EQUAL: dict[str, Equal] = {
    "windows": (lambda c, k: both(c, k).unfold(1, 3, 1).amax(2), ROWS, {}),
    "conv1d": (lambda c, k, w: F.conv1d(both(c, k).unsqueeze(1), w).flatten(1), ROWS, dict(w=randn(2, 1, 3))),
    "max_pool": (lambda c, k: F.max_pool1d(fields(c, k), 2), FIELDS, {}),
    "uneven_parts": (
        lambda c, k, w: (F.adaptive_avg_pool1d(fields(c, k).mT, 5) + F.adaptive_max_pool1d(fields(c, k).mT, 5)) @ w,
        FIELDS,
        dict(w=randn(5, 2)),
    ),
    "window_places": (lambda c, k: behind(c, k).unfold(1, 3, 2).exp().sum((1, 3)), HISTORY, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "pool_over_rows": (
        lambda c, k: k + F.avg_pool1d(c.t()[None], 3, 1, 1)[0].amax(1)[:4],
        "avg_pool1d",
        "pools over the rows",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


# -- behind a history

D = 4
TOKENS = randn(3, 5, D), randn(N, D)  # a history and its target
KERNEL = {"w": randn(3, D, 3), "b": randn(3)}
WINDOWS: dict[str, Call] = {
    "conv1d": lambda c, k, w, b: F.conv1d(channels(c, k), w, b, padding=1),
    "conv1d.same": lambda c, k, w, b: F.conv1d(channels(c, k), w[:, :, :2], b, padding="same"),
    "conv1d.dilated": lambda c, k, w, b: F.conv1d(channels(c, k), w, b, padding=4, dilation=2),
    "conv1d.strided": lambda c, k, w, b: F.conv1d(channels(c, k), w, padding=2, stride=2),
    "conv1d.every_second": lambda c, k, w, b: F.conv1d(channels(c, k), w[:, :, :1], b, stride=2),
    "conv1d.groups": lambda c, k, w, b: F.conv1d(channels(c, k)[:, :3], w[:, :1], b, padding=2, groups=3),
    "conv1d.causal": lambda c, k, w, b: F.conv1d(F.pad(channels(c, k), (2, 0)), w, b),
    "conv2d": lambda c, k, w, b: F.conv2d(image(c, k), w[:, :1, :, None].expand(-1, -1, -1, D), b, padding=(2, 0)),
    "conv2d.padded": lambda c, k, w, b: F.conv2d(image(c, k), w[:, None, :3], b, padding=(3, 1), stride=(1, 2)),
    "avg_pool1d": lambda c, k, w, b: F.avg_pool1d(channels(c, k), 2, 1, padding=1),
    "max_pool1d": lambda c, k, w, b: F.max_pool1d(channels(c, k), 2, 1, padding=1),
    "max_pool2d": lambda c, k, w, b: F.max_pool2d(image(c, k), (2, 1), 1, padding=(1, 0)),
    "avg_pool2d": lambda c, k, w, b: F.avg_pool2d(image(c, k), (2, 3), (1, 2), padding=(1, 1)),
    "adaptive_avg_pool1d": lambda c, k, w, b: F.adaptive_avg_pool1d(channels(c, k), 4),
    "adaptive_max_pool1d": lambda c, k, w, b: F.adaptive_max_pool1d(channels(c, k), 4),
    "adaptive_avg_pool2d": lambda c, k, w, b: F.adaptive_avg_pool2d(image(c, k), (4, 3)),
    "im2col": lambda c, k, w, b: of_patches(F.unfold(image(c, k), (2, 3), padding=(1, 0))),
    "im2col.wide": lambda c, k, w, b: of_patches(F.unfold(image(c, k).mT, (2, 2), stride=(2, 1))),
    "im2col.dilated": lambda c, k, w, b: of_patches(
        F.unfold(channels(c, k)[..., None], (2, 1), dilation=2, padding=(1, 0))
    ),
    "im2col.far": lambda c, k, w, b: of_patches(F.unfold(image(c, k), (5, 2), padding=(4, 1), stride=(1, 2))),
    "im2col.far_and_wide": lambda c, k, w, b: of_patches(F.unfold(image(c, k).mT, (3, 6), padding=(0, 5))),
    "unfold": lambda c, k, w, b: behind(c, F.relu(k)).unfold(1, 1, 1).amax(-1),
    "diff": lambda c, k, w, b: torch.diff(behind(c, k), dim=1, prepend=behind(c, k)[:, :1]),
}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_are_equal(length: int):
    def call(c: Tensor, k: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        return [f(c, k, w, b) for f in WINDOWS.values()]

    check_model(Function(call, **KERNEL).eval(), randn(3, length, D), randn(N, D))


@pytest.mark.parametrize("name", [n for n in WINDOWS if n != "diff"])
def test_most_of_it_is_the_requests(name: str):
    call, operator = WINDOWS[name], name.split(".")[0]
    assert Rate.REQUEST in rates(call, operator, Level.LINEAR, TOKENS, **KERNEL)
    assert Rate.REQUEST not in rates(call, operator, Level.REQUEST, TOKENS, **KERNEL)


def test_places_of_windows_are_no_windows():
    """The target is one place of the last window, whose others are the request's; in many windows they are not told."""
    assert rates(EQUAL["window_places"][0], "exp", Level.LINEAR, HISTORY) == {Rate.REQUEST, Rate.ITEM}
    assert rates(lambda c, k: both(c, k).unfold(1, 5, 1).exp().sum(1), "exp", Level.LINEAR, ROWS) == {
        Rate.REQUEST, Rate.PAIR
    }  # fmt: skip


def test_differences_are_followed_through_their_parts():
    assert rates(WINDOWS["diff"], "sub", Level.LINEAR, TOKENS, **KERNEL) == {Rate.REQUEST, Rate.PAIR}


def test_multiply_adds_of_a_convolution_are_counted_by_window():
    """Width 4 to 3, windows of 3: one window reads the target as its last, one as its middle position."""
    model = Function(WINDOWS["conv1d"], **KERNEL).eval()
    program = capture(model, (randn(4, 50, D), randn(4, D)), ["context"], all_rules())
    cost = hoisted_at(program, Level.LINEAR).plan.cost.multiply_adds
    assert cost == 1000 * 2 * D * 3 + (49 * 3 + 2 + 1) * D * 3  # of the last window, one is a zero


def test_a_layer_of_patches_multiplies_what_they_have_of_the_candidate():
    """Of patches of three places one has the target, as the last; of channels the target is one of three."""

    def history(c: Tensor, k: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (F.unfold(channels(c, k)[..., None], (3, 1)).mT @ w.flatten(1).T).exp()

    def channel(c: Tensor, k: Tensor, w: Tensor, b: Tensor) -> Tensor:
        whole = torch.stack([c[:, 0], c[:, 1], k], 1)[:, :, None]
        return (F.unfold(whole, (1, 3)).mT @ w[:, :3].flatten(1).T).exp()

    rows = randn(4, 50, D), randn(4, D)
    for call, once, each in ((history, 48 * 3 * D + 2 * D, D), (channel, 2 * 2 * 3, 2 * 3)):
        program = capture(Function(call, **KERNEL).eval(), rows, ["context"], all_rules())
        assert hoisted_at(program, Level.LINEAR).plan.cost.multiply_adds == 3 * (1000 * each + once), call


def test_a_layer_behind_uneven_parts_multiplies_those_of_the_candidate():
    """Six places in four parts of two, of which the last reads the target: a sum of both, or the largest of both."""
    rows = TOKENS[0][torch.arange(4) % 3], TOKENS[1][:4]
    for name in ("adaptive_avg_pool1d", "adaptive_max_pool1d"):
        pooled = WINDOWS[name]
        model = Function(lambda c, k, w, b, pooled=pooled: (pooled(c, k, w, b).mT @ w[:, :, 0].T).exp(), **KERNEL)
        program = capture(model.eval(), rows, ["context"], all_rules())
        assert hoisted_at(program, Level.LINEAR).plan.cost.multiply_adds == 1000 * D * 3 + 3 * D * 3


WHOLE: dict[str, tuple[Call, str]] = {  # near misses that another law takes: the whole axis, as one tensor
    "further_than_the_end": (lambda c, k: F.avg_pool1d(channels(c, k), 4, 3, ceil_mode=True), "avg_pool1d"),
    "zeros_that_do_not_count": (
        lambda c, k: F.avg_pool1d(channels(c, k), 2, 1, 1, count_include_pad=False), "avg_pool1d",
    ),
    "parts_of_two_axes": (lambda c, k: F.adaptive_avg_pool2d(corner(c, k), (4, 2)), "adaptive_avg_pool2d"),
    "patches_of_two_axes": (lambda c, k: F.unfold(corner(c, k), (5, 4), padding=(4, 3)), "im2col"),
    "another_divisor": (lambda c, k: F.avg_pool2d(image(c, k), (6, 1), divisor_override=2), "avg_pool2d"),
    "transposed": (lambda c, k: F.conv_transpose1d(channels(c, k), torch.ones(D, 1, 2).double()), "convolution"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_it_is_the_candidates(name: str):
    call, operator = WHOLE[name]
    models = check_model(Function(call).eval(), *TOKENS)
    assert rates_of(models["full"], operator) == {Rate.PAIR}


POOLED: dict[str, tuple[Call, str]] = {  # what it is in the captured graph
    "max_of_all": (lambda c, k: F.max_pool1d(channels(c, k), 6), "amax"),
    "mean_of_all": (lambda c, k: F.avg_pool1d(channels(c, k), 6, 1), "mean"),
    "of_one_axis": (lambda c, k: F.max_pool2d(image(c, k), (6, 1), (3, 1)), "amax"),
    "adaptive_mean": (lambda c, k: F.adaptive_avg_pool1d(channels(c, k), 1), "mean"),
    "adaptive_mean_of_two": (lambda c, k: F.adaptive_avg_pool2d(image(c, k), 1), "mean"),
    "adaptive_max": (lambda c, k: F.adaptive_max_pool1d(channels(c, k), 1), "amax"),
    "even_parts": (lambda c, k: F.adaptive_avg_pool1d(channels(c, k), 3), "avg_pool1d"),
    "even_parts_of_two": (lambda c, k: F.adaptive_avg_pool2d(image(c, k), (2, 1)), "avg_pool2d"),
}


@pytest.mark.parametrize("name", POOLED)
def test_pooling_that_is_another_operator(name: str):
    """Of which a part, or the sum of it, is the request's."""
    call, operator = POOLED[name]
    program = check_model(Function(call).eval(), *TOKENS)["full"].program
    called = {str(n.target).split(".")[1] for n in program.graph.nodes if n.op == "call_function"}
    assert operator in called and not {o for o in called if "pool" in o} - {operator}


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_the_largest_of_places_and_where_it_is(parts: int):
    def call(c: Tensor, k: Tensor) -> list[Tensor]:
        return list(F.adaptive_max_pool1d(channels(c, k), parts, return_indices=True))

    check_model(Function(call).eval(), *TOKENS)
