"""Tables read by ids, and positions chosen by an index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, kept
from torch import Tensor

import rankhoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import VocabularyError
from rules.cases import (
    FIELDS,
    IDS,
    ROWS,
    C,
    Call,
    Equal,
    K,
    NearMiss,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
    rates,
)

randn = numbers(1)


def positive(x: Tensor) -> Tensor:
    return (x > 0).long()


def by_domain(x: Tensor, w: Tensor) -> Tensor:
    """A norm of each of three domains, side by side: `[rows, 3, columns]`."""
    return torch.stack([x * w[0] + w[1], x * w[1] + w[2], x * w[2] - w[0]], 1)


def domain(x: Tensor) -> Tensor:
    return x.abs().mul(7).long() % 3


def read_by(place: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """A layer of what is read of norms of both sides, at one place of each row."""

    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return by_domain(both(c, k), w)[torch.arange(len(k)), place(c, k)] @ w.T

    return call


def gathered_by(place: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """The same by places of every column."""

    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return by_domain(both(c, k), w).gather(1, place(c, k)[:, None].expand(-1, 1, C + K))[:, 0] @ w.T

    return call


EQUAL: dict[str, Equal] = {
    "read_by_the_request": (read_by(lambda c, k: domain(c[:, 0])), ROWS, dict(w=randn(3, C + K))),
    "read_from_the_end": (read_by(lambda c, k: -1 - domain(c[:, 0])), ROWS, dict(w=randn(3, C + K))),
    "several_read_by_the_request": (
        lambda c, k, w: by_domain(both(c, k), w)[torch.arange(len(k))[:, None], domain(c[:, :2])] @ w.T,
        ROWS,
        dict(w=randn(3, C + K)),
    ),
    "gathered_by_the_request": (gathered_by(lambda c, k: domain(c[:, :1])), ROWS, dict(w=randn(3, C + K))),
    "read_by_the_candidate": (read_by(lambda c, k: domain(k[:, 0])), ROWS, dict(w=randn(3, C + K))),
    "another_place_of_each_column": (
        gathered_by(lambda c, k: domain(both(c, c)[:, : C + K])),
        ROWS,
        dict(w=randn(3, C + K)),
    ),
    "places_of_either_side": (
        lambda c, k, w: torch.stack([c[:, :4], k], 1)[torch.arange(len(k)), domain(c[:, 0]) % 2] @ w[:, :4].T,
        ROWS,
        dict(w=randn(3, C + K)),
    ),
    "embedding": (lambda c, k, t: F.embedding(torch.cat([c, k], 1), t).flatten(1), IDS, dict(t=randn(9, 3))),
    "offsets_one_table": (
        lambda c, k, t, o: F.embedding(torch.stack([c[:, 0], k[:, 0], c[:, 1]], 1) + o, t).sum(1),
        IDS,
        dict(t=randn(27, 3), o=torch.tensor([0, 9, 18])),
    ),
    "floats_cast_back": (
        lambda c, k, t: F.embedding(torch.cat([c.double(), k.double()], 1)[:, 3:6].long(), t).sum(1),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "table_index": (lambda c, k, t: t[c[:, 0]] * t[k[:, 1]], IDS, dict(t=randn(9, 3))),
    "numbers_of_a_table": (
        lambda c, k, n, t: (
            torch.take(n, torch.cat([c, k], 1) - 9).sum(1, keepdim=True)
            * torch.take(t, k)
            * n.gather(0, c.flatten()).view(-1, 4)
        ),
        IDS,
        dict(n=randn(9), t=randn(3, 5)),
    ),
    "table_selected": (  # rows that are numbers, vectors, and matrices
        lambda c, k, n, t: (
            n.index_select(0, torch.cat([c, k], 1).flatten()).view(len(k), -1).sum(1)
            * t.index_select(0, c[:, 0]).sum(1)
            * t.view(9, 2, 2).index_select(0, k[:, 1]).sum((1, 2))
        ),
        IDS,
        dict(n=randn(9), t=randn(9, 4)),
    ),
    "stacked_tables": (
        lambda c, k, t: t[torch.arange(6), torch.cat([c, k[:, :2]], 1)].flatten(1),
        IDS,
        dict(t=randn(6, 9, 3)),
    ),
    "table_of_pairs": (
        lambda c, k, t: t[c[:, :2], k[:, :1] - 9].sum(1) + t[c[:, 2], c[:, 3]] + t[k[:, 2] - 9, 4],
        IDS,
        dict(t=randn(9, 9, 3)),
    ),
    "one_hot": (lambda c, k: F.one_hot(torch.cat([c, k], 1), 9).double().sum(1), IDS, {}),
    "masked_pooling": (
        lambda c, k, t: (
            (F.embedding(c, t) * (c != 0).unsqueeze(2)).sum(1)
            / (c != 0).sum(1, keepdim=True).clamp(min=1)
            * F.embedding(k[:, 0], t)
        ),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "embedding_bag": (
        lambda c, k, t: F.embedding_bag(c, t, mode="mean") + F.embedding_bag(k, t, mode="sum", padding_idx=0),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "bags_of_places": (
        lambda c, k, t: torch.cat(
            [
                F.embedding_bag(x.view(-1, 2), t, mode=mode, padding_idx=0).view(-1, x.shape[1] // 2, 3)
                for x, mode in ((c, "mean"), (k, "sum"), (torch.cat([c, k, c], 1), "max"))
            ],
            1,
        ),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "one_bag_of_the_candidate": (
        lambda c, k, t: F.embedding_bag(torch.cat([c, k[:, :2]], 1).view(-1, 2), t, mode="mean").view(-1, 9).tanh(),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "bags_of_one_id": (
        lambda c, k, t: (
            F.embedding_bag(torch.cat([c, k], 1).view(-1, 1), t, mode="sum").view(-1, 8, 3)
            * F.embedding_bag(torch.stack([k, c], 2).flatten(), t, torch.arange(0, len(k) * 8, 1)).view(-1, 8, 3)
        ).tanh(),
        IDS,
        dict(t=randn(9, 3)),
    ),
    "bucketize": (
        lambda c, k, e: torch.bucketize(c.double(), e) + torch.bucketize(k.double(), e),
        IDS,
        dict(e=torch.tensor([1.5, 4.5, 7.5], dtype=torch.float64)),
    ),
    "searchsorted": (
        lambda c, k, e: torch.searchsorted(e, both(c, k), right=True) + torch.searchsorted(e, c[:, :1], side="left"),
        ROWS,
        dict(e=torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)),
    ),
    "gather_columns": (
        lambda c, k, i: both(c, k)[:, i] + both(c, k).index_select(1, i).flip(1),
        ROWS,
        dict(i=torch.tensor([9, 0, 3, 3, 7])),
    ),
    "gram_masked": (
        lambda c, k, m, w: F.linear(torch.masked_select(fields(c, k) @ fields(c, k).mT, m).view(-1, 21), w),
        FIELDS,
        dict(m=torch.triu(torch.ones(7, 7), 1).bool(), w=randn(3, 21)),
    ),
    "masked_and_flattened": (
        lambda c, k, m: torch.cat([c[:, :4], k[:, :2]], 1)[:, m].exp()[..., None].expand(-1, -1, 3).flatten(1).sum(1),
        ROWS,
        dict(m=torch.tensor([1, 0, 1, 1, 0, 1]).bool()),
    ),
    "pairs_by_index": (
        lambda c, k, i: (fields(c, k)[:, i[0]] * fields(c, k)[:, i[1]]).sum(2),
        FIELDS,
        dict(i=torch.triu_indices(7, 7, 1)),
    ),
    "rows_of_own": (lambda c, k: both(c, k)[torch.arange(k.shape[0]), (k[:, 0] > 0).long()], ROWS, {}),
    "constant_columns_of_own": (
        lambda c, k, i: c[torch.arange(k.shape[0])[:, None], i] + both(c, k)[torch.arange(k.shape[0])[:, None], i + 3],
        ROWS,
        dict(i=torch.tensor([4, 0, -6])),
    ),
    "several_of_own": (
        lambda c, k: (
            both(c, k)[torch.arange(len(k)).repeat_interleave(3), (c[:, :3].abs() * 9).long().flatten() % 10].view(
                -1, 3
            )
            + both(c, k)[torch.arange(len(k))[:, None].expand(-1, 3), (k[:, :3] > 0).long()]
        ),
        ROWS,
        {},
    ),
    "constant_columns_of_own_by_rows_as_often": (
        lambda c, k, i: (
            both(c, k)[torch.arange(k.shape[0]).view(-1, 1).repeat(1, 3), i]
            + both(c, k)[torch.arange(k.shape[0]).unsqueeze(1).expand(-1, 3), i[:1]]
        ),
        ROWS,
        dict(i=torch.tensor([4, 0, -6])),
    ),
    "all_rows_twice": (
        lambda c, k: both(c, k)[torch.arange(len(k)).repeat(2)].view(2, len(k), -1)[1] * k[:, :1],
        ROWS,
        {},
    ),
    "a_constant_column_of_own": (lambda c, k: both(c, k)[torch.arange(k.shape[0]), 7] * c[:, 0], ROWS, {}),
    "points_of_own": (
        lambda c, k, i: fields(c, k)[torch.arange(k.shape[0])[:, None, None], i[:, None], i % 2].sum(2),
        FIELDS,
        dict(i=torch.tensor([6, 0, 3])),
    ),
    "chosen_columns_of_own": (
        lambda c, k: both(c, k)[torch.arange(k.shape[0])[:, None], (c[:, :3] > 0).long()] * k[:, :3],
        ROWS,
        {},
    ),
    "gather_per_row": (lambda c, k: c.gather(1, (k[:, :2] > 0).long()), ROWS, {}),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "table_of_rows": (
        lambda c, k: F.embedding(positive(k[:, 0]), c),
        "embedding",
        "the table is no weight, but [rows, 6]",
        {},
    ),
    "boundaries_of_rows": (
        lambda c, k: torch.searchsorted(c.sort(1).values, k),
        "searchsorted",
        "the boundaries are no list of weights, but [rows, 6]",
        {},
    ),
    "boundaries_per_column": (
        lambda c, k, e: torch.searchsorted(e, c[:, :4].t().contiguous()).t() + k,
        "searchsorted",
        "the boundaries are no list of weights, but [4, 3]",
        dict(e=randn(4, 3).sort(1).values),
    ),
    "boundaries_by_an_index": (
        lambda c, k, e: torch.searchsorted(e, c[:, :4].contiguous(), sorter=e.argsort()) + k,
        "searchsorted",
        "the boundaries are sorted by an index",
        dict(e=randn(3)),
    ),
    "bags_by_offsets": (
        lambda c, k, t: F.embedding_bag(positive(k).flatten(), t, torch.arange(k.shape[0]) * 2, mode="sum") * c[:, :3],
        "embedding_bag",
        "bags given by offsets may cross rows: [(rows 4)]",
        dict(t=randn(4, 3)),
    ),
    "bags_across_rows": (
        lambda c, k, t: (
            F.embedding_bag(positive(k).flatten(), t, torch.arange(0, 4 * len(k), 8), mode="sum")[:1] + k[:, :3]
        ),
        "embedding_bag",
        "bags given by offsets may cross rows: [(rows 4)]",
        dict(t=randn(4, 3)),
    ),
    "bags_across_sides": (
        lambda c, k, t: F.embedding_bag(
            torch.stack([positive(c)[:, :4], positive(k)], 2).flatten(), t, torch.arange(0, len(k) * 8, 4), mode="sum"
        ).view(-1, 6),
        "embedding_bag",
        "runs of positions are known at one rate each",
        dict(t=randn(9, 3)),
    ),
    "numbers_of_rows": (lambda c, k: c.take(positive(k)), "take", "takes from [rows, 6]", {}),
    "columns_of_a_table": (
        lambda c, k, t: t.gather(0, positive(k)) * c[:, :1],
        "gather",
        "gathers from [3, 4], which is a weight",
        dict(t=randn(3, 4)),
    ),
    "index_of_rows": (
        lambda c, k: c[positive(k[:, 0])],
        "index",
        "axis 0 of [rows, 6] is indexed by a tensor that depends on the inputs",
        {},
    ),
    "mask_by_candidate": (
        lambda c, k: torch.masked_select(c[:, :4] + k, k > 0).sum() + k,
        "masked_select",
        "most places of which depend on the candidate",
        {},
    ),
    "later_axes": (
        lambda c, k, w: w[:, positive(k[:, 0]), positive(k[:, 1])].sum(0, keepdim=True).t() * c,
        "index",
        "axes [1, 2] of [2, 2, 2] are indexed by tensors that depend on the inputs",
        dict(w=randn(2, 2, 2)),
    ),
    "by_a_mask": (
        lambda c, k, w, m: w[positive(k[:, :1]), m].sum(1) * c[:, :1],
        "index",
        "several axes are indexed, one by torch.bool",
        dict(w=randn(2, 3, 2), m=torch.tensor([True, False, True])),
    ),
    "places_of_own_part_by_part": (  # row i reads at places of rows 2 i and 2 i + 1
        lambda c, k: k[torch.arange(len(k)).repeat_interleave(2), positive(k)[:, :2].t().flatten()].view(-1, 2),
        "index",
        "with rows in a later axis",
        {},
    ),
    "row_number_of_a_weight": (
        lambda c, k, w: w[torch.arange(k.shape[0]) % 4] * c[:, :3] + k[:, :1],
        "remainder",
        "the row number",
        dict(w=randn(4, 3)),
    ),
}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("read_by_the_request", 3 * K),
        ("read_from_the_end", 3 * K),
        ("several_read_by_the_request", 2 * 3 * K),
        ("gathered_by_the_request", 3 * K),
        ("another_place_of_each_column", 3 * K),
        # near misses: read as one tensor
        ("read_by_the_candidate", 3 * (C + K)),
        ("places_of_either_side", 3 * 4),
    ],
)
def test_what_the_request_reads_of_both_sides_is_read_side_by_side(name: str, left: int):
    call, (context, candidate), weights = EQUAL[name]
    rows = context[torch.arange(4) % 3], candidate[:4]
    program = capture(Function(call, **weights).eval(), rows, ["context"], all_rules())
    assert sum(n.work.multiply_adds for n in kept(program).plan.nodes if n.rate.per_candidate) == left


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_bags_of_the_context_are_the_requests_beside_those_of_the_candidate(length: int):
    def bags(c: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return F.embedding_bag(torch.cat([c, k], 1).view(-1, length), t, mode="sum").view(len(c), 8 // length, 3)

    assert rates(bags, "embedding_bag", Level.FULL, IDS, t=randn(9, 3)) == {Rate.REQUEST, Rate.ITEM}


@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 3, 2)])
def test_rows_that_the_context_selects_are_the_requests(shape: tuple[int, ...]):
    def selected(c: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return t.index_select(0, c.flatten()).view(len(k), -1).tanh() * k[:, :1]

    assert rates(selected, "index_select", Level.FULL, IDS, t=randn(*shape)) == {Rate.REQUEST}


@pytest.mark.parametrize(
    ("operator", "read"), [("take", lambda t, i: torch.take(t, i)), ("gather", lambda t, i: t.gather(0, i))]
)
def test_numbers_that_the_context_reads_are_the_requests(operator: str, read: Callable[[Tensor, Tensor], Tensor]):
    def numbers(c: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return read(t, c.flatten()).view(len(k), -1).tanh() * k[:, :1]

    assert rates(numbers, operator, Level.FULL, IDS, t=randn(9)) == {Rate.REQUEST}


def test_buckets_of_the_context_are_the_requests():
    def buckets(c: Tensor, k: Tensor, e: Tensor) -> Tensor:
        return torch.searchsorted(e, both(c, k))

    assert rates(buckets, "searchsorted", Level.FULL, ROWS, e=randn(3).sort().values) == {Rate.REQUEST, Rate.ITEM}


def test_a_mask_that_is_made_row_by_row_is_known_now():
    """As transformers spells a causal mask: places repeated for every row are read in the own row."""

    def masked(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        places, rows = torch.arange(4).expand(len(k), -1), torch.arange(len(k))[:, None, None]
        seen = places[rows, w[None, :, None]] >= places[rows, w[None, None, :]]
        return (both(c, k)[:, None, :4] * seen.float()).sum(2)

    assert rates(masked, "ge", Level.REQUEST, ROWS, w=torch.tensor([3, 0, 1, 2])) == {Rate.WEIGHT}


@pytest.mark.parametrize(("context", "candidate", "wrong"), [(9, 0, 9), (0, 9, 9), (-10, -9, -10)])
def test_an_id_of_the_next_table_is_an_error(context: int, candidate: int, wrong: int):
    """Tables that are read as one stay tables: id 9 of the first is not id 0 of the second."""
    call, rows, weights = lambda c, k, t: t[torch.arange(2), torch.cat([c, k], 1)].sum(1), IDS, {"t": randn(2, 9, 3)}
    example = rows[0][:, :1].repeat(2, 1), rows[1][:6, :1]
    hoisted = rankhoist.hoist(Function(call, **weights).eval(), example, context=["context"])
    with pytest.raises(VocabularyError, match=f"has id {wrong} in row 0, expected -9 to 8"):
        hoisted(torch.tensor([[context]]), torch.tensor([[candidate]]))
