"""Rows that a mask chooses, and that are put back where it is true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, hoisted_at, rates_of, repeated
from torch import Tensor

import rankhoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rules.cases import HISTORY, OFFSETS, ROWS, Equal, K, NearMiss, declines, equal_at_every_level, numbers

randn = numbers(29)

W = dict(w=randn(5, 4))
TABLE = dict(w=randn(9, 5))


def seen(c: Tensor) -> Tensor:
    """Some events of a history `[rows, 6, 4]`."""
    return c.sum(2) > 0


def scored(made: Tensor, k: Tensor) -> Tensor:
    return (made[..., :K].flatten(1).sum(1, keepdim=True) * k).tanh()


def assigned(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """`z[m] = f(x[m])`: layers, views, and an axis before the rows that are chosen."""
    own, z = seen(c), c.new_ones(*c.shape[:2], 5)
    y = F.linear(c[own], w).tanh()
    y = F.layer_norm(y.unsqueeze(0), [5]).squeeze(0) + y.softmax(-1) + y.view(-1, 5, 1).expand(-1, 5, 2).amax(2)
    z[own] = y
    largest, places = z[own].max(1, keepdim=True)
    z[own] = largest * places + y.topk(2, 1)[0].sum(1, keepdim=True) + y
    return scored(z, k)


def padded(c: Tensor) -> Tensor:
    """Ids of a history, -1 and others out of range where there is nothing."""
    return torch.where(seen(c), (c[..., 0] * 7).long() % 9, (c[..., 0] * 90).long() - 1000)


def by_ids(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    ids, own, z = padded(c), seen(c), c.new_zeros(*c.shape[:2], 5)
    ids = ids[own]
    z[own] = F.embedding(ids, w) + w[ids].sigmoid() + F.one_hot(ids, 9).to(w.dtype) @ w
    return scored(z, k)


def selected(c: Tensor, k: Tensor) -> Tensor:
    own = c > 0.3
    return scored(c.masked_scatter(own, (c.masked_select(own) * 2).exp()), k)


def scattered(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """By a mask of one column, and by one of all."""
    own, made, z = seen(c).unsqueeze(2), F.linear(c[seen(c)], w), c.new_zeros(c.shape[0], 6, 5)
    return scored(z.masked_scatter(own, made) + z.masked_scatter(own.expand(-1, -1, 5), made.exp()), k)


def flat(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    rows, own = c.reshape(-1, 4), seen(c).reshape(-1)
    z = rows.new_zeros(rows.shape[0], 5)
    z[own] = F.linear(rows[own], w)
    return scored(z.reshape(-1, 6, 5), k)


def of_rows(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Whole rows are chosen, and read along a later axis."""
    own, z = c[:, 0, 0] > 0, c.new_zeros(c.shape[0], 6, 5)
    z[own] = F.linear(c[own].transpose(0, 1).tanh().transpose(0, 1), w)
    return scored(z, k)


