"""Elements gathered along one axis, by an index that is cut as its values are."""

from __future__ import annotations

import pytest
import torch
from helpers import Function, check_model
from torch import Tensor

from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rules.cases import (
    FIELDS,
    HISTORY,
    Equal,
    NearMiss,
    behind,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
    rates,
)

randn = numbers(29)
PLACES = torch.arange(28).mul(3).view(7, 4) % 5
BOTH_SIDES = {Rate.REQUEST, Rate.ITEM}


def places(x: Tensor, count: int) -> Tensor:
    return x.abs().mul(7).long() % count


def constant_places(c: Tensor, k: Tensor, p: Tensor) -> Tensor:
    """Of every field columns of its own, with columns first, too, and of both of two heads the same."""
    x, rows = fields(c, k), len(k)
    heads = torch.stack([x, x + 1], 1).view(-1, 7, 5)
    own = x.gather(2, p.expand(rows, 7, 4)).exp() + x.mT.gather(1, p.t().expand(rows, 4, 7)).mT.exp()
    alike = x.gather(-1, p[:1].expand(rows, 7, 4)).exp()
    return (own + alike + heads.gather(2, p.expand(2 * rows, 7, 4)).exp().view(-1, 2, 7, 4).sum(1)).sum((1, 2))


def places_of_some(c: Tensor, k: Tensor, p: Tensor) -> Tensor:
    """Of fewer fields than there are: a near miss."""
    return fields(c, k).gather(2, p[:5].expand(len(k), 5, 4)).exp().sum((1, 2))


def in_each_field(c: Tensor, k: Tensor) -> Tensor:
    """Of every field columns that it chooses itself."""
    return fields(c, k).gather(2, places(fields(c, k)[..., :3], 5)).exp().sum(1)


def in_some_fields(c: Tensor, k: Tensor) -> Tensor:
    return fields(c, k).gather(2, places(fields(c, k)[:, :6, :3], 5)).exp().sum(1)


def cut_otherwise(c: Tensor, k: Tensor) -> Tensor:
    """Three fields of the candidate are read by it, two by the request; two of the request by the candidate."""
    return fields(c, k).gather(2, places(torch.cat([c[:, :3], k, c[:, 3:]], 1), 5)).exp().sum(1)


def places_of_both(c: Tensor, k: Tensor) -> Tensor:
    """One column of every field that the request chooses, one that the candidate does."""
    index = torch.stack([places(x[:, :1, 0], 5).expand(-1, 7) for x in (c, k)], 2)
    return fields(c, k).gather(2, index).exp().sum(1)


