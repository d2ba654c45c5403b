"""Operators with a batch axis: every row by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, rates_of
from torch import Tensor

from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    CANDIDATE,
    CONTEXT,
    HISTORY,
    ROWS,
    Equal,
    K,
    NearMiss,
    behind,
    declines,
    equal_at_every_level,
    numbers,
)

randn = numbers(13)


def put_to_own(c: Tensor, k: Tensor) -> Tensor:
    """Numbers of a history `[rows, 6, 4]` at places of the request's own vector, as authors say whose they are."""
    n, own, at = c.shape[1], torch.arange(len(c)), c[..., 0].argsort(1) * 2
    empty, values = c.new_zeros(len(c), 12), c[..., 1]
    many = empty.index_put((own.repeat_interleave(n), at.flatten()), values.flatten())
    many = many + empty.index_put((own[:, None].expand_as(at), at - 12), values.exp(), accumulate=True)
    many = many + empty.index_put((own.unsqueeze(1).repeat(1, n).flatten(), at.view(-1)), c.new_ones(()))
    one = empty.index_put((own, at[:, 0]), c.new_full((1,), -torch.inf)).softmax(1)
    apart = c.new_zeros(len(c), 2, 12, 3)
    apart[own.view(-1, 1), :, at] = c[:, :, None, 1:].expand(-1, -1, 2, -1)
    return (many + one + apart.sum((1, 3))).view(-1, 3, 4).tanh().sum(1) * k


def put_part_by_part(c: Tensor, k: Tensor) -> Tensor:
    """Rows under rows: the first number of every row, then the second one."""
    own, at = torch.arange(len(k)).repeat(2), torch.arange(2).repeat_interleave(len(k))
    return torch.zeros_like(k).index_put((own, at), c[:, :2].t().flatten()) * k


PLACES = torch.tensor([0, 2, 1, 1, 0, 2])


def scattered(c: Tensor, k: Tensor) -> Tensor:
    """Events of a history `[rows, 6, 4]` put into three groups, once per request; a part of the candidate as well."""
    groups, own = c.new_zeros(c.shape[0], 3, 4), (c.sum(2).abs() * 7).long() % 3
    places = own.unsqueeze(2).expand_as(c)
    once = groups.scatter_add(1, places, c) + groups.scatter_reduce(1, places, c, "amax", include_self=False)
    once = once + groups.index_add(1, PLACES, c) + groups.index_copy(-2, PLACES[:2], c[:, :2])
    once = once + groups.index_fill(1, PLACES[:1], 3.0) + groups.scatter(1, places[:, :2], 2.0)
    return (once * k.unsqueeze(1)).sum(2) + k[:, :3].scatter_add(1, own[:, :2], k[:, 2:])


GROUPS = torch.tensor([0, 2, 1, 1, 0, 2, 3])  # of a history of 6 and a target
WIDE = GROUPS.view(1, -1, 1)


def groups(x: Tensor) -> Tensor:
    """Five groups, of which one is nobody's, with something in the last."""
    return torch.cat([x.new_zeros(x.shape[0], 4, 4), x[:, :1]], 1)


PUT: dict[str, Callable[[Tensor], Tensor]] = {  # a history and its target
    "summed": lambda x: groups(x).index_add(1, GROUPS, x, alpha=2),
    "summed_by_scatter": lambda x: groups(x).scatter_add(1, WIDE.expand_as(x), x),
    "averaged": lambda x: groups(x).scatter_reduce(1, WIDE.expand_as(x), x, "mean", include_self=False),
    "largest": lambda x: groups(x).scatter_reduce(-2, WIDE.expand_as(x), x, "amax"),
    "put": lambda x: groups(x).scatter(1, WIDE.expand_as(x), x),
    "copied": lambda x: groups(x).index_copy(1, torch.tensor([3, 0, 2, 1]), x[:, 3:]),
    "in_the_last_axis": lambda x: groups(x).mT.index_add(2, GROUPS, x.mT).mT,
    "onto_both": lambda x: torch.cat([x[:, 3:], x[:, :1]], 1).index_add(1, GROUPS[:6], x[:, :6]),
}


