"""Softmax and attention, by blocks and whole, under masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, hoisted_at, repeated
from torch import Tensor

from rankhoist import HoistedModel
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import operators_of
from rankhoist.compiler.rules import all_rules
from rules.cases import (
    FIELDS,
    HISTORY,
    PAIR,
    ROWS,
    Equal,
    K,
    N,
    NearMiss,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
)

randn = numbers(7)


def seen(c: Tensor) -> Tensor:
    """Which entries of a history are seen: none at all of some histories."""
    return ((c[:, :, 0] > 0) & (c[:, :1, 1] > 0)).unsqueeze(1)


def heads(*tensors: Tensor) -> list[Tensor]:
    """`[rows, tokens, width]` as two heads of half the width."""
    return [torch.stack([x[:, :, ::2], x[:, :, -((x.shape[2] + 1) // 2) :]], 1) for x in tensors]


def shared(c: Tensor, k: Tensor, **how: bool) -> Tensor:
    """Attention of four heads of queries to two of a history and of a target behind it."""
    x = torch.cat([c, k[:, None]], 1)
    q, kv = x.unflatten(2, (4, 1)).transpose(1, 2), x.unflatten(2, (2, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, kv[..., :1], kv, enable_gqa=True, **how).sum((1, 2))


def repeated_heads(c: Tensor, k: Tensor) -> Tensor:
    """The same by hand, under a causal mask."""
    x = torch.cat([c, k[:, None]], 1)
    q, kv = x.unflatten(2, (4, 1)).transpose(1, 2), x.unflatten(2, (2, 2)).transpose(1, 2).repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, kv[..., :1], kv, is_causal=True).sum((1, 2))


EQUAL: dict[str, Equal] = {
    "softmax": (lambda c, k: both(c, k).softmax(-1), ROWS, {}),
    "softmax_of_fewer_digits": (lambda c, k: both(c, k).float().softmax(-1, torch.float64), ROWS, {}),
    "softmax_of_whole_numbers": (lambda c, k: both(c, k).round().long().softmax(-1, torch.float64), ROWS, {}),
    "softmax_halves": (lambda c, k: torch.stack([c[:, :4], k], 1).softmax(-1), ROWS, {}),
    "self_attention": (
        lambda c, k, w: (lambda q: torch.softmax(q @ q.mT / 2, -1) @ q)(fields(c, k) @ w).mean(1),
        FIELDS,
        dict(w=randn(5, 5)),
    ),
    "sdpa": (
        lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c.unsqueeze(1), c.unsqueeze(1)).squeeze(1),
        FIELDS,
        {},
    ),
    "queries_of_candidates": (
        lambda c, k: F.scaled_dot_product_attention(*heads(k, c, c[:, :, :3]), scale=0.7).transpose(1, 2).flatten(2),
        (randn(3, 6, 4), randn(N, 2, 4)),
        {},
    ),
    "dot_attention": (
        lambda c, k: (torch.softmax((c @ k.unsqueeze(2)).squeeze(2), 1).unsqueeze(1) @ c).squeeze(1),
        HISTORY,
        {},
    ),
    "masked_attention": (
        lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c, c, seen(c)).squeeze(1),
        HISTORY,
        {},
    ),
    "masked_by_candidate": (
        lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c, c, seen(c) & (k[:, :1, None] > 0)).squeeze(1),
        HISTORY,
        {},
    ),
    "float_mask": (
        lambda c, k: F.scaled_dot_product_attention(
            k.unsqueeze(1), c, c, torch.where(seen(c), c[:, None, :, 2], float("-inf"))
        ).squeeze(1),
        HISTORY,
        {},
    ),
    "masked_history_and_target": (
        lambda c, k: (lambda x: F.scaled_dot_product_attention(x, x, x, seen(x) & (x[:, :, :1] > 0)))(
            torch.cat([c, k.unsqueeze(1)], 1)
        ).sum(1),
        HISTORY,
        {},
    ),
    "causal_fill": (
        lambda c, k: (lambda x: (x @ x.mT).masked_fill(torch.ones(7, 7).triu(1) > 0, -torch.inf).softmax(-1) @ x)(
            torch.cat([c, k[:, None]], 1)
        )[:, 2:],
        HISTORY,
        {},
    ),
    "causal_product": (
        lambda c, k: (lambda x: (x @ x.mT).sigmoid() * torch.ones(7, 7, dtype=x.dtype).tril() @ x)(
            torch.cat([c, k[:, None]], 1)
        ).sum(1),
        HISTORY,
        {},
    ),
    "causal_attention": (
        lambda c, k: (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))(
            torch.cat([c, k[:, None]], 1)
        ).mean(1),
        HISTORY,
        {},
    ),
    "shared_heads": (shared, HISTORY, {}),
    "causal_shared_heads": (lambda c, k: shared(c, k, is_causal=True), HISTORY, {}),
    "stacked_attention": (
        lambda c, k: torch.mul(*F.scaled_dot_product_attention(*[torch.cat([c, k]).view(-1, 2, 2)] * 3).chunk(2)),
        PAIR,
        {},
    ),
    "stacked_outside": (
        lambda c, k: (
            F.scaled_dot_product_attention(*[(c + 0 * c).view(-1, 2, 2).transpose(0, 1).reshape(-1, 1, 2)] * 3)
            .view(2, -1, 2)
            .transpose(0, 1)
            .reshape(-1, K)
            * k
        ),
        PAIR,
        {},
    ),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "softmax_over_rows": (lambda c, k: both(c, k).softmax(0), "softmax", "row axis: axis 0 of [rows, 10]", {}),
    "stacked_softmax": (
        lambda c, k: torch.cat([c[:, :4], k]).softmax(0)[: k.shape[0]],
        "softmax",
        "row axis: axis 0 of [(2 rows), 4]",
        {},
    ),
    "attention_over_rows": (
        lambda c, k: F.scaled_dot_product_attention(k[None], c[None, :, :4], c[None, :, :4])[0],
        "scaled_dot_product_attention",
        ("every row meets every other row: [1, rows, 1, 4], [1, 1, rows, 4]", "attends over the rows"),
        {},
    ),
    "learned_queries_over_rows": (
        lambda c, k, w: F.scaled_dot_product_attention(w[None], k[None], k[None])[0].sum(0) + c[:, :4],
        "scaled_dot_product_attention",
        ("works along the row axis: axis 2 of [1, 2, rows]", "attends over the rows"),
        dict(w=randn(2, 4)),
    ),
}


if not torch.__version__.startswith("2.11"):  # there, of no rows, PyTorch divides by the number of heads
    EQUAL["heads_are_rows"] = (
        lambda c, k: F.scaled_dot_product_attention(k[:, None], c[:, None, :4], k[:, None], enable_gqa=True)[:, 0],
        ROWS,
        {},
    )

test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_heads_that_are_shared_cost_what_repeated_ones_do():
    by_hand, own = (
        hoisted_at(capture(Function(call).eval(), (HISTORY[0], HISTORY[1][:3]), ["context"], all_rules()), Level.FULL)
        for call in (repeated_heads, lambda c, k: shared(c, k, is_causal=True))
    )
    assert own.plan.cost.multiply_adds == by_hand.plan.cost.multiply_adds


def check_one_operator(call: Callable[..., Tensor], op: Callable[..., Tensor], expected: bool) -> None:
    """Attention of queries `[N, 2, 4]` to a request's `[R, 6, 4]` is equal, and is it `op` where no form is kept?"""
    context, candidate = randn(3, 6, 4), randn(N, 2, 4)
    model = Function(lambda c, k: call(k, c)).eval()
    program = capture(model, (context[[0] * N], candidate), ["context"], all_rules())
    whole = attempt(Task(program, Level.FULL, Workload()), operators_of(program))
    parts = attempt(Task(program, Level.FULL, Workload()))
    assert [op in {n.op for n in plan.nodes} for plan in (whole, parts)] == [expected, False]
    hoisted = HoistedModel(program, whole)
    for offsets in ([0, 3, 3, N], [0, 0, N, N]):
        assert_equal(hoisted(context, candidate, request_offsets=offsets), model(repeated(context, offsets), candidate))
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(N, -1, -1), candidate))
    assert hoisted(context[:1], candidate[:0]).shape[0] == 0