def beside_a_weight(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    x = torch.cat([w.expand(len(k), -1, -1), fields(c, k)], 1)
    index = torch.cat([places(w, 5).expand(len(k), -1, -1), places(fields(c, k), 5)], 1)
    return x.gather(2, index).exp().sum(1)


def across_fields(c: Tensor, k: Tensor) -> Tensor:
    """Near miss: of every column fields of either side."""
    return fields(c, k).gather(1, places(fields(c, k)[:, :3], 7)).exp().sum(1)


def by_the_candidate(c: Tensor, k: Tensor) -> Tensor:
    """Near miss: every place is read by it."""
    return fields(c, k).gather(2, places(k[:, :1, :3], 5).expand(-1, 7, -1)).exp().sum(1)


def contextual(c: Tensor, k: Tensor, w: Tensor, heads: int = 1) -> Tensor:
    """Positions counted by gates of queries and the keys before them; heads are folded with the rows."""
    x = behind(c, k).unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
    length, scores = x.shape[1], x @ x.mT
    gates = scores.sigmoid() * torch.ones(length, length).tril().bool()
    at = gates.flip(2).cumsum(2).flip(2).clamp(max=w.shape[1] - 1)
    of_places = x @ w
    low, high = (of_places.gather(2, i.long()) for i in (at.floor(), at.ceil()))
    weighed = (scores + torch.lerp(low, high, at - at.floor())).tril().tanh() @ x
    return weighed.unflatten(0, (-1, heads)).sum((1, 2))


def of_heads(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return contextual(c, k, w, heads=2)


def heads_of_the_history(c: Tensor, k: Tensor) -> Tensor:
    """Of each of two heads, folded with the rows, events that the candidate chooses."""
    x = c.unflatten(2, (2, 2)).transpose(1, 2).flatten(0, 1)
    return x.gather(1, places(k, 6).view(-1, 1, 2).expand(-1, 3, -1)).exp().sum(1).view(len(k), -1)


EQUAL: dict[str, Equal] = {
    "constant_places": (constant_places, FIELDS, dict(p=PLACES)),
    "places_of_some": (places_of_some, FIELDS, dict(p=PLACES)),
    "in_each_field": (in_each_field, FIELDS, {}),
    "in_some_fields": (in_some_fields, FIELDS, {}),
    "cut_otherwise": (cut_otherwise, FIELDS, {}),
    "places_of_both": (places_of_both, FIELDS, {}),
    "beside_a_weight": (beside_a_weight, FIELDS, dict(w=randn(2, 5))),
    "across_fields": (across_fields, FIELDS, {}),
    "by_the_candidate": (by_the_candidate, FIELDS, {}),
    "heads_of_the_history": (heads_of_the_history, HISTORY, {}),
    "contextual": (contextual, HISTORY, dict(w=randn(4, 6))),
    "of_heads": (of_heads, HISTORY, dict(w=randn(2, 6))),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "gather_over_rows": (
        lambda c, k: c[:, :4].gather(0, places(k, 2)),
        "gather",
        "works along the row axis: axis 0 of [rows, 4]",
        {},
    ),
    "rows_folded_otherwise": (  # of rows side by side by those of one half and then the other
        lambda c, k: both(c, k).view(-1, 5).gather(1, places(torch.cat([k, k + 1]), 5)).view(len(k), -1),
        "gather",
        "gathers across rows: [(rows 2), 5] by [(2 rows), 4]",
        {},
    ),
    "of_the_first_half": (
        lambda c, k: both(c, k).view(-1, 5).gather(1, places(k, 5)),
        "gather",
        "gathers across rows: [(rows 2), 5] by [rows, 4]",
        {},
    ),
    "from_a_weight": (
        lambda c, k, w: w.gather(0, places(k, 3)) * c[:, :4],
        "gather",
        "gathers from [3, 4], which is a weight",
        dict(w=randn(3, 4)),
    ),
}

test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("constant_places", BOTH_SIDES),
        ("places_of_some", BOTH_SIDES),
        ("in_each_field", BOTH_SIDES),
        ("in_some_fields", BOTH_SIDES),
        ("cut_otherwise", {*BOTH_SIDES, Rate.PAIR}),
        ("places_of_both", {*BOTH_SIDES, Rate.PAIR}),
        ("beside_a_weight", {*BOTH_SIDES, Rate.WEIGHT}),
        ("contextual", {Rate.REQUEST, Rate.PAIR}),
        ("of_heads", {Rate.REQUEST, Rate.PAIR}),
        # near misses: any place may be of either side; the candidate reads all
        ("across_fields", {Rate.PAIR}),
        ("by_the_candidate", {Rate.ITEM, Rate.PAIR}),
    ],
)
def test_what_a_side_reads_of_its_own_is_its_own(name: str, found: set[Rate]):
    call, inputs, weights = EQUAL[name]
    assert rates(call, "gather", Level.FULL, inputs, **weights) == found


@pytest.mark.parametrize("seed", range(3))
def test_places_of_any_shape(seed: int):
    generator = torch.Generator().manual_seed(seed)
    before, own, heads, width, read = (int(torch.randint(1, 5, (), generator=generator)) for _ in range(5))

    def call(c: Tensor, k: Tensor) -> Tensor:
        x = torch.cat([c, k], 1).transpose(1, 2).flatten(0, 1)  # [(rows heads), fields, width]
        axis = 2 - seed % 2  # of one seed that of the fields
        index = places(x, x.shape[axis]).narrow(axis, 0, min(read, x.shape[axis]))
        return x.gather(axis, index).exp().sum(axis).view(len(k), -1)

    sizes = ((3, before), (7, own))
    check_model(Function(call).eval(), *(randn(*n, heads, width) for n in sizes))
