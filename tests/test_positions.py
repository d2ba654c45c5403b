"""Two layers of attention over a history and a target, as authors place and bias them: the history is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, hoisted_at, kept, repeated
from torch import Tensor

from rankhoist import HoistedModel
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules

T, D, HEADS, N = 24, 8, 2, 7
G = torch.Generator().manual_seed(3)
HISTORY, TARGET = torch.randint(1, 50, (3, T), generator=G), torch.randint(1, 50, (N,), generator=G)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


WEIGHTS = {"e": randn(50, D), "w": randn(2, D, 3 * D), "b": randn(20, HEADS), "p": randn(50, D)}


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def layers(x: Tensor, w: Tensor, attend: Attention) -> Tensor:
    """`[B, T, D]`, two layers of two heads."""
    for weight in w.unbind():
        parts = (F.layer_norm(x, [D]) @ weight).chunk(3, -1)
        q, k, v = (y.view(*x.shape[:2], HEADS, D // HEADS).transpose(1, 2) for y in parts)
        x = x + attend(q, k, v).transpose(1, 2).reshape(x.shape)
    return x


def seen(mask: Tensor) -> Attention:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask)


def biased(bias: Tensor) -> Attention:
    return lambda q, k, v: torch.softmax(q @ k.mT + bias, -1) @ v


def behind(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k[:, None]], 1)


def in_front(c: Tensor, k: Tensor, e: Tensor, w: Tensor, **_: Tensor) -> Tensor:
    x = F.embedding(torch.cat([k[:, None], c], 1), e)
    mask = causal(T + 1)
    mask[0], mask[1:, 0] = True, False
    return layers(x, w, seen(mask))[:, 0]


def in_the_middle(c: Tensor, k: Tensor, e: Tensor, w: Tensor, **_: Tensor) -> Tensor:
    x = F.embedding(torch.cat([c[:, :9], k[:, None], c[:, 9:]], 1), e)
    mask = torch.ones(T + 1, T + 1, dtype=torch.bool)
    mask[:, 9] = False
    mask[9, 9] = True
    return layers(x, w, seen(mask))[:, 9]


def interleaved(c: Tensor, k: Tensor, e: Tensor, w: Tensor, p: Tensor, **_: Tensor) -> Tensor:
    """Item, action, item, action, ..., target."""
    items, actions = F.embedding(behind(c[:, : T // 2], k), e), F.embedding(c[:, T // 2 :], p)
    x = torch.cat([torch.stack([items[:, :-1], actions], 2).flatten(1, 2), items[:, -1:]], 1)
    return layers(x, w, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))[:, -1]


def several_tokens(c: Tensor, k: Tensor, e: Tensor, w: Tensor, p: Tensor, **_: Tensor) -> Tensor:
    """The candidate's own two see each other."""
    x = torch.cat([F.embedding(c, e), F.embedding(k, e)[:, None], F.embedding(k, p)[:, None]], 1)
    mask = causal(T + 2)
    mask[-2, -1] = True
    return layers(x, w, seen(mask))[:, -2:].mean(1)


def buckets_of_distance(c: Tensor, k: Tensor, e: Tensor, w: Tensor, b: Tensor, **_: Tensor) -> Tensor:
    """A trained bias by the distance of two positions, hidden where a key comes later."""
    distance = (torch.arange(T + 1)[:, None] - torch.arange(T + 1)[None]).clamp(min=0)
    far = 8 + (torch.log(distance.double() / 8) / math.log(4) * 8).long().clamp(0, 7)
    bias = F.embedding(torch.where(distance < 8, distance, far), b).permute(2, 0, 1)
    return layers(F.embedding(behind(c, k), e), w, biased(bias.masked_fill(~causal(T + 1), -torch.inf)[None]))[:, -1]


def buckets_of_time(c: Tensor, k: Tensor, e: Tensor, w: Tensor, b: Tensor, **_: Tensor) -> Tensor:
    """A trained bias by the time between two events, the candidate's among them."""
    ids = behind(c, k)
    apart = (ids[:, :, None] - ids[:, None]).abs().clamp(min=1)
    bias = b[(torch.log(apart.double()) / 0.3).long()].permute(0, 3, 1, 2)
    return layers(F.embedding(ids, e), w, biased(bias.masked_fill(~causal(T + 1), -torch.inf)))[:, -1]


def rotary(c: Tensor, k: Tensor, e: Tensor, w: Tensor, **_: Tensor) -> Tensor:
    angle = torch.outer(torch.arange(T + 1.0, dtype=torch.float64), torch.tensor([1.0, 0.01]).double()).repeat(1, 2)

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)

    return layers(F.embedding(behind(c, k), e), w, attend)[:, -1]


def slopes(c: Tensor, k: Tensor, e: Tensor, w: Tensor, **_: Tensor) -> Tensor:
    distance = (torch.arange(T + 1)[None] - torch.arange(T + 1)[:, None]).double()
    bias = distance * torch.tensor([0.5, 0.25], dtype=torch.float64)[:, None, None]
    hidden = ~causal(T + 1)
    attend = lambda q, k, v: torch.softmax((q @ k.mT + bias).masked_fill(hidden, -torch.inf), -1) @ v  # noqa: E731
    return layers(F.embedding(behind(c, k), e), w, attend)[:, -1]


def everything_is_seen(c: Tensor, k: Tensor, e: Tensor, w: Tensor, **_: Tensor) -> Tensor:
    return layers(F.embedding(behind(c, k), e), w, F.scaled_dot_product_attention)[:, -1]


MODELS = [in_front, in_the_middle, interleaved, several_tokens, buckets_of_distance, buckets_of_time, rotary, slopes]


def captured(call: Callable[..., Tensor | list[Tensor]]) -> Program:
    model = Function(call, **WEIGHTS).eval()
    return capture(model, (HISTORY[torch.arange(N) % 3], TARGET), ["context"], all_rules())


def hoisted(program: Program) -> list[HoistedModel]:
    return [hoisted_at(program, level) for level in (Level.EXPAND, Level.FIRST)]


@pytest.fixture(scope="module")
def program() -> Program:
    """All models at once."""
    return captured(lambda c, k, **weights: [model(c, k, **weights) for model in MODELS])


def test_a_history_is_computed_once(program):
    """If one of the models computed it per candidate, a third of the saving would be left."""
    expand, first = hoisted(program)
    assert expand.plan.cost.multiply_adds / first.plan.cost.multiply_adds > 18


def test_scores_are_equal(program):
    offsets = [0, 3, 3, N]
    rows = repeated(HISTORY, offsets)
    expected = [model(rows, TARGET, **WEIGHTS) for model in MODELS]
    for model in (*hoisted(program), kept(program)):
        assert_equal(model(HISTORY, TARGET, request_offsets=offsets), expected)
        assert_equal(model(HISTORY[:1], TARGET[:3]), [e[:3] for e in expected])


def test_a_candidate_that_is_seen_is_the_reason():
    expand, first = hoisted(captured(everything_is_seen))
    assert expand.plan.cost.multiply_adds / first.plan.cost.multiply_adds < 3
    reasons = [str(o.reason) for o in first.report().blocking()]
    assert any("positions of the context attend to one that exists per candidate" in r for r in reasons)