def of_groups(put: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A layer for every group."""
    return lambda c, k, w: torch.relu(put(behind(c, k)) @ w).flatten(1)


def resampled(c: Tensor, k: Tensor) -> Tensor:
    """A history `[rows, 6, 4]` as a signal and as an image, longer, shorter, in patches and at points that it says."""
    image = c.view(-1, 4, 2, 3)
    long = F.interpolate(c, scale_factor=2.0, mode="linear")[..., :4] + F.interpolate(c, size=4)
    large = F.interpolate(image, size=(3, 2), mode="bilinear") + F.interpolate(image, size=(3, 2), mode="bicubic")
    patches = F.fold(F.unfold(image, 2), (2, 3), 2)
    patches = patches + F.pixel_shuffle(image, 2).sum((1, 2, 3)).view(-1, 1, 1, 1)
    points = F.grid_sample(image, c[:, :4].view(-1, 2, 4, 2).tanh(), align_corners=False)
    return (long.sum(1) + large.sum((2, 3)) + patches.sum((2, 3)) + points.sum((2, 3))) * k


EQUAL: dict[str, Equal] = {
    **{name: (of_groups(put), HISTORY, dict(w=randn(4, 3))) for name, put in PUT.items()},
    "resampled": (lambda c, k: resampled(c, k), HISTORY, {}),
    "gru": (
        lambda c, k, wi, wh, b: (
            torch.gru(
                c, torch.zeros(1, c.shape[0], 3, dtype=c.dtype), [wi, wh, b, b], True, 1, 0.0, False, False, True
            )[0][:, -1]
            * k[:, :3]
        ),
        HISTORY,
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
    "scattered": (lambda c, k: scattered(c, k), HISTORY, {}),
    "put_to_own": (put_to_own, HISTORY, {}),
    "distances": (lambda c, k: torch.cdist(c.view(-1, 3, 2), k.view(-1, 2, 2)).flatten(1), ROWS, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "patches_over_rows": (
        lambda c, k: F.unfold((c[:, :4] * k).view(-1, 2, 2), (1, 2)),
        "im2col",
        "a window over [rows, 2, 2], without a batch axis",
        {},
    ),
    "scattered_over_rows": (
        lambda c, k: k.scatter_add(0, (k * 0).long(), c[:, :K]),
        "scatter_add",
        "works along the row axis",
        {},
    ),
    "scattered_into_the_first_row": (
        lambda c, k: k.scatter_add(1, torch.zeros(1, K, dtype=torch.int64), c[:, :K]),
        "scatter_add",
        "where they stand otherwise",
        {},
    ),
    "put_part_by_part": (put_part_by_part, "index_put", "puts elements at places that depend on the inputs", {}),
    "convolution_over_rows": (
        lambda c, k, w: k + F.conv1d(c[:, :4].t(), w, padding=1).t(),
        "conv1d",
        "a window over [4, rows], without a batch axis",
        dict(w=randn(4, 4, 3)),
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize("call, operators", [
    (scattered, ["scatter_reduce", "index_add", "index_copy", "index_fill"]), (put_to_own, ["index_put"]),
])  # fmt: skip
def test_what_is_put_into_groups_of_a_request_is_put_once(call: Callable[..., Tensor], operators: list[str]):
    full = check_model(Function(call).eval(), *HISTORY)["full"]
    for operator in operators:
        assert rates_of(full, operator) <= {Rate.REQUEST, Rate.WEIGHT}, operator


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {  # near misses that another law takes: the operator as it is
    "put_by_ids": lambda x: groups(x).scatter_add(1, (x > 0).long(), x),
    "put_elsewhere_in_each_column": lambda x: groups(x).scatter_add(
        1, torch.arange(28).view(1, 7, 4).expand_as(x) % 4, x
    ),
    "put_to_all_places": lambda x: x[:, :1].index_add(1, GROUPS * 0, x),
    "put_in_part": lambda x: groups(x).scatter(1, WIDE[:, :3].expand(x.shape[0], -1, 4), x),
    "filled": lambda x: torch.cat([x, x[:, :1]], 1).index_fill(1, GROUPS[:3], 2.0),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_put_otherwise_is_put_as_it_is(name: str):
    full = check_model(Function(of_groups(WHOLE[name]), w=randn(4, 3)).eval(), *HISTORY)["kept"]
    outcomes = full.plan.interpreter.outcomes
    laws = [o.law for node, o in outcomes.items() if node.startswith(("scatter", "index_"))]
    assert laws == ["one side alone"]


@pytest.mark.parametrize("name", PUT)
def test_groups_that_the_target_is_not_put_to_are_the_requests(name: str):
    models = check_model(Function(of_groups(PUT[name]), w=randn(4, 3)).eval(), *HISTORY)
    workload = models["first"].plan.interpreter.workload
    for level in ("linear", "first", "full"):
        assert models[level].plan.cost.multiply_adds < 1.5 * workload.candidates * 4 * 3, level
    assert models["request"].plan.cost.multiply_adds >= 5 * workload.candidates * 4 * 3


def test_a_history_is_resampled_once():
    full = check_model(Function(resampled).eval(), *HISTORY)["full"]
    scaled = ("upsample_linear1d", "upsample_nearest1d", "upsample_bilinear2d", "upsample_bicubic2d")
    for operator in (*scaled, "im2col", "col2im", "pixel_shuffle", "grid_sampler_2d"):
        assert rates_of(full, operator) <= {Rate.REQUEST}, operator


LEARNED = {
    "layer_norm": lambda x: F.layer_norm(x, [K]),
    "softmax_over_tokens": lambda x: x.softmax(1),
    "running_sum": lambda x: x.cumsum(1),
    "largest": lambda x: x.amax(1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "order": lambda x: x.sort(1)[0],
}


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
def test_learned_tokens_have_a_row_like_everything(name: str, folded: bool):
    """Weights repeated for every row: an operator that runs once for them still counts axes from the rows."""

    def call(c: Tensor, k: Tensor, token: Tensor) -> Tensor:
        tokens = token.unsqueeze(0).unsqueeze(1) if folded else token.unsqueeze(0)
        tokens = tokens.expand(k.shape[0], *tokens.shape[1:]).reshape(k.shape[0], 3, K)
        return ((c[:, :K] * k).unsqueeze(1) + LEARNED[name](tokens)).relu().sum(2)

    check_model(Function(call, token=randn(3, K)).eval(), CONTEXT, CANDIDATE)