@pytest.mark.parametrize(
    ("call", "of_request"),
    [
        (lambda q, k: F.scaled_dot_product_attention(q[:, None], k[:, None], k[:, None]), True),
        (lambda q, k: F.scaled_dot_product_attention(*heads(q, k, k[:, :, :3]), scale=0.3), True),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k), True),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), False),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k, seen(k)), False),
        (lambda q, k: F.scaled_dot_product_attention(torch.cat([q, k], 1), k, k), False),
        (lambda q, k: F.scaled_dot_product_attention(q, torch.cat([q, k], 1), torch.cat([k, q], 1)), False),
        (lambda q, k: F.scaled_dot_product_attention(k, q, q), False),
    ],
    ids=["one head", "heads", "no heads", "causal", "masked", "queries of both", "keys of both", "keys of candidates"],
)
def test_queries_of_a_request_stand_side_by_side(call, of_request: bool):
    """Where no form is asked for, and nothing but the queries is the candidate's."""
    check_one_operator(call, kernels.request_attention, of_request)


def of_both(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """What a candidate has behind what its request has."""
    return [q, torch.cat([k, q], 1), torch.cat([v, 2 * q], 1)]


@pytest.mark.parametrize(
    ("call", "merged"),
    [
        (lambda q, k: F.scaled_dot_product_attention(*of_both(q, k, k * k)), True),
        (lambda q, k: F.scaled_dot_product_attention(*(x[:, None] for x in of_both(q, k, k)), scale=0.3), True),
        (lambda q, k: F.scaled_dot_product_attention(*of_both(q, k, k)[:2], torch.cat([k, k[:, :2]], 1)), False),
        (lambda q, k: F.scaled_dot_product_attention(*heads(*[torch.cat([q, k, q], 1)] * 3)), True),
        (lambda q, k: F.scaled_dot_product_attention(*[torch.cat([k, q[:, 1:]], 1)] * 3, is_causal=True), True),
        (lambda q, k: F.scaled_dot_product_attention(*[torch.cat([k, q], 1)] * 3, is_causal=True), False),
        (lambda q, k: F.scaled_dot_product_attention(*of_both(q, k, k), torch.ones(2, 8).tril() > 0), False),
        (lambda q, k: F.scaled_dot_product_attention(k, *of_both(q, k, k)[1:]), False),
        (lambda q, k: F.scaled_dot_product_attention(q, torch.cat([q, k], 1), torch.cat([k, q], 1)), False),
    ],
    ids=[
        "no heads", "one head", "values of the request alone", "both on either side", "the last one sees all",
        "one of two does not", "masked", "queries of the request", "keys and values in another order",
    ],
)  # fmt: skip
def test_keys_of_the_request_and_of_a_row_are_one_softmax(call, merged: bool):
    """Where no form is asked for, and keys and values are cut alike; queries of the request are taken by parts."""
    check_one_operator(call, kernels.merged_attention, merged)


def test_softmax_of_blocks_moves_to_a_shorter_dtype():
    """What stands for the peak of a block that is fully masked is the lowest number of the dtype, whichever it is."""
    call, (context, candidate), _ = EQUAL["causal_fill"]
    model = Function(call).eval()
    hoisted = hoisted_at(capture(model, (context[[0] * N], candidate), ["context"], all_rules()), Level.FIRST)
    expected = hoisted(context[:1], candidate)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-12)):
        made = hoisted.to(dtype)(context[:1].to(dtype), candidate.to(dtype))
        torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)
