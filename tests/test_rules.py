"""Every rule: equal in float64 at every level, hoisted where its law holds, declined (with its reason) where it does
not.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model, rates_of, reasons

from rankhoist.compiler.graph.node import Rate

N, C, K = 7, 6, 4
G = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


CONTEXT, CANDIDATE = randn(3, C), randn(N, K)
W = randn(5, C + K)
IDS = torch.randint(0, 9, (3, 4), generator=G), torch.randint(0, 9, (N, 4), generator=G)
FIELDS = randn(3, 4, 5), randn(N, 3, 5)
HISTORY = randn(3, 6, 4), randn(N, 4)
PAIR = randn(3, K), randn(N, K)


def both(c, k):
    return torch.cat([c, k], 1)


def interleaved(c, k):
    return torch.cat([c[:, :2], k[:, :1], c[:, 2:], k[:, 1:]], 1)


def fields(c, k):
    return torch.cat([c[:, :2], k, c[:, 2:]], 1)


# Each case: a function of (context, candidate) on dense rows, and its weights.
DENSE = {
    "linear": (lambda c, k, w: F.linear(both(c, k), w), dict(w=W)),
    "linear_bias_interleaved": (lambda c, k, w, b: F.linear(interleaved(c, k), w, b), dict(w=W, b=randn(5))),
    "two_linears": (lambda c, k, w, v: both(c, k) @ w.t() @ v, dict(w=W, v=randn(5, 3))),
    "addmm": (lambda c, k, w, b: torch.addmm(b, both(c, k), w, beta=0.5, alpha=2), dict(w=W.t().clone(), b=randn(5))),
    "matmul_vector": (lambda c, k, w: both(c, k) @ w, dict(w=randn(C + K))),
    "einsum": (lambda c, k, w: torch.einsum("bi,oi->bo", both(c, k), w), dict(w=W)),
    "einsum_ellipsis": (
        lambda c, k, w: (
            torch.einsum("...i,oi->...o", both(c, k).view(-1, 2, 5), w[:, :5])
            + torch.einsum("...i,i", c, w[0, :6]).view(-1, 1, 1)
        ),
        dict(w=W),
    ),
    "einsum_ellipsis_of_two_depths": (
        lambda c, k, w: torch.einsum("...i,...i->...", k.view(-1, 1, 4) * w[:3, :4], c[:, None, :4]),
        dict(w=W),
    ),
    "addr": (lambda c, k, b: torch.addr(both(c, k), c[:, 0], b, beta=0.5, alpha=2), dict(b=randn(C + K))),
    "bilinear": (lambda c, k, w, b: F.bilinear(c, k, w, b), dict(w=randn(5, C, K), b=randn(5))),
    "bilinear_of_both": (
        lambda c, k, w: F.bilinear(both(c, k).view(-1, 2, 5), interleaved(c, k).view(-1, 2, 5), w),
        dict(w=randn(3, 5, 5)),
    ),
    "vecdot": (lambda c, k, w: torch.linalg.vecdot(c.tanh(), k @ w), dict(w=randn(K, C))),
    "vecdot_dims": (
        lambda c, k, w: (
            torch.linalg.vecdot(c.view(-1, 3, 2), k.view(-1, 2, 2)[:, :1])
            + torch.linalg.vecdot(c, both(c, k)[:, 2:8], dim=1)[:, None]
            + torch.linalg.vecdot(w, both(c, k))[:, None]
        ),
        dict(w=randn(C + K)),
    ),
    "tensordot": (lambda c, k, w: torch.tensordot(both(c, k), w, dims=([1], [1])), dict(w=W)),
    "relu_of_cat": (lambda c, k: torch.relu(interleaved(c, k)) * 2 + 1, {}),
    "arithmetic": (lambda c, k: (c[:, :4] - k) / (c[:, :4].exp() + 2) + k * c[:, 1:5] - (3 - k) * 0.5, {}),
    "affine_chain": (lambda c, k, w: F.linear(F.linear(both(c, k), w) * c[:, :5] + 1, w[:, :5]) + c[:, :5], dict(w=W)),
    "cross": (lambda c, k, w: both(c, k) * (both(c, k) @ w + 1) + both(c, k), dict(w=randn(C + K, C + K))),
    "cross_twice": (
        lambda c, k, w: (lambda x: (lambda y: x * (y @ w) + y)(x * (x @ w) + x))(interleaved(c, k)).sum(1),
        dict(w=randn(C + K, C + K)),
    ),
    "gate_by_context": (lambda c, k, w: torch.sigmoid(c @ w[:4, :C].t()) * k @ w[:4, :2], dict(w=W)),
    "gate_by_candidate": (lambda c, k, w: torch.sigmoid(k[:, :1]) * c @ w[:2, :C].t(), dict(w=W)),
    "fm_sum_square": (
        lambda c, k: (c[:, :4] + k).pow(2).sum(1) - (c[:, :4] ** 2 + k**2).sum(1, keepdim=True)[:, 0],
        {},
    ),
    "comparisons": (lambda c, k: torch.where(c[:, :4] > k, c[:, :4], k).clamp(-0.5, 0.5), {}),
    "masked_fill": (lambda c, k: k.masked_fill(c[:, :4] > 0, -1.0).maximum(c[:, 1:5]), {}),
    "dtype_round_trip": (lambda c, k: (both(c, k) * 10).long().to(torch.float64) + (both(c, k) > 0), {}),
    "softmax": (lambda c, k: both(c, k).softmax(-1), {}),
    "softmax_halves": (lambda c, k: torch.stack([c[:, :4], k], 1).softmax(-1), {}),
    "mean_max_std": (lambda c, k: torch.stack([both(c, k).mean(1), both(c, k).amax(1), both(c, k).std(1)], 1), {}),
    "sort_topk": (lambda c, k: (torch.sort(c, 1).values, both(c, k).topk(3, dim=1).indices), {}),
    "stable_sort": (lambda c, k: (c.sort(dim=1, stable=True)[0], both(c, k).argsort(dim=1, stable=True)), {}),
    "scaled_sum_with_what_is_new": (
        lambda c, k, w: torch.add(k, (k @ w).relu(), alpha=0.5) + c[:, :4],
        dict(w=randn(4, 4)),
    ),
    "complex_numbers": (
        lambda c, k: (lambda z: torch.view_as_real(z * z))(torch.view_as_complex(torch.stack([c[:, :4] * k, k], -1))),
        {},
    ),
    "bits": (lambda c, k: (torch.stack([c[:, :4] * k, k], -1).long().int().view(torch.int64)).sum(1), {}),
    "max_dim": (lambda c, k: both(c, k).max(1), {}),
    "cumsum_keepdim": (lambda c, k: both(c, k).cumsum(1) + both(c, k).sum(-1, keepdim=True), {}),
    "norm": (lambda c, k: F.normalize(both(c, k)) + both(c, k).norm(dim=1, keepdim=True), {}),
    "layer_norm": (lambda c, k, w: F.linear(F.layer_norm(both(c, k), (C + K,)), w), dict(w=W)),
    "batch_norm": (
        lambda c, k, m, v, g, b: F.batch_norm(interleaved(c, k), m, v, g, b).tanh(),
        dict(m=randn(C + K), v=randn(C + K).abs() + 0.5, g=randn(C + K), b=randn(C + K)),
    ),
    "prelu": (lambda c, k, w: F.prelu(interleaved(c, k), w), dict(w=randn(C + K))),
    "split_chunk_unbind": (
        lambda c, k: sum(both(c, k).split([3, 3, 3, 1], 1)[:3]) + both(c, k).chunk(5, 1)[4].unbind(1)[0][:, None],
        {},
    ),
    "flip_roll_pad": (lambda c, k: F.pad(both(c, k).flip(1).roll(2, 1), (1, 2), value=0.5), {}),
    "view_fold_rows": (lambda c, k, w: F.linear(both(c, k).view(-1, 5), w).view(-1, 6), dict(w=randn(3, 5))),
    "transpose_fold": (lambda c, k: both(c, k).view(-1, 2, 5).transpose(1, 2).reshape(-1, 2).exp().view(-1, 10), {}),
    "gather_columns": (
        lambda c, k, i: both(c, k)[:, i] + both(c, k).index_select(1, i).flip(1),
        dict(i=torch.tensor([9, 0, 3, 3, 7])),
    ),
    "constants": (
        lambda c, k: torch.cat([torch.zeros(k.shape[0], 2, dtype=k.dtype), k, torch.ones_like(c)], 1) + 1,
        {},
    ),
    "expand_repeat": (
        lambda c, k: (c.unsqueeze(1).expand(-1, 3, -1) + k[:, 0].view(-1, 1, 1)).sum(2) + k[:, :1].repeat(1, 3),
        {},
    ),
    "repeat_interleave": (lambda c, k: (c.repeat_interleave(2, 0).view(-1, 2, C) * k[:, None, :1]).sum(1), {}),
    "einsum_three": (lambda c, k, w: torch.einsum("bi,bj,ij->b", c, k, w), dict(w=randn(C, K))),
    "windows": (lambda c, k: both(c, k).unfold(1, 3, 1).amax(2), {}),
    "distances": (lambda c, k: torch.cdist(c.view(-1, 3, 2), k.view(-1, 2, 2)).flatten(1), {}),
    "candidate_only": (lambda c, k: k.sin().sum(1), {}),
    "context_only": (lambda c, k: (c.sin().sum(1), k[:, 0]), {}),
    "weights_only": (lambda c, k, w: (w.sum(0)[:4] * k, w.norm()), dict(w=W)),
    "squeeze_all": (lambda c, k, w: F.linear(both(c, k), w[:1]).squeeze() + k[:, :1].squeeze(-1), dict(w=W)),
    "rows_of_own": (lambda c, k: both(c, k)[torch.arange(k.shape[0]), (k[:, 0] > 0).long()], {}),
    "gather_per_row": (lambda c, k: c.gather(1, (k[:, :2] > 0).long()), {}),
    "atom_inside_and_outside_a_sum": (
        lambda c, k, b, w: F.linear(c[:, :4] * k + c[:, 2:] * F.linear(k, b), w),
        dict(b=randn(1, 4), w=randn(1, 4)),
    ),
    "low_rank": (lambda c, k, w, v: F.linear(F.linear(both(c, k), v), w), dict(v=randn(2, C + K), w=randn(5, 2))),
    "conv1d": (lambda c, k, w: F.conv1d(both(c, k).unsqueeze(1), w).flatten(1), dict(w=randn(2, 1, 3))),
}

FIELD_CASES = {
    "gram": (lambda c, k: torch.bmm(fields(c, k), fields(c, k).transpose(1, 2)).flatten(1), {}),
    "gram_triangle": (
        lambda c, k, i, w: F.linear(torch.bmm(fields(c, k), fields(c, k).transpose(1, 2))[:, i[0], i[1]], w),
        dict(i=torch.triu_indices(7, 7, 1), w=randn(3, 21)),
    ),
    "gram_masked": (
        lambda c, k, m, w: F.linear(torch.masked_select(fields(c, k) @ fields(c, k).mT, m).view(-1, 21), w),
        dict(m=torch.triu(torch.ones(7, 7), 1).bool(), w=randn(3, 21)),
    ),
    "pairs_by_index": (
        lambda c, k, i: (fields(c, k)[:, i[0]] * fields(c, k)[:, i[1]]).sum(2),
        dict(i=torch.triu_indices(7, 7, 1)),
    ),
    "fm_fields": (lambda c, k: (fields(c, k).sum(1) ** 2 - (fields(c, k) ** 2).sum(1)).sum(1) * 0.5, {}),
    "per_field_matrix": (
        lambda c, k, w: torch.einsum("bfd,fde->bfe", fields(c, k), w).flatten(1),
        dict(w=randn(7, 5, 2)),
    ),
    "shared_matrix_flatten": (
        lambda c, k, w, v: F.linear((fields(c, k) @ w).flatten(1), v),
        dict(w=randn(5, 3), v=randn(2, 21)),
    ),
    "squeeze_excite": (
        lambda c, k, w: fields(c, k) * torch.sigmoid(F.linear(fields(c, k).mean(2), w)).unsqueeze(2),
        dict(w=randn(7, 7)),
    ),
    "self_attention": (
        lambda c, k, w: (lambda q: torch.softmax(q @ q.mT / 2, -1) @ q)(fields(c, k) @ w).mean(1),
        dict(w=randn(5, 5)),
    ),
    "sdpa": (
        lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c.unsqueeze(1), c.unsqueeze(1)).squeeze(1),
        {},
    ),
    "rows_folded_with_fields": (
        lambda c, k, w: F.linear(fields(c, k).reshape(-1, 5), w).relu().view(-1, 7, 2).sum(1),
        dict(w=randn(2, 5)),
    ),
    "batch_norm_fields": (
        lambda c, k, m: (
            F.batch_norm(fields(c, k), m[:7], m[:7].abs() + 1).sum(2)
            + F.batch_norm(fields(c, k).mT, m[7:], m[7:].abs() + 1).sum(1)[:, :1]
        ),
        dict(m=randn(12)),
    ),
    "max_pool": (lambda c, k: F.max_pool1d(fields(c, k), 2), {}),
}

HISTORY_CASES = {
    "target_attention": (
        lambda c, k, w: (
            F.linear(torch.cat([k.unsqueeze(1).expand(-1, 6, -1), c, k.unsqueeze(1) - c, k.unsqueeze(1) * c], -1), w)
            .relu()
            .sum(1)
        ),
        dict(w=randn(3, 16)),
    ),
    "dot_attention": (lambda c, k: (torch.softmax((c @ k.unsqueeze(2)).squeeze(2), 1).unsqueeze(1) @ c).squeeze(1), {}),
    "masked_mean": (
        lambda c, k: (c * (c[:, :, :1] > 0)).sum(1) / ((c[:, :, 0] > 0).sum(1, keepdim=True) + 1e-8) * k,
        {},
    ),
    "gru": (
        lambda c, k, wi, wh, b: (
            torch.gru(
                c, torch.zeros(1, c.shape[0], 3, dtype=c.dtype), [wi, wh, b, b], True, 1, 0.0, False, False, True
            )[0][:, -1]
            * k[:, :3]
        ),
        dict(wi=randn(9, 4), wh=randn(9, 3), b=randn(9)),
    ),
    "history_with_target": (
        lambda c, k, w: (torch.cat([c, k.unsqueeze(1)], 1) @ w).cumsum(1)[:, -1],
        dict(w=randn(4, 4)),
    ),
}


def seen(c: torch.Tensor) -> torch.Tensor:
    """Which entries of a history are seen: none at all of some histories."""
    return ((c[:, :, 0] > 0) & (c[:, :1, 1] > 0)).unsqueeze(1)


HISTORY_CASES |= {
    "masked_attention": (lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c, c, seen(c)).squeeze(1), {}),
    "masked_by_candidate": (
        lambda c, k: F.scaled_dot_product_attention(k.unsqueeze(1), c, c, seen(c) & (k[:, :1, None] > 0)).squeeze(1),
        {},
    ),
    "float_mask": (
        lambda c, k: F.scaled_dot_product_attention(
            k.unsqueeze(1), c, c, torch.where(seen(c), c[:, None, :, 2], float("-inf"))
        ).squeeze(1),
        {},
    ),
    "masked_history_and_target": (
        lambda c, k: (lambda x: F.scaled_dot_product_attention(x, x, x, seen(x) & (x[:, :, :1] > 0)))(
            torch.cat([c, k.unsqueeze(1)], 1)
        ).sum(1),
        {},
    ),
}

HISTORY_CASES |= {
    "norm_of_tokens": (
        lambda c, k, w: F.layer_norm(torch.cat([c, k[:, None]], 1), [4], w).mul(F.rms_norm(c, [4], w)[:, :1]).sum(1),
        dict(w=randn(4)),
    ),
    "causal_fill": (
        lambda c, k: (lambda x: (x @ x.mT).masked_fill(torch.ones(7, 7).triu(1) > 0, -torch.inf).softmax(-1) @ x)(
            torch.cat([c, k[:, None]], 1)
        )[:, 2:],
        {},
    ),
    "causal_product": (
        lambda c, k: (lambda x: (x @ x.mT).sigmoid() * torch.ones(7, 7, dtype=x.dtype).tril() @ x)(
            torch.cat([c, k[:, None]], 1)
        ).sum(1),
        {},
    ),
    "causal_attention": (
        lambda c, k: (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))(
            torch.cat([c, k[:, None]], 1)
        ).mean(1),
        {},
    ),
}

ID_CASES = {
    "embedding": (lambda c, k, t: F.embedding(torch.cat([c, k], 1), t).flatten(1), dict(t=randn(9, 3))),
    "offsets_one_table": (
        lambda c, k, t, o: F.embedding(torch.stack([c[:, 0], k[:, 0], c[:, 1]], 1) + o, t).sum(1),
        dict(t=randn(27, 3), o=torch.tensor([0, 9, 18])),
    ),
    "floats_cast_back": (
        lambda c, k, t: F.embedding(torch.cat([c.double(), k.double()], 1)[:, 3:6].long(), t).sum(1),
        dict(t=randn(9, 3)),
    ),
    "table_index": (lambda c, k, t: t[c[:, 0]] * t[k[:, 1]], dict(t=randn(9, 3))),
    "one_hot": (lambda c, k: F.one_hot(torch.cat([c, k], 1), 9).double().sum(1), {}),
    "masked_pooling": (
        lambda c, k, t: (
            (F.embedding(c, t) * (c != 0).unsqueeze(2)).sum(1)
            / (c != 0).sum(1, keepdim=True).clamp(min=1)
            * F.embedding(k[:, 0], t)
        ),
        dict(t=randn(9, 3)),
    ),
    "embedding_bag": (
        lambda c, k, t: F.embedding_bag(c, t, mode="mean") + F.embedding_bag(k, t, mode="sum", padding_idx=0),
        dict(t=randn(9, 3)),
    ),
    "hash_buckets": (lambda c, k, t: F.embedding((c * 31 + k[:, :1] * 17) % 9, t).sum(1), dict(t=randn(9, 3))),
    "bucketize": (
        lambda c, k, e: torch.bucketize(c.double(), e) + torch.bucketize(k.double(), e),
        dict(e=torch.tensor([1.5, 4.5, 7.5], dtype=torch.float64)),
    ),
}

STACKED_CASES = {  # rows under rows: every layer is shared by both sides
    "stacked_slices": (
        lambda c, k, w: (lambda y: y[: c.shape[0]] * y[c.shape[0] :])(F.linear(torch.cat([c, k]), w).relu()),
        dict(w=randn(5, K)),
    ),
    "stacked_negative_slices": (
        lambda c, k, w: (lambda y: y[: -c.shape[0]] - y[-c.shape[0] :])(torch.cat([k, c]) @ w), dict(w=randn(K, 5)),
    ),
    "stacked_chunk": (
        lambda c, k, w: torch.mul(*F.layer_norm(torch.cat([c, k]) @ w, [5]).chunk(2)), dict(w=randn(K, 5)),
    ),
    "stacked_split": (
        lambda c, k, w: torch.mul(*(torch.cat([c, k]) @ w).split([c.shape[0], k.shape[0]])), dict(w=randn(K, 5)),
    ),
    "stacked_views": (
        lambda c, k, w: (torch.cat([c, k]) @ w).view(2, -1, 5).permute(1, 0, 2).flatten(1), dict(w=randn(K, 5)),
    ),
    "stacked_nested": (
        lambda c, k: torch.cat([torch.cat([c, k]), k]).sigmoid().view(3, -1, K).prod(0)
        + torch.cat([torch.cat([c, k]), k]).narrow(0, c.shape[0], c.shape[0]),
        {},
    ),
    "stacked_attention": (
        lambda c, k: torch.mul(*F.scaled_dot_product_attention(*[torch.cat([c, k]).view(-1, 2, 2)] * 3).chunk(2)),
        {},
    ),
    "stacked_repeat": (lambda c, k: (c.repeat(2, 1) * torch.cat([k, k + 1])).view(2, -1, K).prod(0), {}),
    "stacked_outside": (
        lambda c, k: F.scaled_dot_product_attention(
            *[(c + 0 * c).view(-1, 2, 2).transpose(0, 1).reshape(-1, 1, 2)] * 3
        ).view(2, -1, 2).transpose(0, 1).reshape(-1, K) * k,
        {},
    ),
}  # fmt: skip

CASES = [
    *((name, *PAIR, case) for name, case in STACKED_CASES.items()),
    *((name, CONTEXT, CANDIDATE, case) for name, case in DENSE.items()),
    *((name, *FIELDS, case) for name, case in FIELD_CASES.items()),
    *((name, *HISTORY, case) for name, case in HISTORY_CASES.items()),
    *((name, *IDS, case) for name, case in ID_CASES.items()),
]


@pytest.mark.parametrize(("name", "context", "candidate", "case"), CASES, ids=[c[0] for c in CASES])
def test_equal_at_every_level(name, context, candidate, case):
    call, weights = case
    models = check_model(Function(call, **weights).eval(), context, candidate)
    costs = {k: m.plan.cost.multiply_adds for k, m in models.items() if k not in ("full", "kept")}
    order = list(costs.values())
    assert order == sorted(order, reverse=True), f"multiply-adds rise with the level: {costs}"


NEAR_MISSES = {
    "softmax_over_rows": (lambda c, k: both(c, k).softmax(0), "softmax", "row axis: axis 0 of [rows, 10]"),
    "sum_over_rows": (lambda c, k: both(c, k) - both(c, k).sum(0), "sum", "over the rows: axis 0 of [rows, 10]"),
    "cumsum_over_rows": (lambda c, k: c.cumsum(0)[:, :4] + k, "cumsum", "over the rows: axis 0 of [rows, 6]"),
    "rows_flipped": (lambda c, k: c.flip(0)[:, :4] + k, "flip", "row axis: axis 0 of [rows, 6]"),
    "rows_rolled": (lambda c, k: c.roll(1, 0)[:, :4] + k, "roll", "row axis: axis 0 of [rows, 6]"),
    "sort_rows": (lambda c, k: c.sort(0).values[:, :4] + k, "sort", "over the rows: axis 0 of [rows, 6]"),
    "rows_meet_rows": (lambda c, k: (c @ c.t()).softmax(1) @ k, "matmul", "every row meets every other row"),
    "first_row": (lambda c, k: c[:1, :4] + k, "slice", "cuts the rows of [rows, 6] at 1"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_mixing_rows_declines(name):
    """An operator that mixes rows runs over all N rows, is equal, and says why."""
    call, operator, reason = NEAR_MISSES[name]
    model = Function(call).eval()
    from rankhoist.capture import capture
    from rankhoist.compiler.algebra.workload import Level

    program = capture(model, (CONTEXT[torch.arange(N) % 3], CANDIDATE), ["context"])
    from helpers import assert_equal, hoisted_at, repeated

    for level in (Level.REQUEST, Level.FULL):
        hoisted = hoisted_at(program, level)
        expected = model(repeated(CONTEXT, [0, 3, 3, N]), CANDIDATE)
        assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=[0, 3, 3, N]), expected, name)
        assert any(reason in r for r in reasons(hoisted)), reasons(hoisted)
        assert not [r for r in reasons(hoisted) if "please report" in r], "a rule broke"
        assert Rate.REQUEST not in rates_of(hoisted, operator) or operator == "slice"


def test_a_layer_before_vecdot_is_folded_into_the_request():
    """<U c, V k> = <V^T U c, k>: once per request H Dc + H Dk multiply-adds, per candidate Dk instead of H Dk + H."""
    h, n = 8, 1000
    model = Function(lambda c, k, u, v: torch.linalg.vecdot(c @ u, k @ v), u=randn(C, h), v=randn(K, h))
    models = check_model(model.eval(), CONTEXT, CANDIDATE)
    cost = {level: models[level].plan.cost.multiply_adds for level in ("expand", "first", "full")}
    assert cost == {"expand": n * h * (C + K + 1), "first": h * C + n * h * (K + 1), "full": h * (C + K) + n * K}


def test_vecdot_applies_to_operands_of_different_depth():
    call, weights = DENSE["vecdot_dims"]
    models = check_model(Function(call, **weights).eval(), CONTEXT, CANDIDATE)
    assert reasons(models["full"]) == []


def test_the_request_half_of_stacked_rows_is_done_once():
    """A layer over `[x; y]`: K * 5 multiply-adds for the request, and for every candidate, instead of twice as many."""
    call, weights = STACKED_CASES["stacked_slices"]
    models = check_model(Function(call, **weights).eval(), *PAIR)
    assert models["expand"].plan.cost.multiply_adds == 2 * 1000 * K * 5
    for level in ("linear", "first", "full"):
        assert models[level].plan.cost.multiply_adds == (1 + 1000) * K * 5
        assert rates_of(models[level], "linear") == {Rate.REQUEST, Rate.ITEM}


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
def test_learned_tokens_have_a_row_like_everything(name, folded):
    """Weights repeated for every row: an operator that runs once for them still counts axes from the rows."""

    def call(c, k, token):
        tokens = token.unsqueeze(0).unsqueeze(1) if folded else token.unsqueeze(0)
        tokens = tokens.expand(k.shape[0], *tokens.shape[1:]).reshape(k.shape[0], 3, K)
        return ((c[:, :K] * k).unsqueeze(1) + LEARNED[name](tokens)).relu().sum(2)

    check_model(Function(call, token=randn(3, K)).eval(), CONTEXT, CANDIDATE)


def test_a_sum_that_gains_an_axis_is_not_written_over_its_operand():
    context, candidate = torch.randn(3, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    check_model(Function(lambda c, k: (c * k + (2 * k)[None])[0]).eval(), context, candidate)
    check_model(Function(lambda c, k: (c * k + torch.zeros(1, 1, 1))[0]).eval(), context, candidate)