def of_the_candidate(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """What was there is the candidate's."""
    z = k.unsqueeze(1) + c
    z[seen(c)] = F.linear(F.linear(c[seen(c)], w).tanh(), w.t())
    return z.flatten(1).sum(1, keepdim=True)


def of_both(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """The candidate is a place behind a history, and is chosen itself or not."""
    x = torch.cat([c, k[:, None, :1].expand(-1, -1, 4)], 1)
    own, z = seen(x), x.new_zeros(*x.shape[:2], 5)
    z[own] = F.linear(x[own], w).tanh() + F.embedding(padded(x)[own].clamp(max=3), w.t())
    return scored(z, k)


def by_the_candidate(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Which events are chosen is the candidate's, but not what comes of them."""
    own, z = c.sum(2) > k[:, :1], c.new_zeros(*c.shape[:2], 5)
    z[own] = F.linear(c[own], w).tanh()
    return scored(z, k)


def twice(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Two selections by one mask meet; of a third, some elements only."""
    own, z = seen(c), c.new_zeros(*c.shape[:2], 5)
    z[own] = F.linear(torch.cat([c[own][:, :2], c.exp()[own][:, 2:]], 1) * c.sum(2)[own].unsqueeze(1), w)
    return scored(z, k)


def counted(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """By the places where a mask, or a number that is not 0, is true."""
    own, made, z = seen(c), F.linear(c, w), c.new_zeros(*c.shape[:2], 5)
    z[own.nonzero(as_tuple=True)] = made[torch.where(own)].exp()
    rows, places = own.nonzero().unbind(1)
    made[rows, places] = 2.0
    at = own.nonzero()
    made[at[:, 0], at[:, 1]] = made[at[:, 0], at[:, -1]].sin()
    first = c.clamp(0)[:, 0, 0].nonzero().squeeze(-1)
    z = z.index_copy(0, first, made.index_select(0, first).exp())
    return scored(z + made, k)


def experts(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Each for the rows of its candidates, without and with a bias."""
    x = torch.cat([k[:, :1], c, k[:, 1:]], 1)
    out = torch.ones(len(x), 2, dtype=x.dtype)
    for i in range(3):
        own = (k[:, 0] * 5).long().remainder(3) == i
        out[own] += F.linear(F.relu(F.linear(x[own], w[i], b if i else None)), v)
    return out


def matrices(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A product with a matrix each."""
    x = torch.cat([k[:, :1], c, k[:, 1:]], 1)
    out = torch.ones(len(x), 8, dtype=x.dtype)
    for i in range(3):
        own = (k[:, 0] * 5).long().remainder(3) == i
        out[own] = torch.mm(x[own], w[i].T) + x[own] @ w[0].T
    return out


def best_experts(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Each for the rows that have it among their two best."""
    x = torch.cat([c, k], 1)
    share, best = F.linear(x, w[:, 0]).softmax(-1).topk(2, -1)
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i in range(3):
        row, place = torch.where(best == i)
        out.index_add_(0, row, F.linear(F.relu(F.linear(x[row], w[i], b)), v) * share[row, place, None])
    return out


def under_each_other(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Masks have the rows last, and are read by their columns the other way round."""
    x = torch.cat([c, k], 1)
    share, best = F.linear(x, w[:, 0]).softmax(-1).topk(2, -1)
    out, masks = torch.zeros(len(x), 2, dtype=x.dtype), F.one_hot(best, 3).permute(2, 1, 0)
    for i in range(3):
        place, row = torch.where(masks[i])
        own = F.linear(F.relu(F.linear(x[None, row].reshape(-1, 10), w[i], b)), v)
        out = out.index_add(0, row, own * share[row, place, None] + F.relu(x[None, row])[0, :, :2])
    return out


def of_pairs_of_places(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A mask whose rows are between its axes."""
    x = torch.cat([c, k], 1)
    mask = (x[None, :, :3] > torch.tensor([-0.5, 0.5]).to(x)[:, None, None]) & (k > 0).any(1)[None, :, None]
    _level, row, place = torch.where(mask)
    return torch.zeros(len(x), 8, dtype=x.dtype).index_add(0, row, F.linear(x[row], w[1]) * x[row, place][:, None])


def of_tokens(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Experts of events and a target, folded with the rows, which lie between places of a mask."""
    x = torch.cat([c, k[:, None, :]], 1).reshape(-1, 4)
    share, best = (x @ w[:, :4, 0].T).softmax(-1).topk(2, -1)
    out, masks = torch.zeros(len(x), 2, dtype=x.dtype), F.one_hot(best, 3).permute(2, 1, 0)
    for i in range(3):
        place, token = torch.where(masks[i])
        own = F.linear(F.relu(F.linear(x[None, token].reshape(-1, 4), w[i, :, :4], b)), v)
        out.index_add_(0, token, own * share[token, place, None])
    return out.reshape(len(k), 7, 2).sum(1)


def between(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """`z[m] = f(x[m])` over `[2, rows, 6, 4]`."""
    x = torch.stack([c, c.sin()])
    own, z = x.sum(3) > 0, x.new_ones(2, *c.shape[:2], 5)
    z[own] = F.linear(x[own], w).softmax(-1)
    return scored(z.movedim(0, 2).flatten(2), k)


def in_layers(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """What is added for a token by one layer of experts is read by the next; masks with the tokens first and last."""
    x = torch.cat([c, k[:, None, :]], 1).reshape(-1, 4)
    for last in (False, True):
        share, best = (x @ w[:, :4, 0].T).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for i in range(3):
            columns = torch.where((best == i).t()) if last else torch.where(best == i)
            place, token = columns if last else columns[::-1]
            own = F.linear(F.relu(F.linear(x[token], w[i, :, :4], b)), v.repeat(2, 1))
            out = out.index_add(0, token, own * share[token, place, None])
        x = x + out
    return x.reshape(len(k), 7, 4).sum(1)


def of_more_columns(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """A mask of some of the columns that are there."""
    x = torch.cat([c, k], 1)
    row, place = torch.where(c[:, :3] > 0)
    return torch.zeros(len(x), 8, dtype=x.dtype).index_add(0, row, F.linear(x[row], w[1]) * x[row, place][:, None])


def weighed(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """How many are chosen is a size, of what weighs them."""
    x = torch.cat([c, k], 1)
    share, best = F.linear(x, w[:, 0]).topk(2, -1)
    row, place = torch.where(best == 1)
    return torch.zeros(len(x), 8, dtype=x.dtype).index_add(0, row, F.linear(x[row], w[1]) * share[row, place][:, None])


EXPERTS = dict(w=randn(3, 8, 10), b=randn(8), v=randn(2, 8))

EQUAL: dict[str, Equal] = {
    "experts": (experts, ROWS, EXPERTS),
    "matrices": (matrices, ROWS, dict(w=EXPERTS["w"])),
    "best_experts": (best_experts, ROWS, EXPERTS),
    "under_each_other": (under_each_other, ROWS, EXPERTS),
    "of_pairs_of_places": (of_pairs_of_places, ROWS, dict(w=EXPERTS["w"])),
    "of_tokens": (of_tokens, HISTORY, EXPERTS),
    "between": (between, HISTORY, W),
    "in_layers": (in_layers, HISTORY, EXPERTS),
    "of_more_columns": (of_more_columns, ROWS, dict(w=EXPERTS["w"])),
    "weighed": (weighed, ROWS, dict(w=EXPERTS["w"])),
    "counted": (counted, HISTORY, W),
    "assigned": (assigned, HISTORY, W),
    "by_ids": (by_ids, HISTORY, TABLE),
    "selected": (selected, HISTORY, {}),
    "scattered": (scattered, HISTORY, W),
    "flat": (flat, HISTORY, W),
    "of_rows": (of_rows, HISTORY, W),
    "of_the_candidate": (of_the_candidate, HISTORY, W),
    "of_both": (of_both, HISTORY, W),
    "by_the_candidate": (by_the_candidate, HISTORY, W),
    "twice": (twice, HISTORY, W),
}


def some(c: Tensor) -> Tensor:
    """Some numbers of `[rows, 6]`."""
    return c > 0


def put(f: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`z[m] = f(x[m], x, m)` over `[rows, 6]`."""

    def call(c: Tensor, k: Tensor) -> Tensor:
        own, z = some(c), torch.zeros_like(c)
        z[own] = f(c[own], c, own)
        return z[:, :K] * k

    return call


def by_another(c: Tensor, k: Tensor) -> Tensor:
    """Another mask with as many places."""
    z = torch.zeros_like(c)
    z[some(c.flip(1))] = c[some(c)].exp()
    return z[:, :K] * k


def transposed(c: Tensor, k: Tensor) -> Tensor:
    """Places of a square mask, their columns in another order."""
    square = c[:, :3].unsqueeze(2) + c[:, 3:].unsqueeze(1) * 2
    rows, first, second = (square > 0).nonzero(as_tuple=True)
    z = torch.zeros_like(square)
    z[rows, second, first] = square[rows, first, second]
    return z.flatten(1)[:, :K] * k


def in_two_orders(c: Tensor, k: Tensor) -> Tensor:
    """The same places, once with the rows between them and once with the rows first."""
    x = torch.stack([c, c.sin()])
    own, z = x > 0, torch.zeros_like(x)
    z[own] = x[own] * x.transpose(0, 1).exp()[own.transpose(0, 1)]
    return z.sum(0)[:, :K] * k


def added(f: Callable[[Tensor, Tensor, Tensor], Tensor], places: int = 6) -> Callable[..., Tensor]:
    """`f(z, row, y)` of rows that a mask `[rows, places]` chooses."""

    def call(c: Tensor, k: Tensor) -> Tensor:
        own = some(c).repeat(1, 3)[:, :places]
        row, place = torch.where(own)
        y = c.repeat(1, 3)[:, :places][row, place].exp()
        return f(torch.zeros_like(c[:, 0]), torch.where(own.flip(0))[0] if places == 5 else row, y)[:, None] * k

    return call


def of_whole_rows(c: Tensor, k: Tensor) -> Tensor:
    """The second of two columns is no row."""
    _, places = some(c).nonzero(as_tuple=True)
    return k * k[:1].expand(6, -1)[places].sum()


def of_candidates(c: Tensor, k: Tensor) -> Tensor:
    z = torch.zeros_like(k)
    z[k > 0] = k[k > 0].exp()
    return z * c[:, :K]


def ids_by_the_candidate(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """Of all places, ids would be the candidate's, that are 0 where it does not choose them."""
    ids, z = (c * 90).long(), c.new_zeros(*c.shape, 5)
    own = (ids >= 0) & (ids < 9) & (c > k[:, :1])
    z[own] = F.embedding(ids[own], w)
    return z.sum(2)[:, :K] * k


def divided(c: Tensor, k: Tensor) -> Tensor:
    """Whole numbers, which are 0 where they are not chosen."""
    n, z = (c.clamp(0) * 9).ceil().long(), torch.zeros_like(c)
    z[n > 0] = (100 // n[n > 0]).to(c.dtype)
    return z[:, :K] * k


def inverted(c: Tensor, k: Tensor) -> Tensor:
    """Matrices that have an inverse where they are chosen."""
    own, z = c[:, 0] > 0, torch.zeros_like(c[:, :1])
    z[own] = torch.linalg.inv(c[own][:, :1].clamp(0).unsqueeze(2)).squeeze(2)
    return z * k


STAYS = "a mask chose the rows of the operand"
NEAR_MISSES: dict[str, NearMiss] = {
    "softmax_of_chosen": (put(lambda y, c, m: y.softmax(0)), "softmax", STAYS, {}),
    "less_their_mean": (put(lambda y, c, m: y - y.mean()), "mean", STAYS, {}),
    "running_sum": (put(lambda y, c, m: y.cumsum(0)), "cumsum", STAYS, {}),
    "the_other_way_round": (put(lambda y, c, m: y.flip(0)), "flip", STAYS, {}),
    "by_another": (by_another, "index_put", "which another one has chosen", {}),
    "of_candidates": (of_candidates, "index", "most places of which depend on the candidate", {}),
    "ids_by_the_candidate": (ids_by_the_candidate, "embedding", STAYS, TABLE),
    "transposed": (transposed, "index_put", "puts elements at places that depend on the inputs", {}),
    "added_by_another": (added(lambda z, i, y: z.index_add(0, i, y), 5), "index_add", "another one has chosen", {}),
    "added_twice": (added(lambda z, i, y: z.index_add(0, i, y, alpha=2)), "index_add", STAYS, {}),
    "added_often": (added(lambda z, i, y: z.index_add(0, i, y), 17), "index_add", "more than 16 places", {}),
    "in_two_orders": (in_two_orders, "mul", STAYS, {}),
    "of_whole_rows": (of_whole_rows, "index", "axes do not follow the rows", {}),
    "divided": (divided, "floor_divide", STAYS, {}),
    "inverted": (inverted, "linalg_inv", STAYS, {}),
    "function_before_a_layer": (
        lambda c, k, w: torch.zeros(len(k), 5, dtype=k.dtype).index_put(
            (k[:, 0] > 0,), F.linear(torch.cat([c, k], 1)[k[:, 0] > 0].tanh(), w)
        ),
        "linear",
        STAYS,
        dict(w=randn(5, 10)),
    ),
    "one_after_the_other": (
        lambda c, k: torch.zeros_like(c).masked_scatter(some(c), c)[:, :K] * k,
        "masked_scatter",
        "puts elements of all rows one after the other",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize(
    "name",
    [
        "assigned",
        "counted",
        "by_ids",
        "selected",
        "scattered",
        "of_rows",
        "of_the_candidate",
        "by_the_candidate",
        "between",
    ],
)
def test_what_is_chosen_of_a_request_is_computed_once(name: str):
    call, inputs, weights = EQUAL[name]
    rows = inputs[0][torch.arange(4) % 3], inputs[1][:4]
    made = hoisted_at(capture(Function(call, **weights).eval(), rows, ["context"], all_rules()), Level.FULL)
    for operator in ("index.", "masked_select", "linear.", "embedding.", "one_hot.", "layer_norm.", "exp."):
        assert rates_of(made, f"aten.{operator}") <= {Rate.WEIGHT, Rate.REQUEST}, operator


def test_experts_in_layers_are_computed_once_for_events():
    call, inputs, weights = EQUAL["in_layers"]
    rows = inputs[0][torch.arange(4) % 3], inputs[1][:4]
    made = hoisted_at(capture(Function(call, **weights).eval(), rows, ["context"], all_rules()), Level.FULL)
    each = sum(n.work.multiply_adds for n in made.plan.nodes if n.rate.per_candidate)
    assert each == 2 * (3 * 4 + 3 * (4 * 8 + 8 * 4))  # of one token of seven


@pytest.mark.parametrize(("name", "places"), [("experts", 1), ("best_experts", 2), ("under_each_other", 2)])
def test_a_layer_of_rows_that_a_candidate_chooses_multiplies_its_columns(name: str, places: int):
    """The context's are multiplied once per request; all places of all experts are counted."""
    call, inputs, weights = EQUAL[name]
    rows = inputs[0][torch.arange(4) % 3], inputs[1][:4]
    made = hoisted_at(capture(Function(call, **weights).eval(), rows, ["context"], all_rules()), Level.LINEAR)
    gate = 3 * K if places > 1 else 0
    left = sum(n.work.multiply_adds for n in made.plan.nodes if n.rate.per_candidate)
    assert left == gate + 3 * places * (8 * K + 2 * 8)


def test_of_the_original_all_places_are_counted():
    call, inputs, weights = EQUAL["assigned"]
    hoisted = rankhoist.hoist(
        Function(call, **weights).eval(), (inputs[0][:1].expand(4, 6, 4), inputs[1][:4]), context=["context"]
    )
    (layer,) = (o for o in hoisted.report().operators if o.operator.startswith("aten.linear."))
    assert layer.before.multiply_adds == 6 * 4 * 5


def test_experts_of_tokens_are_computed_once_for_events():
    call, inputs, weights = EQUAL["of_tokens"]
    rows = inputs[0][torch.arange(4) % 3], inputs[1][:4]
    made = hoisted_at(capture(Function(call, **weights).eval(), rows, ["context"], all_rules()), Level.FULL)
    each = sum(n.work.multiply_adds for n in made.plan.nodes if n.rate.per_candidate)
    assert each == 3 * 4 + 3 * (4 * 8 + 8 * 2)  # the gate and three experts, of one token of seven, for both places


def test_what_is_chosen_of_both_sides_is_computed_as_early_as_it_is_known():
    call, inputs, weights = EQUAL["of_both"]
    rows = inputs[0][torch.arange(4) % 3], inputs[1][:4]
    made = hoisted_at(capture(Function(call, **weights).eval(), rows, ["context"], all_rules()), Level.FULL)
    assert set(rates_of(made, "aten.embedding.")) == {Rate.REQUEST, Rate.ITEM}


def test_gradients_of_what_is_not_chosen_stay_out_while_training():
    """`sqrt` has no gradient at 0, and a choice would multiply it by 0."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
            own, z = context > 0, torch.zeros_like(context)
            z[own] = (context.clamp(0) * self.scale)[own].sqrt()
            return (z * candidate).sum(1)

    model, inputs = Model(), (ROWS[0][:, :K], ROWS[1])
    grouped = rankhoist.grouped(model, (inputs[0][torch.arange(7) % 3], inputs[1]), context=["context"])
    scores = grouped(*inputs, request_offsets=OFFSETS)
    expected = model(repeated(inputs[0], OFFSETS), inputs[1])
    assert_equal(scores, expected)
    (own,) = torch.autograd.grad(scores.sum(), [model.scale])
    (gradient,) = torch.autograd.grad(expected.sum(), [model.scale])
    assert gradient.isfinite().all()
    assert_equal(own, gradient)
