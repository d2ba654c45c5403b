"""Histories of any length joined to the candidate: what is the context's alone is still computed once per request."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from helpers import reasons
from lengthy import ROWS, WIDTH, Reader, behind, check, encoder, rows_of
from torch import Tensor, nn

import rankhoist
from rankhoist import Workload
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra import spans
from rankhoist.compiler.algebra.forms import Factor, Form, Label, one_block, row_layout, whole
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.decline import Decline
from rankhoist.compiler.graph.lengths import Length, order, quotient
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules

LENGTHS = (0, 1, 2, 17)
Parts = Callable[[], dict[str, nn.Module]]


def joined(h: Tensor, q: Tensor) -> Tensor:
    return torch.cat([h, q[:, None]], 1)


def one_map() -> dict[str, nn.Module]:
    return {"map": nn.Linear(WIDTH, WIDTH)}


def two_maps() -> dict[str, nn.Module]:
    return {"maps": nn.Linear(WIDTH, 2 * WIDTH)}


def one_layer() -> dict[str, nn.Module]:
    return {"layer": encoder()}


def mean(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
    return map(joined(h, q)).relu().mean(1)


def largest(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
    x = map(joined(h, q)).relu()
    return x.amax(1) + x.amin(1)


def in_front(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
    x = map(torch.cat([q[:, None], h], 1)).relu()
    return x[:, 0] * x[:, :1].sum(1)


def without_the_last(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
    x = map(joined(h, q)).relu()
    return x[:, :-1].sum(1) * x[:, -1]


def places(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module, places: nn.Embedding) -> Tensor:
    x = joined(h, q)
    return map(x + places.weight[: x.shape[1]]).relu().mean(1)


def between(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
    return map(torch.cat([h, q[:, None], h.flip(1)], 1)).relu().mean(1)


def one_query(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Module) -> Tensor:
    key, value = maps(joined(h, q)).chunk(2, -1)
    return F.scaled_dot_product_attention(q[:, None], key, value).squeeze(1)


def written_out(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Module) -> Tensor:
    key, value = maps(joined(h, q)).chunk(2, -1)
    return ((key @ key.transpose(1, 2) / 3).softmax(-1) @ value)[:, -1]


def causal(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Module) -> Tensor:
    x = joined(h, q)
    for _ in range(2):
        key, value = maps(x).chunk(2, -1)
        x = x + F.scaled_dot_product_attention(key, key, value, is_causal=True)
    return x[:, -1] + x[:, 1:].sum(1)


def masked(mask: Callable[[int], Tensor]) -> Callable[..., Tensor]:
    """Two layers in which the mask hides later positions."""

    def read(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Module) -> Tensor:
        x = joined(h, q)
        for _ in range(2):
            key, value = maps(x).chunk(2, -1)
            x = x + F.scaled_dot_product_attention(key, key, value, attn_mask=mask(x.shape[1]))
        return x[:, -1]

    return read


def not_above(length: int) -> Tensor:
    return ~torch.ones(length, length, dtype=torch.bool).triu(1)


def filled_where_zero(length: int) -> Tensor:
    zeros, ones = torch.zeros(length, length, dtype=torch.float64), torch.ones(length, length)
    return zeros.masked_fill(ones.tril() == 0, -math.inf)


def of_places(length: int) -> Tensor:
    places = torch.arange(length)
    return places[:, None] >= places


def from_one_on(length: int) -> Tensor:
    places = torch.arange(1, length + 1)
    return (places[None] - places[:, None] < 1) | torch.zeros(1, 1, dtype=torch.bool)


def sees_one_more(length: int) -> Tensor:
    """The last event sees the candidate."""
    return torch.ones(length, length, dtype=torch.bool).tril(1)


def hidden(fill: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Two layers whose scores are filled where the key is later than the query, or padding."""

    def read(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Module) -> Tensor:
        x = joined(h, q)
        padding = torch.cat([ids == 0, torch.zeros(ids.shape[0], 1, dtype=torch.bool)], 1)[:, None]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for _ in range(2):
            key, value = maps(x).chunk(2, -1)
            x = x + fill(key @ key.transpose(1, 2) / 3, later, padding).softmax(-1) @ value
        return x[:, -1]

    return read


