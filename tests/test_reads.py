"""A search in the history of a request: what a candidate chooses is read from it, and nothing of it is repeated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, hoisted_at, rates_of
from torch import Tensor

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules

T, D, K, N = 30, 6, 4, 7
G = torch.Generator().manual_seed(17)
HISTORY, TARGET = torch.randint(50, (3, T), generator=G), torch.randint(50, (N,), generator=G)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


WEIGHTS = {"e": randn(50, D), "w": randn(D, D), "h": randn(D, 9)}
Search = Callable[..., Tensor]


def top(x: Tensor, q: Tensor, count: int = K) -> Tensor:
    """Places of the entries that are most like the candidate: `[B, K]`."""
    return torch.einsum("btd,bd->bt", x, q).topk(count, 1).indices


def gather(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return x.gather(1, top(x, q)[:, :, None].expand(-1, -1, D))


def repeat(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return (x @ w).gather(1, top(x, q).sort(1).values[..., None].repeat(1, 1, D))


def take_along_dim(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return torch.take_along_dim(x, top(x @ w, q)[:, :, None], dim=1)


def fancy_index(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0])[:, None], top(x, q)]


def from_the_end(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]).unsqueeze(1), top(x, q) - T]


def ids(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return F.embedding(c.gather(1, top(x, q)), w.new_ones(50, D).cumsum(0))


def hashes(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Places by signs of projections, as ETA has it."""
    places = torch.einsum("bth,bh->bt", (x @ h).sign(), (q @ h).sign()).topk(K, 1).indices
    return x.gather(1, places[:, :, None].expand(-1, -1, D))


def heads(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Other places for every head, as TWIN has it."""
    parts = (x @ w).view(-1, T, 2, D // 2).transpose(1, 2)
    scores = torch.einsum("bhtd,bhd->bht", parts, q.view(-1, 2, D // 2))
    places = scores.topk(K, 2).indices[..., None].expand(-1, -1, -1, D // 2)
    return parts.gather(2, places).transpose(1, 2).flatten(2)


def part_of_the_width(x: Tensor, q: Tensor, c: Tensor, w: Tensor, h: Tensor) -> Tensor:
    return x.gather(1, top(x, q)[:, :, None].expand(-1, -1, 2))


SEARCHES = [gather, repeat, take_along_dim, fancy_index, from_the_end, ids, hashes, heads, part_of_the_width]


def model(*searches: Search) -> Function:
    """What every search finds."""

    def call(c: Tensor, k: Tensor, e: Tensor, w: Tensor, h: Tensor) -> list[Tensor]:
        x, q = F.embedding(c, e), F.embedding(k, e)
        return [search(x, q, c, w, h) for search in searches]

    return Function(call, **WEIGHTS).eval()


def test_equal_at_every_level():
    check_model(model(*SEARCHES), HISTORY, TARGET)


def test_nothing_of_the_history_is_repeated():
    program = capture(model(*SEARCHES), (HISTORY[torch.arange(N) % 3], TARGET), ["context"], all_rules())
    hoisted = hoisted_at(program, Level.FIRST)
    nodes = hoisted.plan.nodes
    assert sum(n.op is kernels.request_rows for n in nodes) == len(SEARCHES)
    assert max(math.prod(n.shape) for n in nodes if n.rate.per_candidate) < T * D


@pytest.mark.parametrize("offsets", [None, [0, 4, 4, N]])
def test_a_place_that_there_is_not_is_an_error(offsets):
    shifted = Function(lambda c, k: c.gather(1, k)).eval()
    program = capture(shifted, (HISTORY[torch.arange(N) % 3], TARGET[:, None] % T), ["context"], all_rules())
    hoisted = hoisted_at(program, Level.FIRST)
    context = HISTORY[:1] if offsets is None else HISTORY
    assert hoisted(context, TARGET[:, None] % T, request_offsets=offsets).shape == (N, 1)
    for wrong in (T, -T - 1):
        with pytest.raises((IndexError, RuntimeError)):
            hoisted(context, torch.full((N, 1), wrong), request_offsets=offsets)


NEAR_MISSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rows_against_places": lambda c, k: c[torch.arange(c.shape[0]), (k % T)[:, None].expand(-1, 2)[:, 0]],
    "places_of_the_request": lambda c, k: c.gather(1, c[:, :2] % T) + k[:, None],
    "history_of_the_candidate": lambda c, k: (c + k[:, None]).gather(1, (k % T)[:, None]),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_reads_are_of_one_side_alone(name):
    call = NEAR_MISSES[name]
    check_model(Function(call).eval(), HISTORY, TARGET)
    program = capture(Function(call).eval(), (HISTORY[torch.arange(N) % 3], TARGET), ["context"], all_rules())
    hoisted = hoisted_at(program, Level.FIRST)
    assert not any(n.op is kernels.request_rows for n in hoisted.plan.nodes)
    read = "gather" if "gather" in str(program.graph) else "index"
    assert rates_of(hoisted, read) == ({Rate.REQUEST} if name == "places_of_the_request" else {Rate.PAIR})