def added(low: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A mask of numbers, one for what is later and one for padding."""
    return lambda x, later, padding: (
        x + torch.full(later.shape, low, dtype=x.dtype).triu(1) + (1 - (~padding).to(x)) * low
    )


def padded(h: Tensor, q: Tensor, ids: Tensor, layer: nn.Module) -> Tensor:
    hidden = torch.cat([ids == 0, torch.zeros(ids.shape[0], 1, dtype=torch.bool)], 1)
    return layer(joined(h, q), src_key_padding_mask=hidden)[:, -1]


CASES: dict[str, tuple[Callable[..., Tensor], Parts, float]] = {  # and the share of products left to candidates
    "mean": (mean, one_map, 0.05),
    "largest": (largest, one_map, 0.05),
    "in_front": (in_front, one_map, 0.05),
    "without_the_last": (without_the_last, one_map, 0.05),
    "places": (places, lambda: one_map() | {"places": nn.Embedding(60, WIDTH)}, 0.15),
    "between": (between, one_map, 0.05),
    "one_query": (one_query, two_maps, 0.15),
    "written_out": (written_out, two_maps, 0.05),
    "causal": (causal, two_maps, 0.4),
    "not_above": (masked(not_above), two_maps, 0.15),
    "filled_where_zero": (masked(filled_where_zero), two_maps, 0.15),
    "of_places": (masked(of_places), two_maps, 0.15),
    "from_one_on": (masked(from_one_on), two_maps, 0.15),
    "behind": (behind, one_layer, 0.1),
    "padded": (padded, one_layer, 0.1),
    "later_or_padding": (hidden(lambda x, m, p: x.masked_fill(m | p, -math.inf)), two_maps, 0.2),
    "neither": (hidden(lambda x, m, p: x.masked_fill(~(~m & ~p), -math.inf)), two_maps, 0.2),
    "finite": (hidden(lambda x, m, p: x.masked_fill(m | p, -1e9)), two_maps, 0.2),
    "where": (hidden(lambda x, m, p: torch.where(m | p, torch.finfo(x.dtype).min, x)), two_maps, 0.2),
    "added": (hidden(added(-1e9)), two_maps, 0.2),
    "one_number": (hidden(lambda x, m, p: x + added(-1e9)(x * 0, m, p).clamp(min=-1e9)), two_maps, 0.2),
    "filled_mask": (hidden(lambda x, m, p: x + (-1e9 * m.to(x)).masked_fill(p, -1e9)), two_maps, 0.2),
}


def model(name: str) -> Reader:
    torch.manual_seed(0)
    read, parts, _ = CASES[name]
    return Reader(read, **parts())


def program(name: str) -> Program:
    context, candidate = rows_of(9, ROWS)
    return capture(model(name), context | candidate, list(context), all_rules(), dynamic={"history": 1})


def products(program: Program, level: Level) -> int:
    """Multiply-adds of a candidate."""
    made = attempt(Task(program, level, Workload()))
    return sum(n.work.multiply_adds for n in made.nodes if n.rate is Rate.PAIR)


@pytest.mark.parametrize("name", CASES)
def test_a_history_of_any_length_joined_to_the_candidate(name: str):
    check(model(name), {"history": 1}, LENGTHS, levels=[Level.LINEAR, Level.FULL])
    captured = program(name)
    assert products(captured, Level.FULL) <= CASES[name][2] * products(captured, Level.EXPAND)


@pytest.mark.parametrize("name", ["largest", "causal", "behind"])
def test_gradients_of_a_history_joined_to_the_candidate(name: str):
    context, candidate = rows_of(9, ROWS)
    plain = model(name)
    trained = rankhoist.grouped(plain, context | candidate, context=["history"], dynamic={"history": {1: (1, 60)}})
    assert rankhoist.verify_gradients(trained, plain, trials=1).passed


def test_places_whose_order_depends_on_the_length_are_not_cut():
    def both(h: Tensor, q: Tensor, ids: Tensor, map: nn.Module) -> Tensor:
        return map(joined(h, q) * torch.cat([q[:, None], h], 1)).relu().mean(1)

    torch.manual_seed(0)
    (made,) = check(Reader(both, **one_map()), {"history": 1}, LENGTHS, levels=[Level.FULL])
    assert "whether 1 or s1 comes first depends on how long axes are" in reasons(made)


def test_a_mask_that_lets_the_history_see_the_candidate_hides_nothing():
    torch.manual_seed(0)
    (made,) = check(Reader(masked(sees_one_more), **two_maps()), {"history": 1}, LENGTHS, levels=[Level.FULL])
    assert "positions of the context attend to one that exists per candidate" in reasons(made)


def test_a_finite_fill_that_hides_nothing():
    torch.manual_seed(0)
    for fill in (lambda x, m, p: x.masked_fill(m | p, -100.0), lambda x, m, p: x.masked_fill(m, 1e9), added(-100.0)):
        (made,) = check(Reader(hidden(fill), **two_maps()), {"history": 1}, LENGTHS, levels=[Level.FULL])
        assert made.plans.otherwise is None


def test_quotients_are_whole_for_all_lengths():
    rows, s = sympy.symbols("rows s", integer=True, positive=True)
    for size, times in ((6 * rows, 6), (rows, 1), (2 * rows * s, 2 * s), (rows * s + rows, s + 1), (0 * rows, 0)):
        assert quotient(size, rows) == times
    for size in (rows / 2, rows + 1, s, sympy.Integer(6), rows * sympy.floor(s / 2)):
        assert quotient(size, rows) is None


def test_places_are_ordered_for_all_lengths_or_for_none():
    s, t = sympy.symbols("s t", integer=True, positive=True)
    length, other = Length(s, {s: 9}), Length(t, {t: 4})
    assert order(length, length + 1) == -1 and order(2 * length, length) == 1 and order(0, length) == -1
    assert order(length + other, other + length) == order(3, 3) == 0 and order(3, 4) == -1 and order(s + 1, s) == 1
    for a, b in ((length, 1), (length, other), (2 * length, length + 1)):
        with pytest.raises(Decline, match="depends on how long axes are"):
            order(a, b)


def test_an_axis_is_cut_wherever_it_stands_in_a_factor():
    s = sympy.Symbol("s", integer=True, positive=True)
    length, builder = Length(s, {s: 9}), Builder()
    builder.leaf("input", "history", Rate.REQUEST, (length,), torch.float64)
    matrix = builder.leaf("input", "matrix", Rate.REQUEST, (length + 1, length + 1), torch.float64)
    label = Label(length + 1)
    diagonal = one_block(Factor(matrix, (label, label)), ((label,),))
    form = Form((whole(length + 1),), {(0,): diagonal}, row_layout(1), torch.float64)
    (block,) = spans.taken(builder, form, 0, length, length + 1).blocks.values()
    assert block.factor.node.shape == (1, 1) and set(block.factor.labels) == set(block.labels[0])
